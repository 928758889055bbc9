"""Which token to draw: penalty, temperature, top-k, top-p, min-p, so ordered.

Everything starts from log p of the A tokens that may be drawn, renormalised
over these. Then

1. repetition penalty r: the probability of a residue that occurs n times among
   the last 16 (the prompt's too) is divided by r^n, and all residues are scaled
   so that EOS keeps its own (20 letters have soon all been seen: a penalty on
   the whole past would do nothing but end the sequence);
2. temperature T: p^(1/T), renormalised; 0 takes the most probable token;
3. top-k keeps the k most probable tokens;
4. top-p keeps, of these renormalised, the most probable ones until their sum
   reaches p (arXiv 1904.09751); the one that reaches it stays;
5. min-p keeps the tokens with at least p times the probability of the most
   probable one (arXiv 2407.01082).

Axes: B batch, A tokens that may be drawn, W last residues.
"""

import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp

WINDOW = 16  # residues


class Filters(NamedTuple):
  """Numbers, traced: other ones run the same compiled program."""

  temperature: float
  top_k: int
  top_p: float
  min_p: float
  repetition_penalty: float = 1.0


def make_filters(
  temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0
) -> Filters:
  """Checks the numbers; None is no filter.

  Args:
    temperature: 0, or from 0.001 to 1000.
    top_k: 1 or more.
    top_p: above 0, to 1.
    min_p: from 0 to 1.
    repetition_penalty: above 0, to 1000; 1 is none, more avoids repeats.

  Returns:
    Filters.

  Raises:
    ValueError: a number out of range.

  Example:
    make_filters(temperature=0.8, top_p=0.95)
  """
  is_good = temperature == 0 or 1e-3 <= temperature <= 1e3
  _check('temperature', temperature, is_good, '0, or from 0.001 to 1000')
  if top_k is not None:
    is_whole = isinstance(top_k, numbers.Integral)
    _check('top_k', top_k, is_whole and top_k >= 1, 'a whole number from 1 on')
  if top_p is not None:
    _check('top_p', top_p, 0 < top_p <= 1, 'above 0 and at most 1')
  if min_p is not None:
    _check('min_p', min_p, 0 <= min_p <= 1, 'from 0 to 1')
  is_good = 0 < repetition_penalty <= 1e3
  range_ = 'above 0 and at most 1000'
  _check('repetition_penalty', repetition_penalty, is_good, range_)
  return Filters(
    float(temperature),
    2**30 if top_k is None else min(int(top_k), 2**30),
    1.0 if top_p is None else float(top_p),
    0.0 if min_p is None else float(min_p),
    float(repetition_penalty),
  )


def _check(name, value, is_good, range_):
  if not is_good:
    raise ValueError(f'{name} must be {range_}, got {value!r}.')


def choose(log_p_BA, filters, rngs_B, position):
  """Draws a token for each sequence.

  Args:
    log_p_BA: log-probabilities up to a constant; -inf is never drawn.
    filters: Filters.
    rngs_B: a key for each sequence.
    position: [] int, folded into each key.

  Returns:
    [B] int, places on the axis A.
  """
  is_greedy = filters.temperature == 0
  log_p_BA -= jnp.max(log_p_BA, axis=-1, keepdims=True)
  log_p_BA = jax.nn.log_softmax(
    log_p_BA / jnp.where(is_greedy, 1.0, filters.temperature)
  )
  noise_BA = jax.vmap(
    lambda rng: jax.random.gumbel(
      jax.random.fold_in(rng, position), log_p_BA.shape[1:]
    )
  )(rngs_B)
  noisy_BA = log_p_BA + jnp.where(is_greedy, 0.0, noise_BA)
  noisy_BA = jnp.where(kept(log_p_BA, filters), noisy_BA, -jnp.inf)
  return jnp.argmax(noisy_BA, axis=-1)


def kept(log_p_BA, filters):
  """Which tokens top-k, top-p and min-p leave: bool [B, A], at least one."""
  order_BA = jnp.argsort(-log_p_BA, axis=-1)  # stable: equals by their id
  sorted_BA = jnp.take_along_axis(log_p_BA, order_BA, axis=-1)
  number_BA = jnp.broadcast_to(jnp.arange(log_p_BA.shape[-1]), log_p_BA.shape)
  is_kept_BA = number_BA < filters.top_k
  p_BA = jax.nn.softmax(jnp.where(is_kept_BA, sorted_BA, -jnp.inf))
  before_BA = jnp.cumsum(p_BA, axis=-1) - p_BA
  is_kept_BA &= (before_BA < filters.top_p) | (filters.top_p >= 1)
  is_kept_BA &= sorted_BA >= sorted_BA[:, :1] + jnp.log(filters.min_p)
  is_kept_BA |= number_BA == 0
  rank_BA = jnp.argsort(order_BA, axis=-1)
  return jnp.take_along_axis(is_kept_BA, rank_BA, axis=-1)


def penalised(log_p_BA, last_BW, penalty):
  """Log-probabilities with those of the last residues made smaller.

  Args:
    log_p_BA: log-probabilities; the last token is EOS, which keeps its own.
    last_BW: places on the axis A of the last residues; -1 is none.
    penalty: [] float, divides the probability once for each occurrence.

  Returns:
    [B, A]; the others rise, so that all sum to what they did.
  """
  log_p_BR, eos_B1 = log_p_BA[:, :-1], log_p_BA[:, -1:]
  mass_B1 = jax.nn.logsumexp(log_p_BR, axis=-1, keepdims=True)
  number_R = jnp.arange(log_p_BR.shape[1])
  count_BR = jnp.sum(last_BW[:, :, None] == number_R[None, None], axis=1)
  log_p_BR -= count_BR * jnp.log(penalty)
  log_p_BR = jax.nn.log_softmax(log_p_BR) + mass_B1
  return jnp.concatenate([log_p_BR, eos_B1], axis=-1)
