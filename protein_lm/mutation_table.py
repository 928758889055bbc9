"""Tables of variants in ProteinGym's layout.

A header names some of the columns

    mutant             A42G, or A42G:K50R; WT for the wild type itself
    mutated_sequence   the whole sequence; of another length for indels
    DMS_score          a measurement, higher is fitter
    DMS_score_bin      1 for fit, 0 for not

of which one of the first two is needed. Others are kept and not read. A row
whose `mutant` is its mutated_sequence again is read as a whole sequence.
"""

import collections
import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from protein_lm import variants as variants_lib
from protein_lm.datasets.fasta_file import read_lines
from protein_lm.variants import Expected, Mutation, Variant

COLUMNS = ('mutant', 'mutated_sequence', 'DMS_score', 'DMS_score_bin')
ENDINGS = ('.csv', '.tsv', '.csv.gz', '.tsv.gz')
_HINT_ROWS = 200


@dataclasses.dataclass(eq=False)
class MutationTable:
  """A table that was read and checked.

  Attributes:
    path: of the file.
    wild_type: its sequence, None where neither the table nor the user says.
    variants: one a row; None for a row that cannot be scored.
    lines: of each row, in the file.
    problems: row -> why it cannot be scored.
    measured: [rows] float, NaN where empty; None without measurements.
    is_fit: [rows] float, likewise, of DMS_score_bin.
  """

  path: pathlib.Path
  wild_type: str | None
  variants: list[Variant | None]
  lines: list[int]
  problems: dict[int, str]
  measured: np.ndarray | None
  is_fit: np.ndarray | None

  def __len__(self) -> int:
    return len(self.variants)

  @property
  def name(self) -> str:
    """The file's, without its ending."""
    return stem(self.path)

  def rows(self) -> Iterator[list[str]]:
    """Yields the cells of the header, then of each row, read once more."""
    for _, cells in read_cells(self.path):
      yield cells

  def refuse_indels(self, why: str, skip_bad: bool) -> None:
    """Makes every variant of another length a problem.

    Raises:
      ValueError: there is one, and skip_bad is False.
    """
    for row, variant in enumerate(self.variants):
      if variant is not None and variant.substitutions is None:
        self.variants[row], self.problems[row] = None, why
        if not skip_bad:
          raise ValueError(f'{self.path}:{self.lines[row]} {why}')


def read(path, wild_type=None, offset=0, skip_bad=False) -> MutationTable:
  """Reads a table, plain or gzip, comma or tab separated.

  The wild type is the one given, or what most rows give with their mutations
  undone in their mutated_sequence.

  Args:
    path: of the file.
    wild_type: its sequence, or None.
    offset: what is taken from each position to count from 1.
    skip_bad: note the rows that cannot be scored, instead of stopping.

  Returns:
    MutationTable.

  Raises:
    ValueError: one sentence with file:line, for a file that cannot be read, a
      missing column, no rows, and the first row that cannot be scored.

  Example:
    table = read('dms.csv')
    table.variants[0].of(table.wild_type)
  """
  path = pathlib.Path(path)
  raw = _read_raw(path)
  if wild_type is None:
    wild_type = _infer(raw, offset)
  if wild_type is None and not any(row.sequence for row in raw):
    raise ValueError(
      f'{path} names no wild type: give --wild_type (a sequence or a FASTA '
      'file), or a column mutated_sequence from which it follows.'
    )
  variants, problems = [], {}
  for number, row in enumerate(raw):
    try:
      variants.append(_resolve(row, wild_type, offset))
    except ValueError as error:
      problem = str(error).rstrip('.')
      if not skip_bad:
        problem += _hint(raw, wild_type, offset, row)
        raise ValueError(f'{path}:{row.line} {problem}.') from error
      variants.append(None)
      problems[number] = problem
  if len(problems) == len(raw):
    raise ValueError(f'{path}:{raw[0].line} {problems[0]}; no row is better.')
  return MutationTable(
    path,
    wild_type,
    variants,
    [row.line for row in raw],
    problems,
    _column(row.measured for row in raw),
    _column(row.is_fit for row in raw),
  )


def stem(path) -> str:
  """The name of a table without its ending."""
  name = pathlib.Path(path).name
  ending = next((end for end in ENDINGS if name.endswith(end)), '')
  return name.removesuffix(ending)


def read_cells(path) -> Iterator[tuple[int, list[str]]]:
  """Yields (line, cells) of the rows of a table, those of its header first.

  Raises:
    ValueError: the file cannot be read, or a row has too few or many cells.
  """
  lines = (line for _, line in read_lines(path))
  first = next(lines, '')
  separator = '\t' if '\t' in first else ','
  reader = csv.reader(_and_then(first, lines), delimiter=separator)
  width = None
  try:
    for cells in reader:
      if not any(cell.strip() for cell in cells):
        continue
      width = width or len(cells)
      if len(cells) != width:
        raise ValueError(
          f'{path}:{reader.line_num} has {len(cells)} cells, where the header '
          f'has {width}.'
        )
      yield reader.line_num, cells
  except csv.Error as error:
    raise ValueError(f'{path}:{reader.line_num} is no CSV: {error}.') from error


def _and_then(first, others):
  yield first
  yield from others


@dataclasses.dataclass
class _Row:
  """What a row says; problem is told when the row is resolved."""

  line: int
  mutations: tuple[Mutation, ...] | None = None
  sequence: str | None = None
  measured: float = math.nan
  is_fit: float = math.nan
  problem: str | None = None


def _read_raw(path) -> list[_Row]:
  cells = read_cells(path)
  line, header = next(cells, (1, []))
  names = [cell.strip() for cell in header]
  where = {name: names.index(name) for name in COLUMNS if name in names}
  if not names:
    raise ValueError(f'{path} is empty.')
  if not {'mutant', 'mutated_sequence'} & where.keys():
    raise ValueError(
      f'{path}:{line} lacks a column: it must name mutant or mutated_sequence, '
      f'and names {", ".join(names)[:80]!r}.'
    )
  if twice := [name for name in where if names.count(name) > 1]:
    raise ValueError(f'{path}:{line} names the column {twice[0]!r} twice.')
  raw = [_row(line, row, where) for line, row in cells]
  if not raw:
    raise ValueError(f'{path} holds no variant, its header alone.')
  return raw


def _row(line, cells, where) -> _Row:
  values = {name: cells[column].strip() for name, column in where.items()}
  mutant, sequence = values.get('mutant'), values.get('mutated_sequence')
  row = _Row(line, sequence=sequence or None)
  try:
    if mutant and mutant != sequence:
      row.mutations = variants_lib.parse(mutant)
    elif not sequence:
      raise ValueError('names neither a mutation nor a sequence')
    row.measured = _number(values, 'DMS_score')
    row.is_fit = _number(values, 'DMS_score_bin')
  except ValueError as error:
    row.problem = str(error)
  return row


def _number(values, name) -> float:
  text = values.get(name, '')
  if text.lower() in ('', 'na', 'nan'):
    return math.nan
  try:
    value = float(text)
  except ValueError:
    value = math.inf
  if not math.isfinite(value):
    raise ValueError(f'has {text!r} for {name}, which is no number')
  return value


def _column(values):
  column = np.array(list(values), np.float64)
  return column if np.isfinite(column).any() else None


def _infer(raw, offset) -> str | None:
  """The wild type that most rows give."""
  found = collections.Counter()
  for row in raw:
    if row.mutations is not None and row.sequence:
      try:
        found[variants_lib.undo(row.mutations, row.sequence, offset)] += 1
      except ValueError:  # told when the row is resolved
        continue
  return found.most_common(1)[0][0] if found else None


def _resolve(row: _Row, wild_type: str | None, offset: int) -> Variant:
  if row.problem:
    raise ValueError(row.problem)
  if row.mutations is None:
    return variants_lib.compare(row.sequence, wild_type)
  if row.sequence:
    undone = variants_lib.undo(row.mutations, row.sequence, offset)
    variants_lib.check_sequence(row.sequence)
    if undone != wild_type:
      raise ValueError(_difference(undone, wild_type))
  if wild_type is None:
    raise ValueError('names mutations, and there is no wild type')
  return variants_lib.substitutions_of(row.mutations, wild_type, offset)


def _difference(undone, wild_type) -> str:
  begin = 'has a mutated_sequence of another wild type'
  if len(undone) != len(wild_type):
    return f'{begin}: of {len(undone)} residues, not {len(wild_type)}'
  index = variants_lib.first_difference(undone, wild_type)
  return (
    f'{begin}: its mutations undone, residue {index + 1} is {undone[index]}, '
    f'where the wild type has {wild_type[index]}'
  )


def _hint(raw, wild_type, offset, row) -> str:
  """What to try if the letters do not fit the positions."""
  if row.problem or not row.mutations:
    return ''
  expected = []
  for other in raw[:_HINT_ROWS]:
    for mutation in other.mutations or ():
      if other.sequence:
        expected.append(
          Expected(mutation.position, mutation.mutant, other.sequence)
        )
      if wild_type:
        expected.append(Expected(mutation.position, mutation.wild, wild_type))
  fitting = variants_lib.fitting_offset(expected)
  if fitting not in (None, offset):
    return f'; with --offset={fitting} the positions fit'
  return f'; check --offset={offset} and the wild type'
