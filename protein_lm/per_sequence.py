"""A row for each protein: its loss, perplexity and accuracy; tables of them.

Axes: T residues of a split, P proteins.
"""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from protein_lm.proteins import Proteins
from protein_lm.scores import Scores

RUN_COLUMNS = 'step', 'attention', 'data', 'max_len'


def sums(scores: Scores, proteins: Proteins) -> tuple[np.ndarray, ...]:
  """Residues scored, their nats and how many were right, each [P].

  The last is None for baselines.
  """
  num_proteins = len(proteins)
  protein_T = np.repeat(np.arange(num_proteins), proteins.lengths)
  protein = protein_T[scores.scored]

  def total(values_T=None):
    weights = None
    if values_T is not None:
      weights = values_T[scores.scored].astype(np.float64)
    return np.bincount(protein, weights, num_proteins)

  correct_P = None if scores.correct is None else total(scores.correct)
  return total(), total(scores.nll), correct_P


def rows(
  all_scores: Sequence[Scores], proteins: Proteins
) -> list[dict[str, Any]]:
  """What a model gave each protein.

  Args:
    all_scores: of the split: one of a causal model; of a masked one as many as
      there were masks, whose residues are put together.
    proteins: the split.

  Returns:
    A dict for each protein: id, length (residues), num_scored (residues; of
    several masks each time), loss (mean nats per residue), residue_perplexity =
    exp(loss), accuracy. For a masked model the last three begin with masked_.
    None where nothing was scored.
  """
  prefix = 'masked_' if all_scores[0].objective == 'masked' else ''
  parts = [sums(scores, proteins) for scores in all_scores]
  count_P, nats_P, correct_P = (sum(part) for part in zip(*parts, strict=True))
  found = []
  for p, id_ in enumerate(proteins.ids):
    count = int(count_P[p])
    loss = nats_P[p] / count if count else None
    accuracy = correct_P[p] / count if count else None
    found.append(
      {
        'id': id_,
        'length': int(proteins.lengths[p]),
        'num_scored': count,
        f'{prefix}loss': loss if loss is None else float(loss),
        f'{prefix}residue_perplexity': loss if loss is None else _exp(loss),
        f'{prefix}accuracy': accuracy if accuracy is None else float(accuracy),
      }
    )
  return found


def add_columns(
  found: list[dict[str, Any]], proteins: Proteins, **run: Any
) -> list[dict[str, Any]]:
  """The rows with nearest_train_share, cluster, and what was evaluated.

  Args:
    found: of `rows`.
    proteins: the split.
    **run: the values of RUN_COLUMNS.
  """
  share_P = proteins.nearest_train_share
  return [
    row
    | {
      'nearest_train_share': None if np.isnan(share) else float(share),
      'cluster': cluster,
    }
    | run
    for row, share, cluster in zip(
      found, share_P, proteins.clusters, strict=True
    )
  ]


def paths(work_dir, split: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Where the tables of a split are: CSV and Parquet."""
  stem = pathlib.Path(work_dir) / f'per_sequence_{split}'
  return tuple(stem.with_name(stem.name + end) for end in ('.csv', '.parquet'))


def read(work_dir, split: str) -> list[dict[str, Any]]:
  """The rows of a split's Parquet file, [] without it.

  Raises:
    ValueError: the file is not one of ours.
  """
  import pyarrow
  from pyarrow import parquet

  path = paths(work_dir, split)[1]
  if not path.exists():
    return []
  try:
    found = parquet.read_table(path).to_pylist()
    for row in found[:1]:
      _ = [row[name] for name in RUN_COLUMNS]
  except (pyarrow.ArrowException, OSError, KeyError) as error:
    raise ValueError(
      f'{path} does not hold rows of an evaluation; move it away'
    ) from error
  return found


def merge(work_dir, split: str, new_rows: list[dict[str, Any]]):
  """Adds rows to the tables of a split; those of the same run are replaced.

  Args:
    work_dir: folder of the tables.
    split: its name.
    new_rows: of `add_columns`, all with the same RUN_COLUMNS.

  Returns:
    The paths of both tables.
  """
  import pyarrow
  from pyarrow import parquet

  def run(row):
    return [row[name] for name in RUN_COLUMNS]

  kept = read(work_dir, split)
  if new_rows:
    kept = [row for row in kept if run(row) != run(new_rows[0])]
  all_rows = [*kept, *new_rows]
  columns = list(dict.fromkeys(name for row in all_rows for name in row))
  written = paths(work_dir, split)
  partials = [path.with_name(f'.{path.name}.partial') for path in written]
  with partials[0].open('w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(all_rows)
  lists = {name: [row.get(name) for row in all_rows] for name in columns}
  parquet.write_table(pyarrow.table(lists), partials[1])
  for partial, path in zip(partials, written, strict=True):
    os.replace(partial, path)
  return written


def _exp(nats):
  with np.errstate(over='ignore'):
    return float(np.exp(nats))
