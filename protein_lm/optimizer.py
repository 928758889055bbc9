"""AdamW with a warmed-up schedule, from named numbers."""

from typing import Literal

import gin
import jax
import jax.numpy as jnp
import optax

Schedule = Literal['constant', 'rsqrt', 'cosine', 'linear']

# Leaves that decay; biases, norms and position tables do not.
_DECAYED = ('kernel', 'embedding')


@gin.configurable
def make_optimizer(
  num_train_steps: int,
  learning_rate: float = 1e-3,
  warmup_steps: int = 1000,
  schedule: Schedule = 'rsqrt',
  weight_decay: float = 0.1,
  beta1: float = 0.9,
  beta2: float = 0.98,
  epsilon: float = 1e-9,
  grad_clip_norm: float | None = None,
):
  """AdamW (arXiv 1711.05101) with the published numbers as defaults.

  Args:
    num_train_steps: steps of the run; 'cosine' and 'linear' end there at 0.
    learning_rate: peak, reached at the end of the warm-up.
    warmup_steps: steps of linear warm-up from 0.
    schedule: after the warm-up, 'constant', 'rsqrt' (peak x sqrt(warmup_steps
      / step), arXiv 1706.03762), 'cosine' or 'linear'.
    weight_decay: of kernels and embeddings, per unit of learning rate.
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    epsilon: added to the root of the second moment.
    grad_clip_norm: largest global gradient norm, or None not to clip.

  Returns:
    (optax.GradientTransformation, schedule), the schedule a function from the
    step to its learning rate.

  Raises:
    ValueError: for an unknown schedule or a negative number.
  """
  for name, value in (
    ('learning_rate', learning_rate),
    ('warmup_steps', warmup_steps),
    ('weight_decay', weight_decay),
  ):
    if value < 0:
      raise ValueError(f'make_optimizer.{name} must be >= 0, got {value}.')
  learning_rate_fn = make_schedule(
    schedule, learning_rate, warmup_steps, num_train_steps
  )
  adamw = optax.adamw(
    learning_rate_fn,
    b1=beta1,
    b2=beta2,
    eps=epsilon,
    weight_decay=weight_decay,
    mask=decay_mask,
  )
  if grad_clip_norm is None:
    return adamw, learning_rate_fn
  clip = optax.clip_by_global_norm(grad_clip_norm)
  return optax.chain(clip, adamw), learning_rate_fn


def make_schedule(name, peak, warmup_steps, num_train_steps):
  """A function from the step to its learning rate; see make_optimizer."""
  rest = max(num_train_steps - warmup_steps, 1)
  w = max(warmup_steps, 1)
  after = {
    'constant': lambda step: peak + 0.0 * step,
    'rsqrt': lambda step: peak * jnp.sqrt(w / (jnp.maximum(step, 0) + w)),
    'cosine': lambda step: (
      peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / rest, 1)))
    ),
    'linear': lambda step: peak * (1 - jnp.minimum(step / rest, 1)),
  }
  if name not in after:
    raise ValueError(
      f'make_optimizer.schedule must be one of {", ".join(after)}, got '
      f'{name!r}.'
    )
  warmup = optax.linear_schedule(0.0, peak, w)
  return optax.join_schedules([warmup, after[name]], [warmup_steps])


def decay_mask(params):
  """True for the leaves of `params` that weight decay reaches."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: _leaf_name(path) in _DECAYED, params
  )


def _leaf_name(path):
  names = [str(getattr(entry, 'key', '')) for entry in path]
  return names[-1] if names else ''
