"""What an evaluation of one checkpoint found, and the files that keep it."""

import dataclasses
import os
import pathlib
from typing import Any

from protein_lm import attention_comparison, evaluation_table, per_sequence


@dataclasses.dataclass
class Findings:
  """Of one step, under one attention or several.

  Attributes:
    rows: of evaluation.json.
    sequences: (split, rows of per_sequence.add_columns) of each attention.
    kernel_errors: rows of evaluation_kernel_error.json.
    scores: (LoadedModel, {split: Scores of each mask}) of each attention.
  """

  rows: list[dict] = dataclasses.field(default_factory=list)
  sequences: list[tuple[str, list[dict]]] = dataclasses.field(
    default_factory=list
  )
  kernel_errors: list[dict] = dataclasses.field(default_factory=list)
  scores: list[tuple[Any, dict]] = dataclasses.field(default_factory=list)

  def write(self, work_dir) -> list[pathlib.Path]:
    """Merges all rows into the files of a folder; returns their paths."""
    evaluation_table.merge_rows(work_dir, self.rows)
    paths = [pathlib.Path(work_dir, x) for x in evaluation_table.FILE_NAMES]
    for split, rows in self.sequences:
      paths += per_sequence.merge(work_dir, split, rows)
    if self.kernel_errors:
      paths.append(
        attention_comparison.merge_errors(work_dir, self.kernel_errors)
      )
    return paths


def check(work_dir, splits) -> None:
  """Reads what is there, before anything is computed.

  Raises:
    OSError: the folder cannot be written to.
    ValueError: a file is not one of ours.
  """
  if not os.access(work_dir, os.W_OK):
    raise PermissionError(
      f'{work_dir} cannot be written to; evaluate a copy of it.'
    )
  evaluation_table.read_rows(work_dir)
  attention_comparison.read_errors(work_dir)
  for split in splits:
    per_sequence.read(work_dir, split)
