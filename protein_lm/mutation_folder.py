"""The tables of variants of a folder, or one, each with its wild type."""

import pathlib

from protein_lm import mutation_table, wild_types
from protein_lm.mutation_table import ENDINGS, MutationTable

SUMMARY_NAME = 'summary'


def read(path, wild_type=None, offset=0, skip_bad=False) -> list[MutationTable]:
  """Reads all tables before anything is scored.

  Args:
    path: of a table, or of a folder: those whose names end in ENDINGS, by name.
    wild_type: see wild_types.WildTypes.
    offset: see mutation_table.read, like skip_bad.
    skip_bad: note the rows that cannot be scored, instead of stopping.

  Raises:
    ValueError: the folder holds no table, two of one name, or a bad one.
  """
  path = pathlib.Path(path)
  given = wild_types.WildTypes(wild_type)
  return [
    mutation_table.read(its, given.of(its), offset, skip_bad)
    for its in (_tables(path) if path.is_dir() else [path])
  ]


def _tables(folder):
  paths = sorted(
    path
    for path in folder.iterdir()
    if path.name.endswith(ENDINGS) and not path.name.startswith('.')
  )
  if not paths:
    raise ValueError(f'{folder} holds no table: no {", ".join(ENDINGS)}.')
  names = {SUMMARY_NAME: 'the summary'}
  for path in paths:
    name = mutation_table.stem(path)
    if name in names:
      raise ValueError(
        f'{path} would have the output of {names[name]}; rename it.'
      )
    names[name] = path
  return paths
