"""The rows of evaluations: kept in evaluation.json and .csv, shown as a table.

A row is a dict: the names of KEY, which say what was evaluated on what, then
the metrics of `evaluation.summarize`, None where there is none. Baselines have
no step and no attention.
"""

import csv
import io
import json
import math
import os
import pathlib

KEY = (
  'data',
  'max_len',
  'split',
  'slice',
  'name',
  'step',
  'attention',
  'objective',
)
FILE_NAMES = 'evaluation.json', 'evaluation.csv'
_COLUMNS = (  # metrics, their name in the table, their format
  (('residue_perplexity',), 'residue ppl', '{:.3f}'),
  (
    ('residue_perplexity_low', 'residue_perplexity_high'),
    '95 % interval',
    '{:.2f}-{:.2f}',
  ),
  (('masked_residue_perplexity',), 'masked residue ppl', '{:.3f}'),
  (
    ('masked_residue_perplexity_low', 'masked_residue_perplexity_high'),
    '95 % interval',
    '{:.2f}-{:.2f}',
  ),
  (('masked_residue_perplexity_std',), 'std over masks', '{:.3f}'),
  (('projection_perplexity_std',), 'std over projections', '{:.3f}'),
  (('masked_projection_perplexity_std',), 'std over projections', '{:.3f}'),
  (('pseudo_perplexity',), 'pseudo-ppl', '{:.3f}'),
  (
    ('pseudo_perplexity_low', 'pseudo_perplexity_high'),
    '95 % interval',
    '{:.2f}-{:.2f}',
  ),
  (('one_pass_perplexity_published',), 'one pass (published)', '{:.3f}'),
  (('one_pass_perplexity_bayes',), 'one pass (Bayes)', '{:.3f}'),
  (('bits_per_residue',), 'bits/residue', '{:.3f}'),
  (('masked_bits_per_residue',), 'bits/masked residue', '{:.3f}'),
  (('perplexity',), 'ppl with EOS', '{:.3f}'),
  (('accuracy',), 'accuracy', '{:.2%}'),
  (('masked_accuracy',), 'masked accuracy', '{:.2%}'),
  (('top5_accuracy',), 'top-5', '{:.2%}'),
  (('masked_top5_accuracy',), 'masked top-5', '{:.2%}'),
  (('ece',), 'ECE', '{:.4f}'),
  (('masked_ece',), 'masked ECE', '{:.4f}'),
  (('protein_perplexity',), 'protein ppl', '{:.3f}'),
  (('masked_protein_perplexity',), 'masked protein ppl', '{:.3f}'),
  (('num_residues',), 'residues', '{:,d}'),
)


def read_rows(work_dir) -> list[dict]:
  """The rows of evaluation.json, [] without it.

  Raises:
    ValueError: if the file there is not one of ours.
  """
  path = pathlib.Path(work_dir) / FILE_NAMES[0]
  return read_file(path, KEY, 'rows of an evaluation')


def read_file(path, key, content):
  """The rows of a file of ours, [] without it.

  Args:
    path: of the file.
    key: names that every row has.
    content: what it holds, for the message.

  Raises:
    ValueError: the file is not one of ours.
  """
  if not path.exists():
    return []
  try:
    rows = json.loads(path.read_text())
    for row in rows:
      _ = [row[name] for name in key]
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(f'{path} does not hold {content}; move it away') from error
  return rows


def merge_rows(work_dir, new_rows):
  """Puts rows into evaluation.json and .csv; a row of the same key is replaced.

  Args:
    work_dir: folder of the two files.
    new_rows: dicts of KEY and metrics.

  Returns:
    All rows, old and new.

  Raises:
    ValueError: if the file there is not one of ours.
  """
  path = pathlib.Path(work_dir) / FILE_NAMES[0]
  merged = {
    tuple(row[name] for name in KEY): _finite(row)
    for row in [*read_rows(work_dir), *new_rows]
  }
  rows = list(merged.values())
  table = io.StringIO()
  columns = list(dict.fromkeys(name for row in rows for name in row))
  writer = csv.DictWriter(table, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  replace(path.with_name(FILE_NAMES[1]), table.getvalue())
  replace(path, json.dumps(rows, indent=1, allow_nan=False) + '\n')
  return rows


def _finite(row):
  """The row with None for what JSON cannot say: a diverged perplexity."""
  return {
    name: None if isinstance(x, float) and not math.isfinite(x) else x
    for name, x in row.items()
  }


def replace(path, text):
  """Writes a file, whole or not at all."""
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(text)
  os.replace(partial, path)


def format_table(rows) -> str:
  """The rows as text: a block for each objective, split and slice."""
  blocks = {}
  for row in rows:
    name = (row['objective'], row['split'], row['slice'])
    blocks.setdefault(name, []).append(row)
  return '\n\n'.join(_block(*name, rows) for name, rows in blocks.items())


def _block(objective, split, part, rows):
  """One table: baselines first, then the model by step."""
  words = {'pure': ', pure proteins', 'held_out': ', held-out residues'}
  title = split + words.get(part, '')
  if objective == 'masked':
    title += ' (masked 15 %)'
  columns = [
    column for column in _COLUMNS if any(_cell(row, *column) for row in rows)
  ]
  lines = [[title, *(label for _, label, _ in columns)]]
  for row in sorted(
    rows, key=lambda row: -1 if row['step'] is None else row['step']
  ):
    name = row['name']
    if row['step'] is not None:
      name += f', step {row["step"]:,}, {row["attention"]} attention'
    cells = [_cell(row, *column) for column in columns]
    lines.append([f'  {name}', *cells])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      [line[0].ljust(widths[0])]
      + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    )
    for line in lines
  )


def _cell(row, metrics, label, form):
  del label
  values = [row.get(metric) for metric in metrics]
  return '' if None in values else form.format(*values)
