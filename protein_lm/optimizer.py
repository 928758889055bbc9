"""The optimiser, from named numbers: what it moves, how far, what decays.

An update is the same three things for every optimiser: a direction, plus
weight decay, both times minus the learning rate.
"""

import difflib
import fnmatch
import math
from typing import Literal, get_args

import gin
import jax
import optax

from protein_lm.frozen_layers import freeze_layers
from protein_lm.schedules import Schedule, make_schedule

Name = Literal['adamw', 'lion', 'adafactor', 'muon']

# Leaves that decay; biases, norms and position tables do not.
_DECAYED = ('kernel', 'embedding')

# Of the optimisers; what a name lacks it does not read.
_NUMBERS = {
  'adamw': {'beta1': 0.9, 'beta2': 0.98, 'epsilon': 1e-9},
  'lion': {'beta1': 0.9, 'beta2': 0.99},
  'adafactor': {'beta1': 0.0, 'epsilon': 1e-30},
  'muon': {'beta1': 0.9, 'beta2': 0.98, 'epsilon': 1e-9},
}
_MUON_MOMENTUM = 0.95
_MUON_RMS = 0.2  # of an update, about that of AdamW (arXiv 2502.16982, 2.2)

# Adafactor keeps sums over rows and columns if both have so many entries. The
# default of optax, 128, would leave out every matrix of heads.
_MIN_FACTORED_DIM = 32


class PartialOptimizer(optax.GradientTransformationExtraArgs):
  """A transformation that moves some leaves only.

  `is_trainable(params)` is True for those; the others have no state.
  """


@gin.configurable
def make_optimizer(
  num_train_steps: int,
  name: Name = 'adamw',
  learning_rate: float = 1e-3,
  warmup_steps: int = 1000,
  schedule: Schedule = 'rsqrt',
  final_learning_rate_share: float | None = None,
  decay_share: float | None = None,
  decay_steps: int | None = None,
  weight_decay: float = 0.1,
  beta1: float | None = None,
  beta2: float | None = None,
  epsilon: float | None = None,
  grad_clip_norm: float | None = None,
  trainable: tuple[str, ...] | None = None,
  frozen_layers: int = 0,
):
  """The optimiser and its learning rate.

  - adamw: arXiv 1711.05101, with the numbers published for Performers.
  - lion: arXiv 2302.06675; wants a learning rate 3 to 10 times smaller and a
    weight decay as much larger.
  - adafactor: arXiv 1804.04235, second moments by rows and columns, which
    takes a small part of AdamW's memory; with AdamW's learning rates, so
    without scaling by the size of the parameters (arXiv 2106.04560, 3.4).
  - muon: arXiv 2502.16982, orthogonal updates of the matrices in the layers,
    each layer's its own, with momentum 0.95, scaled to the size of AdamW's so
    that its learning rate and weight decay serve; AdamW moves the rest.

  Args:
    num_train_steps: steps of the run.
    name: 'adamw', 'lion', 'adafactor' or 'muon'.
    learning_rate: peak, reached at the end of the warm-up.
    warmup_steps: steps of linear warm-up from 0.
    schedule: after the warm-up, 'constant', 'rsqrt', 'cosine', 'linear' or
      'wsd'; the formulas are in schedules.py.
    final_learning_rate_share: of the peak, at the end of 'cosine', 'linear'
      and 'wsd'; None is 0.
    decay_share: share of the run in which 'wsd' decays; None is 0.2.
    decay_steps: the same in steps, in place of decay_share.
    weight_decay: of kernels and embeddings, per unit of learning rate.
    beta1: decay of the first moment; None is 0.9, for adafactor 0 (none kept).
    beta2: decay of the second moment, in lion of its momentum; None is 0.98,
      for lion 0.99. Adafactor does not read it: 1 - step^-0.8.
    epsilon: added to the root of the second moment, in adafactor to the
      squares; None is 1e-9, for adafactor 1e-30. Lion does not read it.
    grad_clip_norm: largest norm of the gradient of all that is trained
      together, or None not to clip.
    trainable: patterns of names such as 'blocks/query/*' or '*/lora_?'
      (fnmatch); only what one of them matches is moved, decays and has moments.
      None trains everything.
    frozen_layers: layers that are not moved, from the input on, and with them
      the embedding and the position table (frozen_layers.py).

  Returns:
    (optax.GradientTransformation, schedule), the schedule a function from the
    step to its learning rate. With `trainable`, a PartialOptimizer.

  Raises:
    ValueError: for an unknown name or schedule, a negative number, or one that
      the optimiser or the schedule does not read; from `init`, for a pattern
      that matches nothing.
  """
  for argument, value in (
    ('learning_rate', learning_rate),
    ('warmup_steps', warmup_steps),
    ('weight_decay', weight_decay),
  ):
    if value < 0:
      raise ValueError(f'make_optimizer.{argument} must be >= 0, got {value}.')
  learning_rate_fn = make_schedule(
    schedule,
    learning_rate,
    warmup_steps,
    num_train_steps,
    final_learning_rate_share,
    decay_share,
    decay_steps,
  )
  tx = optax.chain(
    _direction(name, beta1=beta1, beta2=beta2, epsilon=epsilon),
    optax.add_decayed_weights(weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(learning_rate_fn),
  )
  if grad_clip_norm is not None:
    tx = optax.chain(optax.clip_by_global_norm(grad_clip_norm), tx)
  tx = freeze_layers(tx, frozen_layers)
  if trainable is not None:
    tx = _train_only(tx, trainable)
  return tx, learning_rate_fn


def decay_mask(params):
  """True for the leaves of `params` that weight decay reaches."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: leaf_name(path).split('/')[-1] in _DECAYED, params
  )


def leaf_name(path):
  """The name of a leaf, such as 'blocks/query/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _direction(name, **given):
  """The transformation from gradients to directions."""
  if name not in get_args(Name):
    raise ValueError(
      f'make_optimizer.name must be one of {", ".join(get_args(Name))}, got '
      f'{name!r}.'
    )
  given = {argument: x for argument, x in given.items() if x is not None}
  numbers = _NUMBERS[name] | given
  if unread := sorted(given.keys() - _NUMBERS[name].keys()):
    raise ValueError(
      f'make_optimizer.{unread[0]}={given[unread[0]]} is not read by {name}, '
      f'which takes {" and ".join(_NUMBERS[name])}: unset it (None).'
    )
  if name == 'lion':
    return optax.scale_by_lion(numbers['beta1'], numbers['beta2'])
  if name == 'adafactor':
    return _adafactor(numbers['beta1'], numbers['epsilon'])
  adam = optax.scale_by_adam(
    numbers['beta1'], numbers['beta2'], numbers['epsilon']
  )
  if name == 'adamw':
    return adam
  return optax.partition(
    {'matrix': _muon(), 'other': adam},
    lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: 'matrix' if _is_matrix(path) else 'other', params
    ),
  )


def _adafactor(momentum, epsilon):
  transformations = [
    optax.scale_by_factored_rms(
      min_dim_size_to_factor=_MIN_FACTORED_DIM, epsilon=epsilon
    ),
    optax.clip_by_block_rms(1.0),
  ]
  if momentum:
    transformations.append(optax.ema(momentum, debias=False))
  return optax.chain(*transformations)


def _muon():
  def scale(updates, params):
    del params

    def scaled(x, axes):
      fans = [math.prod(x.shape[i] for i in some) for some in axes]
      return x * (_MUON_RMS * max(fans) ** 0.5)

    return jax.tree.map(scaled, updates, _matrix_axes(updates))

  return optax.chain(
    optax.contrib.scale_by_muon(
      beta=_MUON_MOMENTUM, weight_dimension_numbers=_matrix_axes
    ),
    optax.stateless(scale),
  )


def _is_matrix(path):
  """Kernels of the layers; neither embeddings nor the output layer."""
  name = leaf_name(path)
  return name.startswith('blocks/') and name.endswith('/kernel')


def _matrix_axes(params):
  """What is in and out of a layer's matrix; axis 0 counts the layers.

  `out` maps [N, H, K, D] from (H, K) to D, the others map from axis 1.
  """

  def axes(path, x):
    is_out = leaf_name(path).endswith('/out/kernel')
    num_inputs = x.ndim - 2 if is_out else 1
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(1, 1 + num_inputs)), tuple(range(1 + num_inputs, x.ndim))
    )

  return jax.tree_util.tree_map_with_path(axes, params)


def _train_only(tx, patterns):
  """A PartialOptimizer; `tx` sees the leaves that a pattern matches alone."""

  def is_trainable(params):
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [leaf_name(path) for path, _ in leaves]
    for pattern in patterns:
      if not fnmatch.filter(names, pattern):
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0)
        raise ValueError(
          f'make_optimizer.trainable: {pattern!r} matches no parameter; the '
          f'nearest are {", ".join(near)}.'
        )
    return jax.tree_util.tree_map_with_path(
      lambda path, _: any(
        fnmatch.fnmatchcase(leaf_name(path), pattern) for pattern in patterns
      ),
      params,
    )

  partial = optax.partition(
    {True: tx, False: optax.set_to_zero()}, is_trainable
  )
  partial = PartialOptimizer(partial.init, partial.update)
  partial.is_trainable = is_trainable
  return partial
