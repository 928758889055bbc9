"""Random numbers and permutations in closed form: any entry, without the rest.

A number depends on its key alone: nothing is drawn in order, and nothing of
the size of a collection is kept. The same on every machine.

Axes: E entries asked for.
"""

import numpy as np

_BITS = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 12  # with fewer, permutations of 3 to 5 entries are uneven
_CHUNK = 1 << 16  # entries at once: what fits a cache


def draw(*key) -> np.ndarray:
  """Returns uint64 random numbers, one for each key.

  splitmix64's finaliser, folded over the parts of the key.

  Args:
    key: integers, or arrays of them [E], such as seed, epoch and purpose.

  Returns:
    [E], [1] if no part is an array.

  Example:
    draw(seed, epoch, np.arange(3)) % 10  # three digits
  """
  state = np.zeros(1, np.uint64)
  for part in key:
    if isinstance(part, int):
      part = np.array([part & _BITS], np.uint64)
    state = _mix(state + part.astype(np.uint64))
  return state


def permute(index, size, key) -> np.ndarray:
  """Returns where random permutations put entries.

  A Feistel network on the smallest grid a x b >= size with a nearly square;
  what lands outside of `size` goes through it again (cycle walking).

  Args:
    index: [E] integers, 0 <= index < size.
    size: how many entries are permuted; an integer, or [E].
    key: uint64 of `draw`, one for each permutation, [1] or [E].

  Returns:
    [E] int64.

  Example:
    permute(np.arange(5), 5, draw(seed))  # 0 ... 4 in another order
  """
  index = np.asarray(index, np.int64)
  size = np.broadcast_to(np.asarray(size, np.int64), index.shape)
  key = np.broadcast_to(key, index.shape)
  found = np.empty_like(index)
  for first in range(0, len(index), _CHUNK):
    part = slice(first, first + _CHUNK)
    found[part] = _walk(index[part], size[part], key[part])
  return found


def _walk(index_E, size_E, key_E) -> np.ndarray:
  rows_E = np.ceil(np.sqrt(size_E)).astype(np.uint64)
  columns_E = -(-size_E // rows_E.astype(np.int64)).astype(np.uint64)
  size_E = size_E.astype(np.uint64)
  found_E = _shuffle(index_E.astype(np.uint64), rows_E, columns_E, key_E)
  (outside,) = np.nonzero(found_E >= size_E)
  while outside.size:
    found_E[outside] = _shuffle(
      found_E[outside], rows_E[outside], columns_E[outside], key_E[outside]
    )
    outside = outside[found_E[outside] >= size_E[outside]]
  return found_E.astype(np.int64)


def _shuffle(x_E, rows_E, columns_E, key_E) -> np.ndarray:
  row_E, column_E = np.divmod(x_E, columns_E)
  for _ in range(_ROUNDS // 2):
    key_E = key_E + _GOLDEN
    row_E = (row_E + _mix(column_E ^ key_E) % rows_E) % rows_E
    key_E = key_E + _GOLDEN
    column_E = (column_E + _mix(row_E ^ key_E) % columns_E) % columns_E
  return row_E * columns_E + column_E


def _mix(x: np.ndarray) -> np.ndarray:
  x = x + _GOLDEN
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
