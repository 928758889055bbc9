"""Training batches: the one of a step, made from what a layout says.

Nothing here depends on what was made before, so any batch, and any rows of it,
can be made by any process.

Axes: B rows of a batch, L tokens of a row, R rows asked for, S pieces.
"""

from typing import NamedTuple

import numpy as np

from protein_lm import vocab
from protein_lm.layouts import NUM_ENDS, Bucketed, Pieces
from protein_lm.mixture import Interleaving

# Which tokens count as targets: residues save B X Z, and EOS; reading backward
# BOS in its place, see `_write_ends`.
COUNTED = np.zeros(vocab.SIZE, np.float32)
COUNTED[: len(vocab.RESIDUES)] = 1
COUNTED[list(vocab.UNCOUNTED_IDS)] = 0
COUNTED[vocab.EOS_ID] = 1
COUNTED.setflags(write=False)


class Batch(NamedTuple):
  """What a model trains on; all [B, L].

  Attributes:
    tokens: int32, PAD where empty.
    segment_ids: int32, 1, 2 ... for the proteins of a row, 0 where empty.
    positions: int32, from 0 in each segment.
    weights: float32, 1 where a token counts as a target (residues save B X Z,
      and the end that is read last: EOS, or BOS in a protein that is read from
      C to N), else 0. A causal model cannot predict a segment's first token,
      and `CausalObjective` leaves it out; `MaskedObjective` masks and scores
      residues of weight 1 alone, never an end.
  """

  tokens: np.ndarray
  segment_ids: np.ndarray
  positions: np.ndarray
  weights: np.ndarray


class LabelledBatch(NamedTuple):
  """A Batch with labels; see there for the others.

  Attributes:
    weights: float32, not 0 where there is a label that counts.
    labels: [B, L] float32, NaN where there is none: of a residue at it, of a
      protein at the last token of its segment. A class is its index, a number
      is standardised.
  """

  tokens: np.ndarray
  segment_ids: np.ndarray
  positions: np.ndarray
  weights: np.ndarray
  labels: np.ndarray


def empty_batch(
  num_rows: int, max_len: int, labelled: bool = False
) -> Batch | LabelledBatch:
  """A batch without proteins."""
  shape = num_rows, max_len
  batch = Batch(
    np.full(shape, vocab.PAD_ID, np.int32),
    np.zeros(shape, np.int32),
    np.zeros(shape, np.int32),
    np.zeros(shape, np.float32),
  )
  if labelled:
    return LabelledBatch(*batch, np.full(shape, np.nan, np.float32))
  return batch


class RowBatches:
  """Batches whose rows flow on from step to step, of one source or several.

  Attributes:
    num_steps: steps in which as many rows are read as an epoch of every source
      has; with weights, some sources are then read more than once.
    num_counted: tokens of these steps that a causal model is scored on.
  """

  def __init__(
    self,
    layouts,
    batch_size,
    attend_across=False,
    weights=None,
    annotations=None,
  ):
    """Plans the batches.

    Args:
      layouts: of each source, all of one kind and max_len.
      batch_size: rows of a batch.
      attend_across: makes a row one segment, whatever proteins lie in it.
      weights: share of the rows that come from each source, to any scale; by
        default its rows.
      annotations: `annotations.Annotations` of each source, or None.
    """
    self._annotations = annotations or [None] * len(layouts)
    self._layouts, self._batch_size = tuple(layouts), batch_size
    self._attend_across = attend_across
    rows = [layout.num_rows for layout in layouts]
    self._interleaving = Interleaving(weights or rows)
    self.num_steps = sum(rows) / batch_size
    self.num_counted = round(
      sum(
        share * sum(rows) * layout.num_counted / layout.num_rows
        for share, layout in zip(
          self._interleaving.shares, layouts, strict=True
        )
      )
    )

  def shape(self, seed: int, step: int) -> tuple[int, int]:
    """(rows, tokens of a row) of the batch of a step: always the same."""
    del seed, step
    return self._batch_size, self._layouts[0].max_len

  def prepare(self, seed: int) -> None:
    """Does once what takes long and depends on the seed alone."""
    for source, layout in enumerate(self._layouts):
      layout.prepare(_source_seed(seed, source))

  def make(self, seed: int, step: int, rows=slice(None)) -> Batch:
    """The batch of a step, or some of its rows: a slice, or numbers [R]."""
    numbers_R = np.arange(self._batch_size)[rows] + step * self._batch_size
    batch = empty_batch(
      len(numbers_R), self._layouts[0].max_len, _has_labels(self._annotations)
    )
    source_R, number_R = self._interleaving.locate(numbers_R)
    for source, layout in enumerate(self._layouts):
      (where,) = np.nonzero(source_R == source)
      if where.size:
        pieces = layout.pieces(_source_seed(seed, source), number_R[where])
        pieces = pieces._replace(row=where[pieces.row])
        _write_pieces(batch, layout.store, pieces, self._annotations[source])
    if self._attend_across:
      _join_segments(batch)
    return batch


class BucketBatches:
  """Batches of one bucket each, see `layouts.Bucketed`.

  Attributes:
    num_steps: of an epoch.
    num_counted: tokens of an epoch that a causal model is scored on.
  """

  def __init__(self, layout: Bucketed, annotations=None):
    self._layout, self._annotations = layout, annotations
    self.num_steps = float(layout.num_batches)
    self.num_counted = layout.num_counted

  def shape(self, seed: int, step: int) -> tuple[int, int]:
    """(rows, tokens of a row) of the batch of a step."""
    return self._layout.shape(seed, step)

  def prepare(self, seed: int) -> None:
    """Does nothing: no table depends on the seed."""

  def make(self, seed: int, step: int, rows=slice(None)) -> Batch:
    """The batch of a step, or some of its rows: a slice, or numbers [R]."""
    num_rows, length = self.shape(seed, step)
    rows_R = np.arange(num_rows)[rows]
    batch = empty_batch(len(rows_R), length, _has_labels([self._annotations]))
    pieces = self._layout.pieces(seed, step, rows_R)
    _write_pieces(batch, self._layout.store, pieces, self._annotations)
    return batch


def _source_seed(seed: int, source: int) -> int:
  """Keeps sources from moving in step; the first has the run's own seed."""
  return seed + (source << 32)


def _has_labels(annotations) -> bool:
  return any(x is not None and x.labels is not None for x in annotations)


def _write_pieces(batch: Batch, store, pieces: Pieces, annotations) -> None:
  """Writes the pieces into their rows, side by side from the left."""
  row_S, _, first_S, length_S, backward_S = pieces
  num_S = np.arange(len(row_S)) - np.searchsorted(row_S, row_S)
  before_S = np.cumsum(length_S) - length_S
  start_S = before_S - before_S[np.arange(len(row_S)) - num_S]
  proteins = store.many(pieces.protein.tolist())
  place_L = np.arange(batch.tokens.shape[1], dtype=np.int32)
  for residues, row, start, segment, first, length, backward in zip(
    proteins,
    *(x.tolist() for x in (row_S, start_S, num_S + 1)),
    *(x.tolist() for x in (first_S, length_S, backward_S)),
    strict=True,
  ):
    where = slice(start, start + length)
    batch.segment_ids[row, where] = segment
    batch.positions[row, where] = place_L[:length]
    # Token 0 is an end, so residue i is token i + 1.
    begin, end = max(first - 1, 0), min(first + length - 1, len(residues))
    start += begin + 1 - first
    batch.tokens[row, start : start + end - begin] = (
      residues[::-1] if backward else residues
    )[begin:end]
  num_tokens_S = np.array([len(x) + NUM_ENDS for x in proteins], np.int64)
  _write_ends(batch, pieces, start_S, num_tokens_S)
  if annotations is not None:
    annotations.write(batch, pieces, start_S)


def _write_ends(batch: Batch, pieces: Pieces, start_S, num_tokens_S) -> None:
  """Writes BOS and EOS where a piece has them, and all weights."""
  row_S, _, first_S, length_S, backward_S = pieces
  ends = (vocab.BOS_ID, vocab.EOS_ID)
  head = first_S == 0
  head_place = row_S[head], start_S[head]
  batch.tokens[head_place] = np.take(ends, backward_S[head])
  tail = first_S + length_S == num_tokens_S
  tail_place = row_S[tail], (start_S + length_S - 1)[tail]
  batch.tokens[tail_place] = np.take(ends, ~backward_S[tail])
  rows = np.unique(row_S)
  batch.weights[rows] = COUNTED[batch.tokens[rows]]
  batch.weights[head_place] = 0
  batch.weights[tail_place] = 1


def _join_segments(batch: Batch) -> None:
  """Makes what lies in a row one segment."""
  np.minimum(batch.segment_ids, 1, out=batch.segment_ids)
  place_L = np.arange(batch.tokens.shape[1], dtype=np.int32)
  np.multiply(batch.segment_ids, place_L, out=batch.positions)
