"""The 8-mers of sequences, as numbers.

Axes: T all residues, one sequence after another.
"""

import numpy as np

from protein_lm import vocab

WORD = 8


def all_words(sequences: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the 8-mer at each place, also where it reaches into the next.

  Args:
    sequences: letters of `vocab.RESIDUES`.

  Returns:
    words: [T - 7] int64, below 25^8; none if T < 8.
    ends: of the sequences, places in T.
  """
  words = vocab.encode(''.join(sequences))
  # Words of 2, 4 and 8 letters, in numbers no wider than they need.
  for width, dtype in ((1, np.int32), (2, np.int32), (4, np.int64)):
    factor = dtype(len(vocab.RESIDUES) ** width)
    words = words[:-width].astype(dtype) * factor + words[width:]
  return words, np.cumsum(np.fromiter(map(len, sequences), np.int64))


def owners_of(places: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """Returns whose the words at some places are, -1 where they are nobody's."""
  owners = np.searchsorted(ends, places, side='right')
  owners[places + WORD > ends[owners]] = -1
  return owners


def words_of(sequences: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the 8-mers of each sequence, in order, and whose they are.

  Both int64; a sequence shorter than 8 has none.
  """
  words, ends = all_words(sequences)
  owners = owners_of(np.arange(len(words)), ends)
  return words[owners >= 0], owners[owners >= 0]
