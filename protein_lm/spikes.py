"""Steps not to take: a loss or a gradient far from those of the steps before.

Two numbers of a step are watched, the mean loss and the norm of the gradient.
With m and sd the running mean and standard deviation over the steps that were
taken, a number x is a spike if

    x > factor m   and   x > m + 6 min(sd, 10 m)

once so many steps were taken. The factor leaves the wobble of training alone,
6 sd tasks whose batches differ by more than that. With factors up to 61,
whatever exceeds 61 m is a spike. Averages are exact over the first 100 steps
taken, then decay by 0.99.

Steps that are not taken leave the averages as they were, so a spike does not
raise the bar for the next, and a step that is run again is judged the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_DECAY = 0.99
_DEVIATIONS, _MAX_DEVIATION = 6.0, 10.0


class Rule(NamedTuple):
  """When a step is a spike.

  loss_factor: of the running mean of the loss; None does not watch it.
  grad_norm_factor: of the running mean of the gradient norm, or None.
  after_steps: steps taken before the first judgement.
  """

  loss_factor: float | None
  grad_norm_factor: float | None
  after_steps: int

  def check(self):
    """Raises ValueError for numbers that would skip ordinary steps."""
    for name in ('loss_factor', 'grad_norm_factor'):
      value = getattr(self, name)
      if value is not None and value <= 1:
        raise ValueError(
          f'make_train_step.spike_{name} must be greater than 1 or None, got '
          f'{value}.'
        )
    if self.after_steps < 1:
      raise ValueError(
        'make_train_step.spike_after_steps must be at least 1, got '
        f'{self.after_steps}.'
      )


class Running(NamedTuple):
  """Running averages of x and of x^2, float32 scalars."""

  mean: jax.Array
  square: jax.Array


class SpikeStats(NamedTuple):
  """What is known of the steps taken.

  num_steps: [] int32, how many.
  loss: Running, in nats per counted token.
  grad_norm: Running.
  """

  num_steps: jax.Array
  loss: Running
  grad_norm: Running


def init():
  """SpikeStats of no step."""

  def zeros():  # not shared: a state that is donated must not hold one twice
    return Running(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  return SpikeStats(jnp.zeros((), jnp.int32), zeros(), zeros())


def is_spike(rule, stats, loss, grad_norm):
  """Whether a step is one, [] bool.

  Args:
    rule: Rule.
    stats: SpikeStats of the steps taken before.
    loss: mean loss of the step.
    grad_norm: norm of its gradient, before clipping.
  """
  exceeds = jnp.zeros((), bool)
  if rule.loss_factor is not None:
    exceeds |= _exceeds(stats.loss, loss, rule.loss_factor)
  if rule.grad_norm_factor is not None:
    exceeds |= _exceeds(stats.grad_norm, grad_norm, rule.grad_norm_factor)
  return exceeds & (stats.num_steps >= rule.after_steps)


def update(stats, loss, grad_norm):
  """SpikeStats with one more step taken; arguments as is_spike."""
  num_steps = stats.num_steps + 1
  share = jnp.maximum(1 / num_steps.astype(jnp.float32), 1 - _DECAY)

  def add(running, x):
    return Running(
      running.mean + share * (x - running.mean),
      running.square + share * (x**2 - running.square),
    )

  return SpikeStats(
    num_steps, add(stats.loss, loss), add(stats.grad_norm, grad_norm)
  )


def _exceeds(running, x, factor):
  deviation = jnp.sqrt(jnp.maximum(running.square - running.mean**2, 0))
  deviation = jnp.minimum(deviation, _MAX_DEVIATION * running.mean)
  above = running.mean + _DEVIATIONS * deviation
  return (x > factor * running.mean) & (x > above)
