"""The tables that score writes: variants with scores, and their summary."""

import csv
import math
import pathlib

import numpy as np

METRICS = ('spearman', 'ndcg', 'auc')
SUMMARY = (
  'file',
  'num_variants',
  'num_scored',
  'strategy',
  'num_measured',
  *METRICS,
  'auc_labels',
)


def write_table(path, table, scores, strategy, has_problems=False):
  """Writes the columns of a table and ours.

  Args:
    path: of the CSV to write.
    table: a MutationTable.
    scores: [rows], NaN where there is none.
    strategy: its name.
    has_problems: add a column that says why a row has no score.

  Returns:
    Its row of the summary, a dict of SUMMARY.
  """
  from protein_lm import ranking

  rows = table.rows()
  header = next(rows)
  added = ['score', 'strategy', *(['problem'] if has_problems else [])]
  with _opened(path) as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow([*header, *(_free_name(name, header) for name in added)])
    for number, cells in enumerate(rows):
      cells += [_cell(float(scores[number])), strategy]
      if has_problems:
        cells.append(table.problems.get(number, ''))
      writer.writerow(cells)
  row = {
    'file': table.path.name,
    'num_variants': len(table),
    'num_scored': int(np.isfinite(scores).sum()),
    'strategy': strategy,
  }
  _tell_problems(table)
  if table.measured is not None:
    row |= ranking.rank_metrics(scores, table.measured, table.is_fit)
  return row


def _free_name(name, header):
  """The name, numbered if the table has such a column already."""
  number, free = 1, name
  while free in header:
    number += 1
    free = f'{name}_{number}'
  return free


def _tell_problems(table):
  for number, problem in list(table.problems.items())[:3]:
    print(f'  {table.path}:{table.lines[number]} {problem}')
  if table.problems:
    print(
      f'{table.path.name}: {len(table.problems):,} rows have no score; the '
      'column problem says why'
    )


def mean(summary):
  """The row of the means over tables with measurements."""
  row = {'file': 'mean', 'strategy': summary[0]['strategy']}
  for name in ('num_variants', 'num_scored'):
    row[name] = sum(its[name] for its in summary)
  for name in METRICS:
    values = [its.get(name, math.nan) for its in summary]
    values = [value for value in values if not math.isnan(value)]
    row[name] = sum(values) / len(values) if values else math.nan
  return row


def format_summary(summary) -> str:
  """The metrics as a table; '' where there are none."""
  if not any('spearman' in row for row in summary):
    return ''
  lines = [['file', 'scored', 'Spearman', 'NDCG', 'AUC', 'fit are']]
  for row in summary:
    values = [row.get(name, math.nan) for name in METRICS]
    cells = ['' if math.isnan(value) else f'{value:.3f}' for value in values]
    line = [row['file'], f'{row["num_scored"]:,}', *cells]
    lines.append([*line, row.get('auc_labels', '')])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      [line[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    )
    for line in lines
  )


def _cell(value):
  if isinstance(value, float):
    return '' if math.isnan(value) else f'{value:.6f}'
  return value


def check_out(out, overwrite, is_folder):
  """The path of what will be written.

  Raises:
    OSError: it exists, or its folder does not.
  """
  out = pathlib.Path(out)
  if not out.absolute().parent.is_dir():
    raise FileNotFoundError(f'there is no folder {out.absolute().parent}')
  if out.exists() and (not overwrite or out.is_dir() != is_folder):
    kind = 'folder' if out.is_dir() else 'file'
    way_out = '; choose another name'
    if out.is_dir() == is_folder:
      way_out += ' or --overwrite'
    raise FileExistsError(f'{out} is a {kind} that exists{way_out}')
  return out


def write_rows(path, columns, rows):
  """Writes dicts as a CSV; a number that is NaN as nothing."""
  with _opened(path) as file:
    writer = csv.DictWriter(file, columns, lineterminator='\n')
    writer.writeheader()
    for row in rows:
      writer.writerow({name: _cell(value) for name, value in row.items()})


def _opened(path):
  return path.open('w', newline='', encoding='utf-8')
