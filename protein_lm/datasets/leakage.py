"""How much of a held-out protein is found in train: shares of its 8-mers.

For each held-out protein, or a sample of them, two shares of its distinct
8-mers: those that train as a whole has, and the largest that a single protein
of train has, its nearest. Neither sees remote homology.

Axes: W distinct words of held-out proteins, sorted; Q held-out proteins; N
words of train; H hits, pairs of a held-out protein and one of train for a word.
"""

import dataclasses
import functools

import numpy as np

from protein_lm.datasets.words import all_words, owners_of, words_of

THRESHOLD = 0.2  # a protein with this share of its 8-mers in train is leaked
_CHUNK = 2**20  # residues of train looked up at a time
_MAX_HITS = 2**22
_FILTER_BITS = 25
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], np.uint64)


@dataclasses.dataclass(frozen=True)
class Found:
  """What of the held-out proteins a part of train has.

  Attributes:
    is_found: [W] whether a word is in that part.
    nearest: [Q] words shared with the nearest protein.
  """

  is_found: np.ndarray
  nearest: np.ndarray

  def __or__(self, other: 'Found') -> 'Found':
    """What either part has."""
    return Found(
      self.is_found | other.is_found, np.maximum(self.nearest, other.nearest)
    )


class HeldOutWords:
  """The 8-mers of held-out proteins, to be looked for in train.

  Args:
    sequences: [Q] of the proteins.
  """

  def __init__(self, sequences: list[str]):
    words, owners = words_of(sequences)
    order = np.lexsort((owners, words))
    words, owners = words[order], owners[order]
    is_new = np.ones(len(words), bool)
    is_new[1:] = (words[1:] != words[:-1]) | (owners[1:] != owners[:-1])
    # Each word has the owners first_W[w] to first_W[w + 1].
    self._owners = owners[is_new]
    self._words_W, first_W = np.unique(words[is_new], return_index=True)
    self._first_W = np.append(first_W, len(self._owners))
    self._count_W = np.diff(self._first_W)
    self._num_words_Q = np.bincount(self._owners, minlength=len(sequences))

  @functools.cached_property
  def _filter(self) -> np.ndarray:
    """A table that says of most words at once that they are not held out."""
    table = np.zeros(2**_FILTER_BITS, bool)
    for multiplier in _MULTIPLIERS:
      table[_place(self._words_W, multiplier)] = True
    return table

  def nothing(self) -> Found:
    """What an empty train has."""
    return Found(
      np.zeros(len(self._words_W), bool),
      np.zeros(len(self._num_words_Q), np.int64),
    )

  def look_for(self, train: list[str]) -> Found:
    """Looks for the words in some of train's sequences."""
    found, part, size = self.nothing(), [], 0
    for sequence in train:
      part.append(sequence)
      size += len(sequence)
      if size >= _CHUNK:
        found |= self._look_for(part)
        part, size = [], 0
    return found | self._look_for(part)

  def _look_for(self, train: list[str]) -> Found:
    words_N, ends = all_words(train)
    places_N = None
    for multiplier in _MULTIPLIERS:
      (may_be,) = self._filter[_place(words_N, multiplier)].nonzero()
      words_N = words_N[may_be]
      places_N = may_be if places_N is None else places_N[may_be]
    owners_N = owners_of(places_N, ends)
    place_N = np.searchsorted(self._words_W, words_N)
    place_N = np.minimum(place_N, max(len(self._words_W) - 1, 0))
    is_hit = (self._words_W[place_N] == words_N) & (owners_N >= 0)
    size = max(len(self._words_W), 1)
    # Each word of each protein once, those of a protein together.
    pairs = np.unique(owners_N[is_hit] * size + place_N[is_hit])
    owners_N, place_N = np.divmod(pairs, size)
    found = self.nothing()
    found.is_found[place_N] = True
    num_hits = np.cumsum(self._count_W[place_N])
    start = 0
    while start < len(owners_N):
      limit = _MAX_HITS + (num_hits[start - 1] if start else 0)
      end = int(np.searchsorted(num_hits, limit, side='right'))
      if end < len(owners_N):  # back to the start of its last protein, or on
        owner = owners_N[max(end, start)]
        end = int(np.searchsorted(owners_N, owner))
        if end <= start:
          end = int(np.searchsorted(owners_N, owner, side='right'))
      self._count(owners_N[start:end], place_N[start:end], found.nearest)
      start = end
    return found

  def _count(self, owners_N, place_N, nearest_Q) -> None:
    """Counts the words that pairs share, of some whole proteins of train."""
    first_N = self._first_W[place_N]
    count_N = self._count_W[place_N]
    train_H = np.repeat(owners_N, count_N)
    step_H = np.arange(len(train_H)) - np.repeat(
      np.cumsum(count_N) - count_N, count_N
    )
    held_out_H = self._owners[np.repeat(first_N, count_N) + step_H]
    size = len(self._num_words_Q)
    pairs, shared = np.unique(train_H * size + held_out_H, return_counts=True)
    np.maximum.at(nearest_Q, pairs % size, shared)

  def shares(self, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares of each protein's words in all of train and in its
    nearest protein, [Q] float32 each; 0 for a protein without a word."""
    is_found = np.repeat(found.is_found, self._count_W)
    in_train_Q = np.bincount(
      self._owners[is_found], minlength=len(self._num_words_Q)
    )
    num_words_Q = np.maximum(self._num_words_Q, 1)
    return (
      (in_train_Q / num_words_Q).astype(np.float32),
      (found.nearest / num_words_Q).astype(np.float32),
    )


def _place(words: np.ndarray, multiplier: np.uint64) -> np.ndarray:
  """Returns a place in the filter for each word."""
  return (words.astype(np.uint64) * multiplier) >> np.uint64(64 - _FILTER_BITS)
