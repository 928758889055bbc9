"""Low-rank factors beside kernels, LoRA (arXiv 2106.09685).

A kernel W becomes W + (lora_alpha / lora_rank) A B. B starts at zero, so that a
model is at first the one without factors, bit for bit.

Axes: N layers, R rank.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx

# Kernels of a layer that can have factors; mlp_gate exists in 'swiglu'.
TARGETS = ('query', 'key', 'value', 'out', 'mlp_in', 'mlp_out', 'mlp_gate')
FACTORS = ('lora_a', 'lora_b')


class LoraLinear(nnx.LinearGeneral):
  """A dense layer with a pair of factors; arguments as its base, and two."""

  def __init__(self, *args, rank, alpha, rngs, **kwargs):
    """Builds the layer.

    Args:
      *args: of nnx.LinearGeneral.
      rank: R, columns of A and rows of B.
      alpha: the product of the factors counts alpha / rank.
      rngs: nnx.Rngs for the initial weights.
      **kwargs: of nnx.LinearGeneral.
    """
    super().__init__(*args, rngs=rngs, **kwargs)
    self.scale = alpha / rank
    stddev = np.prod(self.in_features) ** -0.5
    init = nnx.initializers.normal(stddev)
    self.lora_a = nnx.Param(init(rngs.params(), (*self.in_features, rank)))
    self.lora_b = nnx.Param(jnp.zeros((rank, *self.out_features)))

  def __call__(self, x):
    """The dense layer of W + scale A B, without forming it."""
    x, a, b = self.promote_dtype(
      (x, self.lora_a[...], self.lora_b[...]), dtype=self.dtype
    )
    low_R = jnp.tensordot(x, a, len(self.in_features))
    return super().__call__(x) + self.scale * jnp.tensordot(low_R, b, 1)


def check(name, rank, alpha, targets, mlp):
  """Refuses numbers and names that make no factors.

  Args:
    name: of the model class, for the message.
    rank: 0 for none.
    alpha: as in LoraLinear.
    targets: names of TARGETS.
    mlp: of the model, 'gelu' or 'swiglu'.

  Raises:
    ValueError: one sentence.
  """
  if rank < 0:
    raise ValueError(f'{name}.lora_rank must be at least 0, got {rank}.')
  if not rank:
    return
  if not alpha > 0:
    raise ValueError(f'{name}.lora_alpha must be positive, got {alpha}.')
  known = TARGETS if mlp == 'swiglu' else TARGETS[:-1]
  wrong = [target for target in targets if target not in known]
  if wrong or not targets:
    raise ValueError(
      f'{name}.lora_targets must name some of {", ".join(known)}, got '
      f'{wrong[0] if wrong else targets!r}.'
    )


def has_factors(params):
  """Whether a tree of parameters holds LoRA factors."""
  return any(
    isinstance(module, dict) and FACTORS[0] in module
    for module in params.get('blocks', {}).values()
  )


def merge(params, alpha):
  """Folds the factors into the kernels: W + (alpha / R) A B.

  Args:
    params: nested dict of arrays, layers stacked on axis N, with factors.
    alpha: `FlaxModel.lora_alpha` of the run that trained them.

  Returns:
    The parameters of the same architecture with lora_rank = 0. A tree without
    factors comes back as it is.
  """

  def merged(module):
    if not isinstance(module, dict) or FACTORS[0] not in module:
      return module
    a_R, b_R = (np.asarray(module[name], np.float64) for name in FACTORS)
    update = np.stack(
      [np.tensordot(a, b, 1) for a, b in zip(a_R, b_R, strict=True)]
    )
    kernel = np.asarray(module['kernel'])
    kernel = (kernel + alpha / a_R.shape[-1] * update).astype(kernel.dtype)
    rest = {k: v for k, v in module.items() if k not in FACTORS}
    return {**rest, 'kernel': kernel}

  if 'blocks' not in params:
    return params
  blocks = {name: merged(x) for name, x in params['blocks'].items()}
  return {**params, 'blocks': blocks}
