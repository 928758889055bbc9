"""Evaluation batches: every token of a split scored exactly once.

Axes: B rows of a batch, L tokens of a row, P proteins, T all tokens, W windows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protein_lm import packing
from protein_lm.batches import COUNTED, Batch, empty_batch
from protein_lm.proteins import Proteins, with_ends


class EvalBatch(NamedTuple):
  """A batch that knows where its tokens come from.

  Attributes:
    batch: its weights are 1 only on tokens to be scored here.
    protein_BL: int32, index into Proteins, -1 where empty.
    residue_BL: int32, index of the residue in its protein; the protein's
      length for EOS, -1 for BOS and where empty.
  """

  batch: Batch
  protein_BL: np.ndarray
  residue_BL: np.ndarray


class EvalBatches(Sequence):
  """All tokens of a split, each to be scored once, in batches of one shape.

  A protein longer than max_len is read in windows that start every max_len / 2
  tokens; each scores only what the ones before it did not. All are read from N
  to C.
  """

  def __init__(self, proteins: Proteins, batch_size: int, max_len: int):
    self._batch_size, self._max_len = batch_size, max_len
    self._tokens_T, self._starts = with_ends(proteins)
    lengths_P = np.diff(self._starts)
    stride = max_len // 2
    windows_P = 1 + -(-np.maximum(lengths_P - max_len, 0) // stride)
    self._protein_W = np.repeat(np.arange(len(proteins)), windows_P)
    number_W = np.arange(len(self._protein_W)) - np.repeat(
      np.cumsum(windows_P) - windows_P, windows_P
    )
    self._first_W = number_W * stride
    self._length_W = np.minimum(
      lengths_P[self._protein_W] - self._first_W, max_len
    )
    # Tokens at the start of a window that the one before it has scored.
    self._seen_W = np.where(number_W > 0, max_len - stride, 0)
    self._by_rank = np.argsort(self._length_W, kind='stable')
    self._plan = packing.plan_rows(self._length_W, max_len)

  @property
  def num_tokens(self) -> int:
    """All tokens of all windows, also those that others score."""
    return int(self._length_W.sum())

  def __len__(self) -> int:
    return -(-self._plan.num_rows // self._batch_size)

  def __getitem__(self, index):
    index = range(len(self))[index]
    if isinstance(index, range):  # of a slice
      return [self[i] for i in index]
    batch = empty_batch(self._batch_size, self._max_len)
    protein_BL = np.full(batch.tokens.shape, -1, np.int32)
    residue_BL = np.full(batch.tokens.shape, -1, np.int32)
    first_row = index * self._batch_size
    last_row = min(first_row + self._batch_size, self._plan.num_rows)
    rows, ranks = self._plan.places(np.arange(first_row, last_row))
    start, segment, row = 0, 0, -1
    for b, window in zip(rows.tolist(), self._by_rank[ranks], strict=True):
      if b != row:
        start, segment, row = 0, 0, b
      segment += 1
      protein, first = self._protein_W[window], self._first_W[window]
      end = start + self._length_W[window]
      where = slice(start, end)
      token = np.arange(first, first + end - start)
      batch.tokens[b, where] = self._tokens_T[self._starts[protein] + token]
      batch.segment_ids[b, where] = segment
      batch.positions[b, where] = token - first
      batch.weights[b, start + self._seen_W[window] : end] = 1
      protein_BL[b, where] = protein
      residue_BL[b, where] = token - 1
      start = end
    np.multiply(batch.weights, COUNTED[batch.tokens], out=batch.weights)
    return EvalBatch(batch, protein_BL, residue_BL)
