"""The arrays of an embedding: their names, and proteins put together of pieces.

Axes: L length, D model width.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from protein_lm import pieces

DTYPES = ('float32', 'float16')


def name_of(kind: str, layer: int) -> str:
  """Name of an array in memory and in files, such as mean_-1."""
  return f'{kind}_{layer}'


def is_per_residue(name: str) -> bool:
  """Whether an array has a row for each residue."""
  return name.startswith('per_tok')


def combine(
  num_proteins: int,
  batches: Sequence[pieces.PlannedBatch],
  outputs: Sequence[Mapping[str, np.ndarray]],
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the arrays of each protein from those of its pieces.

  Args:
    num_proteins: all that were planned.
    batches: of `Embedder.plan`.
    outputs: of `Embedder.run`, for each batch.

  Yields:
    name -> [D], or [L, D] of `per_tok`.
  """
  parts = [[] for _ in range(num_proteins)]
  for batch, arrays in zip(batches, outputs, strict=True):
    row = 0
    for number, (piece, _, _) in enumerate(batch.places):
      where = slice(row, row + piece.num_residues)
      row = where.stop
      parts[piece.protein].append((piece, number, where, arrays))
  for its_parts in parts:
    its_parts.sort(key=lambda part: part[0].first)
    sizes = [piece.num_residues for piece, *_ in its_parts]
    yield {
      name: _combine(
        name,
        [
          arrays[name][where if is_per_residue(name) else number]
          for _, number, where, arrays in its_parts
        ],
        sizes,
      )
      for name in its_parts[0][3]
    }


def _combine(name, vectors, sizes):
  if len(vectors) == 1:
    return vectors[0]
  match name.split('_')[0]:
    case 'mean':
      return np.average(vectors, axis=0, weights=sizes).astype(np.float32)
    case 'max':
      return np.max(vectors, axis=0)
    case 'last':
      return vectors[-1]
    case 'bos':
      return vectors[0]
  return np.concatenate(vectors)


def to_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
  """The array in a type of DTYPES.

  Raises:
    ValueError: a number is too large for it.
  """
  if dtype != 'float32' and np.abs(array).max() > np.finfo(dtype).max:
    raise ValueError(
      f'a number of {np.abs(array).max():.3g} does not fit into {dtype}, whose '
      f'largest is {np.finfo(dtype).max:.5g}; use --dtype=float32.'
    )
  return array.astype(dtype, copy=False)
