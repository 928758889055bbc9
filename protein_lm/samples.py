"""Proteins that a model made, and what both ways of making them share.

Axes: B batch.
"""

import dataclasses
import numbers

import jax
import jax.numpy as jnp
import numpy as np

_MAX_SEED = 2**32

NO_FINITE_LOGITS = (
  'the model gives no finite logits: its training diverged; take an earlier '
  'checkpoint with --step.'
)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """A protein that a model made.

  Attributes:
    index: its number; with the seed it says all that was random.
    sequence: its letters, those given too.
    token_log_probs: float32, in nats, of what the model drew, without what was
      given: by the model as it is, over its whole vocabulary at temperature 1.
      Of a causal model, EOS comes last if the sequence is finished.
    finished: whether the model ended it; always, where it filled gaps.
    drawn: the letters that the model drew, in order.
  """

  index: int
  sequence: str
  token_log_probs: np.ndarray
  finished: bool
  drawn: str

  @property
  def log_prob(self) -> float:
    """Sum of token_log_probs."""
    return float(self.token_log_probs.sum(dtype=np.float64))

  @property
  def per_residue(self) -> float:
    """Mean of token_log_probs without EOS; NaN if no residue was drawn."""
    if not self.drawn:
      return float('nan')
    log_p = self.token_log_probs[: len(self.drawn)]
    return float(log_p.mean(dtype=np.float64))


def check_numbers(num_samples, batch_size, seed, first) -> None:
  """Refuses numbers out of range."""
  for name, value, least, most in (
    ('num_samples', num_samples, 1, 2**31 - 1),
    ('batch_size', batch_size, 1, 2**20),
    ('seed', seed, 0, _MAX_SEED - 1),
    ('first', first, 0, 2**31 - 1),
  ):
    is_whole = isinstance(value, numbers.Integral)
    if not is_whole or not least <= value <= most:
      raise ValueError(
        f'{name} must be a whole number from {least} to {most}, got {value!r}.'
      )


def draw_rngs(seed, numbers_B):
  """The key of each sequence."""
  rng = jax.random.key(np.uint32(seed))
  return jax.vmap(lambda number: jax.random.fold_in(rng, number))(
    jnp.asarray(numbers_B, jnp.uint32)
  )
