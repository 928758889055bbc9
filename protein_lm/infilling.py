"""Fills the gaps of a protein with a masked model.

All gaps are MASK at first. In each pass the model reads the whole protein, and
each sample fills the one gap whose most probable residue is most probable; so
later gaps know of earlier ones. Gibbs sweeps may follow: every gap in turn,
from left to right, is masked and drawn again given all others.

Axes: B batch, L length, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from protein_lm import loading, sampling_filters, vocab
from protein_lm import samples as samples_lib
from protein_lm import train_step as steps
from protein_lm.samples import Sample

GAP = '_'
_NUM_RESIDUES = len(vocab.STANDARD_RESIDUES)
_LENGTH_MULTIPLE = 64  # tokens; lengths in between share a compiled program


def infill(
  loaded,
  sequence: str,
  num_samples: int = 1,
  *,
  num_sweeps: int = 0,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  min_p: float | None = None,
  seed: int = 0,
  first: int = 0,
  batch_size: int = 8,
  after_pass=lambda num_residues: None,
) -> list[Sample]:
  """Fills the gaps of a protein with standard amino acids.

  A pass takes the time of reading a batch of this length; there are as many as
  gaps, times 1 + num_sweeps.

  Args:
    loaded: LoadedModel of a FlaxBERT.
    sequence: a whole protein, `_` for each residue to be filled in.
    num_samples: how many.
    num_sweeps: Gibbs sweeps after the first filling.
    temperature: see sampling_filters.py.
    top_k: the number of most probable residues that are drawn from, or None.
    top_p: the share of probability that is drawn from, or None.
    min_p: the least probability in units of the largest, or None.
    seed: from 0 to 2**32 - 1; with the number of a sample it says all that is
      random.
    first: number of the first sample.
    batch_size: samples filled together, which all have the same shape.
    after_pass: called with the number of residues drawn: 0 before the first.

  Returns:
    Samples first to first + num_samples - 1. Their token_log_probs are of the
    residues in the gaps, in order, each when it was drawn last, over the whole
    vocabulary at temperature 1.

  Raises:
    ValueError: an argument is out of range, the sequence has no gap or another
      letter, or the model is not masked.
    FloatingPointError: the model gives no finite logits.

  Example:
    infilling.infill(protein_lm.load('runs/masked'), 'MK____LLVA', 4)
  """
  loaded = loading.calibrated(loaded)
  model = loaded.model
  if model.objective != 'masked':
    raise ValueError(
      f'{type(model).__name__} fills no gaps: that takes a FlaxBERT. A FlaxLM '
      'writes from left to right, --prompt=MK or sample().'
    )
  samples_lib.check_numbers(num_samples, batch_size, seed, first)
  filters = sampling_filters.make_filters(temperature, top_k, top_p, min_p)
  if num_sweeps < 0:
    raise ValueError(f'num_sweeps must be at least 0, got {num_sweeps}.')
  masked_L, gaps = _read(model, sequence)
  passes = [gaps] * len(gaps) + num_sweeps * np.split(gaps, len(gaps))
  samples, after = [], first + num_samples
  is_compiled = False
  for start in range(first - first % batch_size, after, batch_size):
    numbers_B = np.arange(start, start + batch_size)
    is_wanted_B = (numbers_B >= first) & (numbers_B < after)
    tokens_BL = jnp.tile(jnp.asarray(masked_L), (batch_size, 1))
    log_p_BL = jnp.zeros(tokens_BL.shape, jnp.float32)
    rngs_B = samples_lib.draw_rngs(seed, numbers_B)
    for number, candidates in enumerate(passes):
      is_candidate_L = np.zeros(len(masked_L), bool)
      is_candidate_L[candidates] = True
      arguments = (loaded.graphdef, loaded.weights, filters, rngs_B, number)
      arguments += (is_candidate_L, number >= len(gaps), tokens_BL, log_p_BL)
      if not is_compiled:
        _fill.lower(*arguments).compile()
        after_pass(0)
        is_compiled = True
      tokens_BL, log_p_BL = _fill(*arguments)
      if not jnp.isfinite(log_p_BL).all():
        raise FloatingPointError(samples_lib.NO_FINITE_LOGITS)
      after_pass(int(is_wanted_B.sum()))
    rows = zip(np.asarray(tokens_BL), np.asarray(log_p_BL), strict=True)
    samples += [
      Sample(
        index=start + b,
        sequence=vocab.decode(tokens_L[1 : len(sequence) + 1]),
        token_log_probs=log_p_L[gaps],
        finished=True,
        drawn=vocab.decode(tokens_L[gaps]),
      )
      for b, (tokens_L, log_p_L) in enumerate(rows)
      if is_wanted_B[b]
    ]
  return samples


def _read(model, sequence):
  """Padded tokens [L] and the places of the gaps."""
  letters = sequence.upper()
  gaps = 1 + np.flatnonzero([letter == GAP for letter in letters])
  if not len(gaps):
    raise ValueError(
      f'the sequence has no gap: write {GAP} for each residue to be filled in, '
      f'such as MK{GAP * 4}LLVA.'
    )
  ids = vocab.encode(letters.replace(GAP, 'X'))
  num_tokens = len(ids) + 2
  padded = -(-num_tokens // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
  if model.position_embedding == 'learned':
    if num_tokens > model.max_len:
      raise ValueError(
        f'the sequence has {len(ids)} residues and two ends, beyond the '
        f'{model.max_len} learned positions of this model: fill in a part of '
        "it, or train with position_embedding = 'rotary'."
      )
    padded = min(padded, model.max_len)
  tokens_L = np.full(padded, vocab.PAD_ID, np.int32)
  tokens_L[:num_tokens] = [vocab.BOS_ID, *ids, vocab.EOS_ID]
  tokens_L[gaps] = vocab.MASK_ID
  return tokens_L, gaps


@functools.partial(jax.jit, static_argnums=0)
def _fill(
  graphdef,
  weights,
  filters,
  rngs_B,
  number,
  is_candidate_L,
  is_sweep,
  tokens_BL,
  log_p_BL,
):
  """Each row draws one residue: where it is most certain, or, in a sweep, at
  the one candidate, which is masked first."""
  model = steps.merge_model(graphdef, weights)
  is_candidate_BL = jnp.broadcast_to(is_candidate_L, tokens_BL.shape)
  tokens_BL = jnp.where(is_candidate_BL & is_sweep, vocab.MASK_ID, tokens_BL)
  is_open_BL = is_candidate_BL & (tokens_BL == vocab.MASK_ID)
  log_p_BLV = jax.nn.log_softmax(model(tokens_BL))
  certainty_BL = jnp.max(log_p_BLV[..., :_NUM_RESIDUES], axis=-1)
  place_B = jnp.argmax(jnp.where(is_open_BL, certainty_BL, -jnp.inf), axis=1)
  row_B = jnp.arange(len(tokens_BL))
  log_p_BA = log_p_BLV[row_B, place_B, :_NUM_RESIDUES]
  token_B = sampling_filters.choose(log_p_BA, filters, rngs_B, number)
  drawn_B = jnp.take_along_axis(log_p_BA, token_B[:, None], axis=1)[:, 0]
  return (
    tokens_BL.at[row_B, place_B].set(token_B.astype(tokens_BL.dtype)),
    log_p_BL.at[row_B, place_B].set(drawn_B),
  )
