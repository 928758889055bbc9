"""The report of a probe, and its predictions, as files and as a table."""

import csv
import json
import pathlib

from protein_lm import probe_metrics, whole_file


def check_out(out, overwrite: bool) -> tuple[pathlib.Path, ...]:
  """The paths of report and predictions; refuses what is there."""
  if out is None:
    return ()
  out = pathlib.Path(out)
  if out.suffix not in ('.json', '.csv'):
    raise ValueError(f'--out must end in .json or .csv, got {out.name!r}.')
  if not out.parent.is_dir():
    raise ValueError(f'{out.parent} is no folder; make it first.')
  paths = out, out.with_name(f'{out.stem}_predictions.csv')
  for path in paths:
    if path.exists() and not overwrite:
      raise FileExistsError(
        f'{path} exists; choose another name or --overwrite'
      )
  return paths


def count_line(report) -> str:
  """What is predicted, and what was left out."""
  text = (
    f'{report["task"]}: {report["num_proteins"]:,} proteins with a label in '
    f'{report["num_clusters"]:,} clusters, {report["folds"]} folds'
  )
  for name, what in (
    ('num_without_label', 'rows without a label'),
    ('num_labels_without_sequence', 'labels without a sequence'),
    ('num_sequences_without_label', 'sequences without a label'),
  ):
    if report[name]:
      text += f'; {report[name]:,} {what} left out'
  return text


def format_report(report) -> str:
  """The metrics as a table: mean over the folds, and standard deviation."""
  names = probe_metrics.METRICS[report['task']]
  lines = [f'{"features":<14}' + ''.join(f'{name:>18}' for name in names)]
  for kind, metrics in report['results'].items():
    cells = []
    for name in names:
      mean, sd = metrics[name]['mean'], metrics[name]['sd']
      text = 'undefined' if mean is None else f'{mean:.4g}'
      cells.append(text if sd is None else f'{text} ± {sd:.2g}')
    lines.append(f'{kind:<14}' + ''.join(f'{cell:>18}' for cell in cells))
  return '\n'.join(lines)


def write_report(path: pathlib.Path, report) -> None:
  """Writes a report as .json, or its metrics as .csv."""
  with whole_file.opened(path) as file:
    if path.suffix == '.json':
      json.dump(_without_nan(report), file, indent=2)
      file.write('\n')
      return
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['features', 'metric', 'mean', 'sd', 'pooled'])
    for kind, metrics in report['results'].items():
      for name, values in metrics.items():
        cells = [values['mean'], values['sd'], values['pooled']]
        writer.writerow([kind, name, *cells])


def _without_nan(value):
  if isinstance(value, dict):
    return {key: _without_nan(x) for key, x in value.items()}
  return None if isinstance(value, float) and value != value else value


def write_predictions(path, ids, clusters, fold_P, labels, outputs):
  """Writes a row a protein: what each kind of features predicts of it."""
  columns = {}
  for kind, x in outputs.items():
    if labels.classes:
      columns[kind] = [labels.classes[c] for c in x.argmax(axis=1)]
      columns[f'{kind} probability'] = [f'{p:.4f}' for p in x.max(axis=1)]
    else:
      columns[kind] = [f'{value:.6g}' for value in x]
  with whole_file.opened(path) as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['id', 'cluster', 'fold', 'label', *columns])
    for p, id_ in enumerate(ids):
      label = labels.values[p]
      label = labels.classes[label] if labels.classes else f'{label:.6g}'
      cells = [column[p] for column in columns.values()]
      writer.writerow([id_, clusters[p], fold_P[p], label, *cells])
