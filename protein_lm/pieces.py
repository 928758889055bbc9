"""Proteins cut into pieces, and pieces packed into the rows of batches.

A protein is one piece, unless it is longer than max_len tokens: then it is read
in windows that start every max_len / 2 tokens, and each residue is taken from
one of them. The plan follows from the lengths alone.

Axes: B rows of a batch, L tokens of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protein_lm import packing, vocab


class Piece(NamedTuple):
  """A window of a protein.

  Attributes:
    protein: its number.
    first: the first token, counted from the protein's BOS.
    length: tokens.
    start: tokens of the piece before the residues that are taken from it.
    stop: tokens of the piece up to their end.
  """

  protein: int
  first: int
  length: int
  start: int
  stop: int

  @property
  def num_residues(self) -> int:
    """Residues that are taken from this piece."""
    return self.stop - self.start


class Place(NamedTuple):
  """Where a piece stands in a batch."""

  piece: Piece
  row: int
  column: int


class PlannedBatch(NamedTuple):
  """A batch before its tokens are known.

  Attributes:
    shape: (rows, tokens of a row).
    places: of its pieces, row by row.
  """

  shape: tuple[int, int]
  places: list[Place]

  def fill(self, sequences: Sequence[np.ndarray]):
    """Tokens and segment ids.

    Args:
      sequences: residues of each protein, [L] uint8.

    Returns:
      tokens_BL, segment_ids_BL, int32; 0 is padding's segment.
    """
    tokens_BL = np.full(self.shape, vocab.PAD_ID, np.int32)
    segment_ids_BL = np.zeros(self.shape, np.int32)
    for number, (piece, row, column) in enumerate(self.places, 1):
      where = slice(column, column + piece.length)
      residues = sequences[piece.protein]
      # Tokens first .. first + length of BOS, residues, EOS.
      tokens = residues[max(piece.first - 1, 0) : piece.first + piece.length]
      tokens = tokens[: piece.length - (piece.first == 0)]
      tokens = [vocab.BOS_ID] * (piece.first == 0) + tokens.tolist()
      tokens += [vocab.EOS_ID] * (piece.length - len(tokens))
      tokens_BL[row, where] = tokens
      segment_ids_BL[row, where] = number
    return tokens_BL, segment_ids_BL


def cut(protein: int, num_residues: int, max_len: int, is_causal: bool):
  """The pieces of a protein; each residue is taken from one.

  Args:
    protein: its number.
    num_residues: of the protein.
    max_len: tokens of a window, BOS and EOS among them.
    is_causal: a causal model sees what is on the left, so a residue is taken
      from the first window that holds it; of another model from the one in
      which it is farther from a cut.

  Example:
    >>> [(x.first, x.start, x.stop) for x in cut(0, 18, 16, True)]
    [(0, 1, 16), (8, 8, 11)]
  """
  num_tokens = num_residues + 2
  stride = max_len // 2
  overlap = max_len - stride
  num_windows = 1 + -(-max(num_tokens - max_len, 0) // stride)
  firsts = [number * stride for number in range(num_windows)]
  taken = overlap if is_causal else overlap // 2
  starts = [1, *(first + taken for first in firsts[1:])]
  stops = [*starts[1:], num_tokens - 1]
  return [
    Piece(
      protein,
      first,
      min(num_tokens - first, max_len),
      start - first,
      stop - first,
    )
    for first, start, stop in zip(firsts, starts, stops, strict=True)
    if stop > start  # the last window may add no more than EOS
  ]


def plan(
  lengths: Sequence[int],
  *,
  max_len: int,
  row_len: int,
  batch_size: int,
  is_causal: bool,
) -> list[PlannedBatch]:
  """Packs proteins into batches of few shapes.

  Rows are row_len tokens long, or for longer pieces 1.5, 2, 3, 4, 6, 8 ...
  times that; longer rows are fewer, so that all batches hold as many tokens.
  Where one batch holds all of a length, it has 1, 2, 4 ... rows.

  Args:
    lengths: residues of each protein.
    max_len: longer proteins are cut, tokens.
    row_len: tokens of a row.
    batch_size: rows of row_len tokens in a batch.
    is_causal: as of `cut`.

  Returns:
    The batches; their pieces are those of all proteins.
  """
  row_len = min(row_len, max_len)
  by_row_len = {}
  for protein, length in enumerate(lengths):
    for piece in cut(protein, length, max_len, is_causal):
      its_row_len = min(_row_len(piece.length, row_len), max_len)
      by_row_len.setdefault(its_row_len, []).append(piece)
  return [
    batch
    for its_row_len, pieces in sorted(by_row_len.items())
    for batch in _pack(
      pieces, its_row_len, max(batch_size * row_len // its_row_len, 1)
    )
  ]


def _row_len(length, row_len):
  """The least of row_len x (1, 1.5, 2, 3, 4, 6 ...) that holds a piece."""
  while row_len < length:
    if row_len * 3 // 2 >= length:
      return row_len * 3 // 2
    row_len *= 2
  return row_len


def _pack(pieces, row_len, num_rows):
  """Batches of pieces in rows of one length."""
  lengths = np.array([piece.length for piece in pieces])
  by_rank = np.argsort(lengths, kind='stable')
  packed = packing.plan_rows(lengths, row_len)
  # A shape more takes longer to compile than rows of padding to compute.
  num_rows = min(num_rows, 1 << (packed.num_rows - 1).bit_length())
  for first in range(0, packed.num_rows, num_rows):
    last = min(first + num_rows, packed.num_rows)
    rows, ranks = packed.places(np.arange(first, last))
    places, columns = [], [0] * (last - first)
    for row, number in zip(rows.tolist(), by_rank[ranks].tolist(), strict=True):
      places.append(Place(pieces[number], row, columns[row]))
      columns[row] += pieces[number].length
    yield PlannedBatch((num_rows, row_len), places)
