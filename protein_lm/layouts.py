"""Layouts: which parts of which proteins lie in a row, in closed form.

Each layout goes through its proteins in epochs, in an order that is drawn anew
in each, and knows any row at once from the seed and the row's number. Nothing
it keeps is as large as the collection, save for `Concatenated`, which keeps a
sum of lengths a protein.

The tokens of a protein are BOS, its residues, EOS; read backward, from C to
N, they are EOS, the residues from the last to the first, BOS.

Axes: P proteins, R rows asked for, S pieces of these rows.
"""

from typing import NamedTuple

import numpy as np

from protein_lm import packing
from protein_lm.permutation import draw, permute

NUM_ENDS = 2  # BOS and EOS
_CHUNK = 1 << 20  # proteins at once, where all are gone through

# What random numbers are for; the last part of a key.
_ROWS, _PROTEINS, _CROPS, _DIRECTIONS, _OFFSETS = range(5)


class Pieces(NamedTuple):
  """Runs of tokens of proteins, in the order in which they lie in rows.

  Attributes:
    row: [S] index into the rows asked for, ascending.
    protein: [S] number in the store.
    first: [S] first token, in reading order; 0 is BOS, backward EOS.
    length: [S] tokens.
    backward: [S] bool, read from C to N.
  """

  row: np.ndarray
  protein: np.ndarray
  first: np.ndarray
  length: np.ndarray
  backward: np.ndarray


class _Layout:
  """What all layouts share; see `Pieces` for what `pieces` returns."""

  def __init__(self, store, max_len: int, both_directions: bool = False):
    """Plans the rows.

    Args:
      store: `proteins.MemoryStore` or the like, of one protein at least.
      max_len: tokens of a row.
      both_directions: reads each protein backward with probability 1/2, drawn
        anew in each epoch.
    """
    self.store, self.max_len = store, max_len
    self._both = both_directions

  def prepare(self, seed: int) -> None:
    """Does once what takes long and depends on the seed alone."""

  def _tokens(self, protein_S) -> np.ndarray:
    return self.store.lengths[protein_S].astype(np.int64) + NUM_ENDS

  def _backward(self, seed, epoch_S, protein_S) -> np.ndarray:
    if not self._both:
      return np.zeros(len(protein_S), bool)
    return draw(seed, epoch_S, _DIRECTIONS, protein_S) % np.uint64(2) > 0

  def _windows(self, seed, epoch_S, row_S, protein_S) -> Pieces:
    """Whole proteins, and windows of those that are longer than a row."""
    tokens_S = self._tokens(protein_S)
    length_S = np.minimum(tokens_S, self.max_len)
    choices_S = (tokens_S - length_S + 1).astype(np.uint64)
    first_S = draw(seed, epoch_S, _CROPS, protein_S) % choices_S
    backward_S = self._backward(seed, epoch_S, protein_S)
    return Pieces(
      row_S, protein_S, first_S.astype(np.int64), length_S, backward_S
    )


class Packed(_Layout):
  """Several whole proteins a row, by a plan of `packing`.

  Attributes:
    num_rows: rows of an epoch.
    num_counted: tokens of an epoch that a causal model is scored on, if no
      residue is B, X or Z.
  """

  def __init__(self, store, max_len, both_directions=False):
    super().__init__(store, max_len, both_directions)
    histogram = _token_histogram(store, max_len)
    self._class_starts = np.cumsum(histogram) - histogram
    self._class_sizes = histogram
    self.plan = packing.plan_histogram(histogram)
    self.num_rows = self.plan.num_rows
    self.num_counted = self.plan.num_tokens - len(store.lengths)

  def pieces(self, seed: int, numbers: np.ndarray) -> Pieces:
    """The pieces in rows; row `num_rows` is the first of epoch 1."""
    epoch_R, place_R = np.divmod(numbers, self.num_rows)
    slot_R = permute(place_R, self.num_rows, draw(seed, epoch_R, _ROWS))
    row_S, rank_S = self.plan.places(slot_R)
    epoch_S = epoch_R[row_S]
    # A place takes any protein of its length: the ranks of a class permuted.
    length_S = np.searchsorted(self._class_starts, rank_S, side='right') - 1
    start_S = self._class_starts[length_S]
    key_S = draw(seed, epoch_S, _PROTEINS, length_S)
    member_S = permute(rank_S - start_S, self._class_sizes[length_S], key_S)
    protein_S = np.asarray(self.store.by_length[start_S + member_S], np.int64)
    return self._windows(seed, epoch_S, row_S, protein_S)


class Padded(_Layout):
  """One protein a row.

  Attributes: as those of Packed.
  """

  def __init__(self, store, max_len, both_directions=False):
    super().__init__(store, max_len, both_directions)
    self.num_rows = len(store.lengths)
    self.num_counted = _num_tokens(store, max_len) - self.num_rows

  def pieces(self, seed: int, numbers: np.ndarray) -> Pieces:
    """The pieces in rows; row `num_rows` is the first of epoch 1."""
    epoch_R, place_R = np.divmod(numbers, self.num_rows)
    protein_R = permute(place_R, self.num_rows, draw(seed, epoch_R, _ROWS))
    return self._windows(seed, epoch_R, np.arange(len(numbers)), protein_R)


class Bucketed(_Layout):
  """One protein a row, the rows of a batch of like length.

  A batch belongs to one bucket, is as long as this, and has as many times more
  rows as it is shorter than max_len. The last batch of a bucket in an epoch is
  filled with empty rows. The batches of all buckets are shuffled together.

  Attributes:
    num_batches: batches of an epoch.
    num_counted: as that of Packed.
  """

  def __init__(self, store, buckets, batch_size, both_directions=False):
    """Plans the batches.

    Args:
      store: as that of Packed.
      buckets: tokens of a row, ascending; longer proteins are cropped.
      batch_size: rows of a batch of the longest bucket.
      both_directions: as that of Packed.
    """
    max_len = buckets[-1]
    super().__init__(store, max_len, both_directions)
    ends = np.cumsum(_token_histogram(store, max_len))[list(buckets)]
    self._lengths = np.array(buckets, np.int64)
    self._starts = np.array([0, *ends[:-1]], np.int64)
    self._sizes = ends - self._starts
    self._rows = batch_size * (max_len // self._lengths)
    batches = -(-self._sizes // self._rows)
    self._first_batches = np.cumsum(batches) - batches
    self.num_batches = int(batches.sum())
    self.num_counted = _num_tokens(store, max_len) - len(store.lengths)

  def _bucket(self, seed: int, number: int) -> tuple[int, int, int]:
    """(bucket, batch of this bucket, epoch) of a batch."""
    epoch, place = divmod(number, self.num_batches)
    slot = permute([place], self.num_batches, draw(seed, epoch, _ROWS))[0]
    # Empty buckets start where the next one does; `right` passes over them.
    bucket = np.searchsorted(self._first_batches, slot, side='right') - 1
    return int(bucket), int(slot - self._first_batches[bucket]), epoch

  def shape(self, seed: int, number: int) -> tuple[int, int]:
    """(rows, tokens of a row) of a batch."""
    bucket, _, _ = self._bucket(seed, number)
    return int(self._rows[bucket]), int(self._lengths[bucket])

  def pieces(self, seed: int, number: int, rows: np.ndarray) -> Pieces:
    """The pieces in some rows [R] of a batch; empty rows have none."""
    bucket, batch, epoch = self._bucket(seed, number)
    place_R = batch * self._rows[bucket] + rows
    (row_S,) = np.nonzero(place_R < self._sizes[bucket])
    key = draw(seed, epoch, _PROTEINS, bucket)
    member_S = permute(place_R[row_S], self._sizes[bucket], key)
    rank_S = self._starts[bucket] + member_S
    protein_S = np.asarray(self.store.by_length[rank_S], np.int64)
    return self._windows(seed, np.array([epoch]), row_S, protein_S)


class Concatenated(_Layout):
  """All proteins one after another, cut in rows wherever a row ends.

  Their order is drawn once, from the seed. They form a ring: in each epoch it
  is cut at another place, and its rows are shuffled, so that each token is
  seen once an epoch. If max_len does not divide the tokens, one row is
  shorter. (The protocol of arXiv 2009.14794 for long sequences.)

  Attributes: as those of Packed; num_counted is of segments that are pieces,
    on average over the epochs.
  """

  def __init__(self, store, max_len, both_directions=False):
    super().__init__(store, max_len, both_directions)
    num_proteins = len(store.lengths)
    self._num_tokens = _num_tokens(store)
    self.num_rows = -(-self._num_tokens // max_len)
    # A piece's first token is not scored. Cuts between proteins cost nothing.
    inside = 1 - num_proteins / self._num_tokens
    lost = num_proteins + self.num_rows * inside
    self.num_counted = round(self._num_tokens - lost)
    self._ring = (None, None)  # of the last seed

  def pieces(self, seed: int, numbers: np.ndarray) -> Pieces:
    """The pieces in rows; row `num_rows` is the first of epoch 1."""
    epoch_R, place_R = np.divmod(numbers, self.num_rows)
    slot_R = permute(place_R, self.num_rows, draw(seed, epoch_R, _ROWS))
    begin_R = slot_R * self.max_len
    end_R = np.minimum(begin_R + self.max_len, self._num_tokens)
    offset_R = draw(seed, epoch_R, _OFFSETS) % np.uint64(self._num_tokens)
    begin_R += offset_R.astype(np.int64)
    end_R += offset_R.astype(np.int64)
    place_R = self._place(seed, begin_R)
    count_R = self._place(seed, end_R - 1) - place_R + 1
    row_S = np.repeat(np.arange(len(numbers)), count_R)
    place_S = np.arange(len(row_S)) - np.repeat(
      np.cumsum(count_R) - count_R - place_R, count_R
    )
    start_S = self._start(seed, place_S)
    begin_S = np.maximum(start_S, begin_R[row_S])
    end_S = np.minimum(self._start(seed, place_S + 1), end_R[row_S])
    protein_S = _in_order(seed, place_S % self._num_places, self._num_places)
    backward_S = self._backward(seed, epoch_R[row_S], protein_S)
    return Pieces(
      row_S, protein_S, begin_S - start_S, end_S - begin_S, backward_S
    )

  def prepare(self, seed: int) -> None:
    """Sums up the lengths in the order of the seed."""
    self._starts(seed)

  @property
  def _num_places(self) -> int:
    return len(self.store.lengths)

  def _place(self, seed, token) -> np.ndarray:
    """Places on the ring of tokens; it goes round, and so do the places."""
    turn, token = np.divmod(token, self._num_tokens)
    place = np.searchsorted(self._starts(seed), token, side='right') - 1
    return turn * self._num_places + place

  def _start(self, seed, place) -> np.ndarray:
    """The first tokens of places on the ring."""
    turn, place = np.divmod(place, self._num_places)
    return turn * self._num_tokens + self._starts(seed)[place]

  def _starts(self, seed) -> np.ndarray:
    """[P] first token of each place, in the order of a seed."""
    known, starts_P = self._ring
    if known != seed:
      starts_P = np.zeros(self._num_places, np.int64)
      for first in range(0, self._num_places, _CHUNK):
        place = np.arange(first, min(first + _CHUNK, self._num_places))
        protein = _in_order(seed, place, self._num_places)
        starts_P[place] = self._tokens(protein)
      starts_P = np.cumsum(starts_P) - starts_P
      self._ring = (seed, starts_P)
    return starts_P


def _in_order(seed, place, size) -> np.ndarray:
  return permute(place, size, draw(seed, _PROTEINS))


def _token_histogram(store, max_len: int) -> np.ndarray:
  """[max_len + 1] proteins of so many tokens; longer ones in the last bin."""
  residues = packing.length_histogram(store.lengths, max_len - NUM_ENDS)
  return np.concatenate([np.zeros(NUM_ENDS, np.int64), residues])


def _num_tokens(store, max_len: int | None = None) -> int:
  """Tokens of all proteins, of a long one no more than max_len."""
  total = 0
  for first in range(0, len(store.lengths), _CHUNK):
    tokens = store.lengths[first : first + _CHUNK].astype(np.int64) + NUM_ENDS
    total += int(np.minimum(tokens, max_len or tokens).sum())
  return total
