"""Weighted proteins: a table of id and weight multiplies their training loss.

Axes: P proteins of a source.
"""

import math
from collections.abc import Sequence

import numpy as np

from protein_lm import id_table

NUM_ENDS = 1  # EOS counts beside the residues


def read(path, ids: Sequence[Sequence[str]], lengths) -> list[np.ndarray]:
  """The weights of the training proteins of each source.

  They are scaled so that their mean over all residues is 1: the loss is a mean
  over weighted tokens, so only ratios matter, and `num_tokens` remains, over an
  epoch, the number of tokens. Rows of other proteins are counted and told.

  Args:
    path: a table with the header id,weight; weights are at least 0.
    ids: of the proteins of each source.
    lengths: [P] residues, of each source.

  Returns:
    [P] float32 of each source.

  Raises:
    ValueError: for a weight that is no number, a protein without one, or
      weights that are all 0.
  """
  table = {
    id_: _weight(row) for id_, row in id_table.read(path, 'weight').items()
  }
  missing = [id_ for its in ids for id_ in its if id_ not in table]
  if missing:
    total = sum(map(len, ids))
    raise ValueError(
      f'{path} has no weight of {len(missing):,} of {total:,} proteins of '
      f'train, first {missing[0]!r}; give each a row (1 for no change).'
    )
  weights = [np.array([table[id_] for id_ in its], np.float64) for its in ids]
  tokens = [np.asarray(x, np.float64) + NUM_ENDS for x in lengths]
  total = sum(w @ t for w, t in zip(weights, tokens, strict=True))
  if not total:
    raise ValueError(f'{path} gives every protein of train the weight 0.')
  used = {id_ for its in ids for id_ in its}
  if unused := len(table) - len(used & table.keys()):
    print(f'{path}: {unused:,} rows name no protein of train.', flush=True)
  scale = sum(t.sum() for t in tokens) / total
  return [(w * scale).astype(np.float32) for w in weights]


def _weight(row):
  try:
    weight = float(row.value)
  except ValueError:
    weight = math.nan
  if not 0 <= weight < math.inf:
    raise ValueError(
      f'{row.where} has the weight {row.value!r}, not a number of at least 0.'
    )
  return weight
