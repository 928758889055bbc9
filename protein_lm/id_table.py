"""Tables of one value a protein: a header such as `id,label`, then rows."""

import csv
from typing import NamedTuple

from protein_lm.datasets.fasta_file import parse_header, read_lines


class Row(NamedTuple):
  """A value as written, and where: '<path>:<line>'."""

  value: str
  where: str


def read(path, column: str) -> dict[str, Row]:
  """Reads a table, plain or gzip, comma or tab separated.

  Args:
    path: of the file. Its first line names the columns; `id` and the wanted one
      are read, others passed over. Ids are read as the first word of a FASTA
      header is (the accession in UniProt's).
    column: 'weight' or 'label'.

  Returns:
    id -> Row.

  Raises:
    ValueError: one sentence with file:line, for a file that cannot be read, a
      column that is missing, a short row, an id that occurs twice.
  """
  rows, columns, separator = {}, None, ','
  for number, line in read_lines(path):
    if not line.strip():
      continue
    where = f'{path}:{number}'
    if columns is None:
      separator = '\t' if '\t' in line else ','
    cells = next(csv.reader([line.rstrip('\r\n')], delimiter=separator))
    cells = [cell.strip() for cell in cells]
    if columns is None:
      columns = _columns(cells, column, where)
      continue
    if len(cells) <= max(columns):
      raise ValueError(
        f'{where} has {len(cells)} cells, fewer than its header names.'
      )
    id_ = parse_header(cells[columns[0]])[0] if cells[columns[0]] else ''
    if id_ in rows or not id_:
      why = f'id {id_!r} again, after {rows[id_].where}' if id_ else 'no id'
      raise ValueError(f'{where} has {why}; give each protein one row.')
    rows[id_] = Row(cells[columns[1]], where)
  if not rows:
    raise ValueError(f'{path} holds no row of id and {column}.')
  return rows


def _columns(cells, column, where):
  names = [cell.lower() for cell in cells]
  for name in ('id', column):
    if names.count(name) != 1:
      raise ValueError(
        f'{where} must name the columns, once each, as in id,{column}; it '
        f'names {", ".join(cells)[:80]!r}.'
      )
  return names.index('id'), names.index(column)
