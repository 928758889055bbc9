"""What a model says of single places of proteins: batched passes.

A protein of more than `max_len` tokens (its residues, BOS and EOS) is read
through windows of so many tokens. A place is read in the window around it, or
by a causal model, in the one with most before it.

Axes: B batch, L tokens of a row, D model width, V vocabulary,
P residues, T tokens of a protein.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protein_lm import train_step as steps
from protein_lm import vocab
from protein_lm.layouts import NUM_ENDS

# Rows are padded to a multiple of it. Of 154 tokens, 160 take 2.7 s where 192
# take 3.8 s and 256 take 5.5 s (150 sequences, 4 layers, 2 busy cores).
ROW_MULTIPLE = 32


class Place(NamedTuple):
  """A residue of a protein, counted from 0."""

  sequence: str
  residue: int

  def masked_window(self, max_len: int) -> tuple[np.ndarray, int]:
    """The tokens around it, [<= max_len], it shown as MASK; its index there."""
    tokens_T = with_ends(self.sequence)
    token = self.residue + 1
    tokens_T[token] = vocab.MASK_ID
    last = max(0, len(tokens_T) - max_len)
    first = min(max(token - max_len // 2, 0), last)
    return tokens_T[first : first + max_len], token - first


class Shape(NamedTuple):
  """The limits of a pass.

  Attributes:
    max_len: tokens of a window.
    num_tokens: of a batch, about.
    num_rows: of a batch; None to follow num_tokens.
  """

  max_len: int
  num_tokens: int
  num_rows: int | None = None

  def row_len(self, num_tokens: int) -> int:
    """Tokens of the rows that hold so many: few lengths are compiled."""
    padded = -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE
    return min(padded, max(self.max_len, num_tokens))

  def rows(self, row_len: int, num_items: int) -> int:
    """Rows of a batch of so many items."""
    rows = self.num_rows or max(1, self.num_tokens // row_len)
    # Rounded, so that few numbers of rows are compiled.
    return min(rows, 1 << max(0, num_items - 1).bit_length())


def whole_row_len(model, num_tokens: int) -> int:
  """Tokens of a row that holds a whole protein, whatever max_len is."""
  limit = num_tokens
  if model.position_embedding == 'learned':
    limit = max(limit, model.max_len)
  else:
    limit += ROW_MULTIPLE
  return Shape(limit, limit).row_len(num_tokens)


def with_ends(sequence: str) -> np.ndarray:
  """The tokens of a protein: BOS, residues, EOS, [T] uint8."""
  ends = np.array([[vocab.BOS_ID], [vocab.EOS_ID]], np.uint8)
  return np.concatenate([ends[0], vocab.encode(sequence), ends[1]])


def log_probs_of_places(
  loaded,
  places: Sequence[Place],
  shape: Shape,
  progress: Callable[[Sequence], Iterable] = iter,
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
  """What a masked model says of residues, each masked in a pass of its own.

  Args:
    loaded: a LoadedModel that needs no calibration.
    places: of one or many proteins.
    shape: limits of a pass.
    progress: is given the list of batches and iterates over it.

  Yields:
    (numbers of some places, their log-probabilities of all tokens, [., V]
    float32, in nats).
  """
  by_length = {}
  for number, place in enumerate(places):
    length = min(len(place.sequence) + NUM_ENDS, shape.max_len)
    by_length.setdefault(shape.row_len(length), []).append(number)
  batches = [
    (row_len, shape.rows(row_len, len(members)), numbers)
    for row_len, members in sorted(by_length.items())
    for numbers in batched(members, shape.rows(row_len, len(members)))
  ]
  for row_len, rows, numbers in progress(batches):
    windows = [places[n].masked_window(shape.max_len) for n in numbers]
    tokens_BL = pad_rows([tokens for tokens, _ in windows], rows, row_len)
    index_B = np.zeros(rows, np.int32)
    index_B[: len(numbers)] = [index for _, index in windows]
    log_probs_BV = _at(loaded.graphdef, loaded.weights, tokens_BL, index_B)
    yield numbers, np.asarray(log_probs_BV)[: len(numbers)]


def log_probs_of_residues(loaded, sequence: str, shape: Shape) -> np.ndarray:
  """Log-probabilities of all tokens at each residue, from unmasked passes.

  A causal model's are from what stands on the left alone; a masked model sees
  the residue itself.

  Returns:
    [residues, V] float32, nats.
  """
  causal = loaded.model.causal
  tokens_T = with_ends(sequence)
  width = min(len(tokens_T), shape.max_len)
  stride = max(1, shape.max_len // 2)
  last = len(tokens_T) - width
  firsts = [*range(0, last, stride), last]
  row_len = shape.row_len(width)
  rows = shape.rows(row_len, len(firsts))
  found = np.zeros((len(firsts), width, loaded.model.vocab_size), np.float32)
  for numbers in batched(range(len(firsts)), rows):
    windows = [tokens_T[firsts[n] : firsts[n] + width] for n in numbers]
    tokens_BL = pad_rows(windows, rows, row_len)
    log_probs_BLV = _everywhere(loaded.graphdef, loaded.weights, tokens_BL)
    found[list(numbers)] = np.asarray(log_probs_BLV)[: len(numbers), :width]
  token_P = np.arange(1, len(tokens_T) - 1)
  firsts = np.array(firsts)
  if causal:  # the first window that reaches it
    window_P = np.searchsorted(firsts + width, token_P, side='right')
  else:
    middle_W = firsts + (width - 1) / 2
    window_P = np.abs(token_P[:, None] - middle_W).argmin(axis=1)
  # A causal model's output at a token speaks of the next one.
  return found[window_P, token_P - firsts[window_P] - int(causal)]


def batched(items, size: int):
  """Tuples of `size` items, the last one of what is left."""
  items = iter(items)
  while batch := tuple(itertools.islice(items, size)):
    yield batch


def pad_rows(rows, num_rows: int, row_len: int) -> np.ndarray:
  """[num_rows, row_len] int32, PAD where nothing is."""
  tokens_BL = np.full((num_rows, row_len), vocab.PAD_ID, np.int32)
  for b, tokens in enumerate(rows):
    tokens_BL[b, : len(tokens)] = tokens
  return tokens_BL


@functools.partial(jax.jit, static_argnums=0)
def _at(graphdef, weights, tokens_BL, index_B):
  model = steps.merge_model(graphdef, weights)
  x_BLD = model.hidden(tokens_BL)
  x_B1D = jnp.take_along_axis(x_BLD, index_B[:, None, None], axis=1)
  return jax.nn.log_softmax(model.logits(x_B1D)[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def _everywhere(graphdef, weights, tokens_BL):
  model = steps.merge_model(graphdef, weights)
  return jax.nn.log_softmax(model(tokens_BL))
