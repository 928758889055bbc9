"""The only alphabet: amino-acid letters, special tokens and their ids.

Ids 0-19 are the standard amino acids, 20-24 the letters B O U X Z, 25-28 the
special tokens BOS `<`, EOS `>`, PAD `_` and MASK `*`. BOS stands only before a
true N-terminus and EOS only after a true C-terminus, never at a crop's edge.

Axes: L residues or tokens.
"""

import numpy as np

STANDARD_RESIDUES = 'ACDEFGHIKLMNPQRSTVWY'
RESIDUES = STANDARD_RESIDUES + 'BOUXZ'
TOKENS = RESIDUES + '<>_*'
SIZE = len(TOKENS)

BOS_ID = TOKENS.index('<')
EOS_ID = TOKENS.index('>')
PAD_ID = TOKENS.index('_')
MASK_ID = TOKENS.index('*')

# Letters that stand for "one of several": nobody can predict them, so they are
# read as input and never scored as targets.
UNCOUNTED_RESIDUES = 'BXZ'
UNCOUNTED_IDS = tuple(RESIDUES.index(letter) for letter in UNCOUNTED_RESIDUES)

_NO_RESIDUE = 255
_ID_OF_BYTE = np.full(256, _NO_RESIDUE, np.uint8)
_ID_OF_BYTE[np.frombuffer(RESIDUES.encode(), np.uint8)] = range(len(RESIDUES))
_BYTE_OF_ID = np.frombuffer(TOKENS.encode(), np.uint8)


def encode(sequence: str) -> np.ndarray:
  """Returns the ids of a sequence's residues, without BOS and EOS.

  Args:
    sequence: upper-case letters of `RESIDUES`.

  Returns:
    ids: [L] uint8.

  Raises:
    ValueError: names the first letter that is no residue, and its position.

  Example:
    >>> encode('ACX')
    array([ 0,  1, 23], dtype=uint8)
  """
  # One byte a character: what is not ASCII becomes '?', which is no residue.
  bytes_L = np.frombuffer(sequence.encode('ascii', 'replace'), np.uint8)
  ids_L = _ID_OF_BYTE[bytes_L]
  (wrong,) = np.nonzero(ids_L == _NO_RESIDUE)
  if wrong.size:
    raise ValueError(
      f'{sequence[wrong[0]]!r} at position {wrong[0] + 1} is no residue; '
      f'the letters are {RESIDUES}, in upper case.'
    )
  return ids_L


def decode(ids) -> str:
  """Returns the letters of ids, special tokens included.

  Args:
    ids: [L] integers from 0 to SIZE - 1.

  Raises:
    ValueError: names the first id that is no token, and its position.

  Example:
    >>> decode([25, 10, 23, 26])
    '<MX>'
  """
  ids_L = np.asarray(ids)
  if ids_L.size == 0:
    return ''
  if ids_L.ndim != 1 or not np.issubdtype(ids_L.dtype, np.integer):
    raise ValueError(
      f'ids must be one row of integers, got {ids_L.dtype} of shape '
      f'{ids_L.shape}.'
    )
  (wrong,) = np.nonzero((ids_L < 0) | (ids_L >= SIZE))
  if wrong.size:
    raise ValueError(
      f'{ids_L[wrong[0]]} at position {wrong[0] + 1} is no token id; ids go '
      f'from 0 to {SIZE - 1}.'
    )
  return _BYTE_OF_ID[ids_L].tobytes().decode()
