"""Draws proteins from a causal model, token by token.

The 20 standard amino acids and EOS, which ends a protein, are drawn, and no
other token. Sequence i of a seed is a function of the model, the settings, seed
and i: its randomness is fold_in(fold_in(key(seed), i), position), and every
batch has the same shape, so it is the same alone and among others.

Axes: B batch, L tokens of the prompt, T tokens drawn.
"""

from collections.abc import Callable

import numpy as np

from protein_lm import decoding, draw_loop, loading, sampling_filters, vocab
from protein_lm import samples as samples_lib
from protein_lm.infilling import infill
from protein_lm.samples import Sample

__all__ = ['Sample', 'infill', 'sample']

_MAX_LEN = 2**20


def sample(
  loaded,
  num_samples: int = 1,
  *,
  prompt: str = '',
  max_len: int | None = None,
  min_len: int = 1,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  min_p: float | None = None,
  repetition_penalty: float = 1.0,
  seed: int = 0,
  first: int = 0,
  batch_size: int = 64,
  after_chunk: Callable[[int], None] = lambda num_tokens: None,
) -> list[Sample]:
  """Draws proteins from a FlaxLM.

  Fast attention takes the same time and memory for every token; exact
  attention reads the whole past, from a cache of max_len tokens.

  Args:
    loaded: LoadedModel of a FlaxLM.
    num_samples: how many.
    prompt: the residues that all of them begin with.
    max_len: residues of a sequence, prompt included, at which it is cut;
      default as many as a row of training has tokens.
    min_len: residues before which none ends, prompt included.
    temperature: see sampling_filters.py, which says in which order these act.
    top_k: the number of most probable tokens that are drawn from, or None.
    top_p: the share of probability that is drawn from, or None.
    min_p: the least probability in units of the largest, or None.
    repetition_penalty: 1 is none.
    seed: from 0 to 2**32 - 1.
    first: number of the first sequence.
    batch_size: sequences decoded together. Another one gives the same
      sequences up to rounding, which can tip a draw.
    after_chunk: called with the number of tokens drawn: 0 at first, when all
      is compiled, then after every 64 tokens of a batch.

  Returns:
    Samples first to first + num_samples - 1.

  Raises:
    ValueError: an argument is out of range, or the model cannot sample.
    FloatingPointError: the model gives no finite logits.

  Example:
    for sample in sampling.sample(protein_lm.load('runs/quickstart'), 4):
      print(sample.sequence, sample.per_residue)
  """
  loaded = loading.calibrated(loaded)
  model = loaded.model
  decoding.check(model)
  prompt, max_len = _check_lengths(loaded, prompt, min_len, max_len)
  samples_lib.check_numbers(num_samples, batch_size, seed, first)
  filters = sampling_filters.make_filters(
    temperature, top_k, top_p, min_p, repetition_penalty
  )
  prompt_L = np.concatenate([[vocab.BOS_ID], vocab.encode(prompt)])
  weights = loaded.weights
  run = draw_loop.Run(
    loaded.graphdef,
    weights,
    decoding.split_layers(loaded.graphdef, weights),
    filters,
    min_len,
    max_len,
  )
  samples, after = [], first + num_samples
  # Batches begin at multiples of their size: a sequence keeps its row.
  for start in range(first - first % batch_size, after, batch_size):
    numbers_B = np.arange(start, start + batch_size)
    is_wanted_B = (numbers_B >= first) & (numbers_B < after)
    states = decoding.start(model, *run[:3], prompt_L, batch_size, max_len)
    tokens_BT, log_p_BT = draw_loop.draw_batch(
      run,
      prompt_L,
      states,
      samples_lib.draw_rngs(seed, numbers_B),
      is_wanted_B,
      after_chunk,
    )
    samples += [
      _make_sample(int(numbers_B[b]), prompt, tokens_BT[b], log_p_BT[b])
      for b in np.flatnonzero(is_wanted_B)
    ]
  return samples


def _check_lengths(loaded, prompt, min_len, max_len):
  """The prompt in upper case and the greatest length."""
  prompt = prompt.upper()
  vocab.encode(prompt)  # names a letter that is none
  model, given = loaded.model, max_len
  if max_len is None:
    max_len = loaded.data_arguments.get('max_len', 512)
    if model.position_embedding == 'learned':
      max_len = min(max_len, model.max_len)
  if not 1 <= max_len <= _MAX_LEN:
    raise ValueError(f'max_len must be from 1 to {_MAX_LEN}, got {max_len}.')
  if model.position_embedding == 'learned' and max_len > model.max_len:
    raise ValueError(
      f'max_len={max_len} is beyond the {model.max_len} learned positions of '
      'this model: choose no more, or train with position_embedding = '
      "'rotary'."
    )
  if len(prompt) >= max_len:
    raise ValueError(
      f'the prompt has {len(prompt)} residues, which leaves nothing to draw '
      f'with max_len={max_len}{" (the default)" * (given is None)}; raise '
      'max_len.'
    )
  if not 0 <= min_len <= max_len:
    raise ValueError(
      f'min_len must be from 0 to max_len={max_len}, got {min_len}.'
    )
  return prompt, max_len


def _make_sample(number, prompt, tokens_T, log_p_T):
  num_tokens = int((tokens_T != vocab.PAD_ID).sum())
  is_finished = bool(tokens_T[num_tokens - 1] == vocab.EOS_ID)
  drawn = vocab.decode(tokens_T[: num_tokens - is_finished])
  return Sample(
    index=number,
    sequence=prompt + drawn,
    token_log_probs=log_p_T[:num_tokens],
    finished=is_finished,
    drawn=drawn,
  )
