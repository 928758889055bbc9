"""The loop that draws tokens from a causal model, on the device.

The host looks in after every 64 tokens. Axes: B batch, T tokens drawn, V
vocabulary, A tokens that may be drawn, W last residues.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protein_lm import decoding, samples, sampling_filters, vocab
from protein_lm import train_step as steps

# Ids that may be drawn, EOS last.
_DRAWN_IDS = (*range(len(vocab.STANDARD_RESIDUES)), vocab.EOS_ID)
_CHUNK = 64  # tokens of each sequence between two visits of the host


class Run(NamedTuple):
  """What all batches of a call share."""

  graphdef: Any
  weights: Any
  layers: Any
  filters: sampling_filters.Filters
  min_len: int
  max_len: int


class _Progress(NamedTuple):
  """Where a batch stands.

  token_B: the last token of each, not read yet.
  position: tokens read.
  last_BW: the last residues, -1 for none.
  is_done_B: whether a sequence has ended, or is not wanted.
  is_finite: whether all logits were.
  states: of all layers.
  """

  token_B: jax.Array
  position: jax.Array
  last_BW: jax.Array
  is_done_B: jax.Array
  is_finite: jax.Array
  states: Any


def draw_batch(run, prompt_L, states, rngs_B, is_wanted_B, after_chunk):
  """Draws all tokens of a batch.

  Args:
    run: Run.
    prompt_L: numpy ints, BOS first; the same for all sequences.
    states: of decoding.start, after all of the prompt but its last token.
    rngs_B: a key for each sequence.
    is_wanted_B: numpy bool; the others are not drawn.
    after_chunk: called with the number of tokens drawn, 0 at first.

  Returns:
    Tokens [B, T], PAD after the end, and their log-probabilities.

  Raises:
    FloatingPointError: the model gives no finite logits.
  """
  batch_size = len(is_wanted_B)
  window = sampling_filters.WINDOW
  last_W = np.full(window, -1)
  last_W[window - min(window, len(prompt_L) - 1) :] = prompt_L[1:][-window:]
  progress = _Progress(
    token_B=jnp.full(batch_size, prompt_L[-1], jnp.int32),
    position=jnp.int32(len(prompt_L) - 1),
    last_BW=jnp.tile(jnp.asarray(last_W, jnp.int32), (batch_size, 1)),
    is_done_B=jnp.asarray(~is_wanted_B),
    is_finite=jnp.bool_(True),
    states=states,
  )
  arguments = (*run[:4], jnp.int32(run.min_len), rngs_B)
  # Up to where it stands already: compiled, and nothing drawn.
  progress, _, _ = _draw_chunk(*arguments, progress.position + 0, progress)
  after_chunk(0)
  chunks = []
  while True:
    progress, tokens_BT, log_p_BT = _draw_chunk(
      *arguments, jnp.int32(run.max_len), progress
    )
    chunks.append((np.asarray(tokens_BT), np.asarray(log_p_BT)))
    if not progress.is_finite:
      raise FloatingPointError(samples.NO_FINITE_LOGITS)
    after_chunk(int((chunks[-1][0] != vocab.PAD_ID).sum()))
    if progress.is_done_B.all() or progress.position >= run.max_len:
      return [np.concatenate(x, axis=1) for x in zip(*chunks, strict=True)]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=7)
def _draw_chunk(
  graphdef, weights, layers, filters, min_len, rngs_B, end, progress
):
  """Draws tokens until the chunk is full, all have ended or `end` is reached.

  Returns:
    (_Progress, tokens [B, T], PAD where none was drawn, their
    log-probabilities [B, T]).
  """
  model = steps.merge_model(graphdef, weights)
  drawn_A = jnp.asarray(_DRAWN_IDS, jnp.int32)
  batch_size = len(progress.token_B)

  def goes_on(carry):
    t, progress, _, _ = carry
    is_open = (t < _CHUNK) & (progress.position < end)
    return is_open & ~jnp.all(progress.is_done_B)

  def draw(carry):
    t, progress, tokens_TB, log_p_TB = carry
    logits_BV, states = decoding.step(
      model, layers, progress.token_B, progress.position, progress.states
    )
    log_p_BV = jax.nn.log_softmax(logits_BV)
    log_p_BA = log_p_BV[:, drawn_A]
    may_end = progress.position >= min_len
    open_BA = log_p_BA.at[:, -1].set(
      jnp.where(may_end, log_p_BA[:, -1], -jnp.inf)
    )
    open_BA = sampling_filters.penalised(
      open_BA, progress.last_BW, filters.repetition_penalty
    )
    choice_B = sampling_filters.choose(
      open_BA, filters, rngs_B, progress.position
    )
    is_done_B = progress.is_done_B
    token_B = jnp.where(is_done_B, vocab.PAD_ID, drawn_A[choice_B])
    log_p_B = jnp.take_along_axis(log_p_BA, choice_B[:, None], axis=1)[:, 0]
    last_BW = jnp.concatenate(
      [progress.last_BW[:, 1:], token_B[:, None]], axis=1
    )
    is_finite_B = jnp.all(jnp.isfinite(log_p_BA), axis=1) | is_done_B
    progress = _Progress(
      token_B=token_B,
      position=progress.position + 1,
      last_BW=last_BW,
      is_done_B=is_done_B | (token_B == vocab.EOS_ID),
      is_finite=progress.is_finite & jnp.all(is_finite_B),
      states=states,
    )
    return (
      t + 1,
      progress,
      tokens_TB.at[t].set(token_B),
      log_p_TB.at[t].set(log_p_B),
    )

  tokens_TB = jnp.full((_CHUNK, batch_size), vocab.PAD_ID, jnp.int32)
  log_p_TB = jnp.zeros((_CHUNK, batch_size), jnp.float32)
  _, progress, tokens_TB, log_p_TB = jax.lax.while_loop(
    goes_on, draw, (0, progress, tokens_TB, log_p_TB)
  )
  return progress, tokens_TB.T, log_p_TB.T
