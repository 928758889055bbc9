"""Learning rates as functions of the step: a linear warm-up, then a rule."""

from typing import Literal, get_args

import jax.numpy as jnp

Schedule = Literal['constant', 'rsqrt', 'cosine', 'linear', 'wsd']

# Of the run, where neither decay_share nor decay_steps is given.
_DECAY_SHARE = 0.2


def make_schedule(
  name,
  peak,
  warmup_steps,
  num_train_steps,
  final_share=None,
  decay_share=None,
  decay_steps=None,
):
  """A learning rate that rises to its peak, then follows a rule.

  With w = max(warmup_steps, 1), s = step - warmup_steps, n = num_train_steps -
  warmup_steps and f = final_share:

      warm-up   peak step / w
      constant  peak
      rsqrt     peak sqrt(w / (s + w)), arXiv 1706.03762, eq. 3
      cosine    peak (f + (1 - f) (1 + cos(pi s / n)) / 2), arXiv 1608.03983
      linear    peak (f + (1 - f) (1 - s / n))
      wsd       peak until decay_steps before the end, then linear to f peak:
                warm-up, stable, decay, arXiv 2404.06395 and 2405.18392

  Args:
    name: of the rule.
    peak: the learning rate at the end of the warm-up.
    warmup_steps: steps of linear warm-up from 0.
    num_train_steps: steps of the run; cosine, linear and wsd end there and
      stay where they ended.
    final_share: f, of cosine, linear and wsd; 0 if None.
    decay_share: share of num_train_steps in which wsd decays; 0.2 if neither
      this nor decay_steps is given.
    decay_steps: the same as a number of steps. The decay begins at the
      earliest at the end of the warm-up.

  Returns:
    A function from the step, an int or an array, to the learning rate.

  Raises:
    ValueError: for an unknown name, a number that the rule does not read, or
      one out of its range.
  """
  _check(name, num_train_steps, final_share, decay_share, decay_steps)
  w, n = max(warmup_steps, 1), max(num_train_steps - warmup_steps, 1)
  f = final_share or 0.0
  if decay_steps is None:
    share = _DECAY_SHARE if decay_share is None else decay_share
    decay_steps = round(share * num_train_steps)
  decay_steps = min(max(decay_steps, 1), n)
  fall = {
    'constant': lambda s: 1.0 + 0.0 * s,
    'rsqrt': lambda s: jnp.sqrt(w / (s + w)),
    'cosine': lambda s: 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(s / n, 1))),
    'linear': lambda s: 1 - jnp.minimum(s / n, 1),
    'wsd': lambda s: jnp.clip((n - s) / decay_steps, 0, 1),
  }[name]

  def learning_rate(step):
    after = f + (1 - f) * fall(jnp.maximum(step - warmup_steps, 0))
    return peak * jnp.where(step < warmup_steps, step / w, after)

  return learning_rate


def _check(name, num_train_steps, final_share, decay_share, decay_steps):
  if name not in get_args(Schedule):
    raise ValueError(
      f'make_optimizer.schedule must be one of {", ".join(get_args(Schedule))},'
      f' got {name!r}.'
    )
  ends = ('cosine', 'linear', 'wsd')
  for argument, value, readers in (
    ('final_learning_rate_share', final_share, ends),
    ('decay_share', decay_share, ('wsd',)),
    ('decay_steps', decay_steps, ('wsd',)),
  ):
    if value is not None and name not in readers:
      raise ValueError(
        f'make_optimizer.{argument}={value} is read by the schedule '
        f'{" or ".join(readers)}, not by {name!r}: unset it (None).'
      )
  for argument, value in (
    ('final_learning_rate_share', final_share),
    ('decay_share', decay_share),
  ):
    if value is not None and not 0 <= value <= 1:
      raise ValueError(
        f'make_optimizer.{argument} must be within [0, 1], got {value}.'
      )
  if decay_steps is None:
    return
  if decay_share is not None:
    raise ValueError(
      f'make_optimizer.decay_share={decay_share} and decay_steps='
      f'{decay_steps} say the same: unset one of them.'
    )
  if not 0 <= decay_steps <= num_train_steps:
    raise ValueError(
      f'make_optimizer.decay_steps must be within [0, {num_train_steps}], the '
      f'steps of the run, got {decay_steps}.'
    )
