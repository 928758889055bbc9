"""Probes embeddings: python -m protein_lm.probe --work_dir=D --fasta=F ...

Predicts labels of proteins (--labels=L, a table id,label) from their embeddings
by ridge or logistic regression, cross-validated over clusters of similar
proteins, beside two baselines that need no model: the amino-acid composition,
and the letters themselves. --embeddings=E.npz takes what the command embed
wrote instead of a model.
"""

import os
import sys

import numpy as np
from absl import flags

from protein_lm import cli, probe_report


def probe(
  *,
  fasta,
  labels,
  work_dir=None,
  embeddings=None,
  features='mean_-1',
  column='label',
  task='auto',
  folds=5,
  clusters=None,
  out=None,
  step='latest',
  gin_bindings=(),
  overwrite=False,
):
  """Cross-validates a probe of embeddings, and the baselines.

  Args:
    fasta: path of the proteins, plain or gzip.
    labels: path of a table, comma or tab separated, whose header names `id` and
      column.
    work_dir: the folder of a run; or
    embeddings: path of a file that the command embed wrote.
    features: which vectors, mean, max, last or bos, and the layer.
    column: of the labels.
    task: 'regression', 'classification' or 'auto' (probing.parse_labels).
    folds: of the cross-validation.
    clusters: as of probe_features.clusters_of.
    out: path of a report, .json or .csv; predictions go beside it, into
      <name>_predictions.csv. None writes nothing.
    step: as of loading.load.
    gin_bindings: bindings on top of the run's.
    overwrite: replace what is there.

  Returns:
    The report: counts, and for each kind of features the metrics
    (probe_metrics.summarize) and the chosen penalties.

  Raises:
    FileExistsError: out exists, and overwrite is False.
    ValueError: an argument or a file is wrong, labels are all alike, clusters
      are fewer than folds.

  Example:
    report = probe(work_dir='runs/quickstart', fasta='my.fasta',
                   labels='labels.csv')
    report['results']['embedding']['spearman']['mean']
  """
  from protein_lm import id_table, probe_features, probe_metrics, probing

  paths = probe_report.check_out(out, overwrite)
  if (work_dir is None) == (embeddings is None):
    raise ValueError('give either --work_dir or --embeddings.')
  if task not in ('auto', *probe_metrics.METRICS):
    raise ValueError(
      f'--task must be auto, regression or classification, got {task!r}.'
    )
  rows = id_table.read(labels, column.lower())
  num_rows = len(rows)
  sequences = _read_fasta(fasta)
  ids, parsed = probing.parse_labels(rows, task)
  num_labels = len(ids)
  ids = [id_ for id_ in sequences if id_ in set(ids)]
  if not ids:
    raise ValueError(
      f'no id of {labels} (the first is {next(iter(rows))!r}) is in {fasta} '
      f'(the first is {next(iter(sequences))!r}).'
    )
  _, parsed = probing.parse_labels({id_: rows[id_] for id_ in ids}, parsed.task)
  its_sequences = [sequences[id_] for id_ in ids]
  its_clusters = probe_features.clusters_of(ids, its_sequences, clusters)
  fold_P = probing.make_folds(its_clusters, parsed, folds)
  report = {
    'task': parsed.task,
    'column': column,
    'num_proteins': len(ids),
    'num_clusters': len(set(its_clusters)),
    'folds': folds,
    'num_without_label': num_rows - num_labels,
    'num_labels_without_sequence': num_labels - len(ids),
    'num_sequences_without_label': len(sequences) - len(ids),
  }
  if parsed.classes:
    counts = np.bincount(parsed.values)
    report['classes'] = dict(zip(parsed.classes, counts.tolist(), strict=True))
    report['largest_class_share'] = float(counts.max() / len(ids))
  print(probe_report.count_line(report), flush=True)

  if embeddings is not None:
    vectors = _stored(embeddings, features, ids)
  else:
    proteins = dict(zip(ids, its_sequences, strict=True))
    vectors = _embed(work_dir, step, gin_bindings, proteins, features)
  name, letters = probe_features.one_hot(its_sequences)
  kinds = {
    'embedding': vectors,
    'composition': probe_features.composition(its_sequences),
    name: letters,
  }
  report['features'] = features
  report['results'], report['penalties'], outputs = {}, {}, {}
  for kind, matrix in kinds.items():
    with _bar(kind, folds) as bar:
      result = probing.cross_validate(
        matrix, parsed, its_clusters, fold_P, after_fold=bar.update
      )
    report['results'][kind] = probe_metrics.summarize(
      result.outputs, parsed, fold_P
    )
    report['penalties'][kind] = result.penalties
    outputs[kind] = result.outputs
  if paths:
    probe_report.write_report(paths[0], report)
    probe_report.write_predictions(
      paths[1], ids, its_clusters, fold_P, parsed, outputs
    )
  return report


def _read_fasta(fasta):
  from protein_lm import vocab
  from protein_lm.fasta_stream import FastaStream

  stream = FastaStream(fasta)
  print(f'{fasta}: {stream.tally.summary()}', flush=True)
  return {id_: vocab.decode(residues) for id_, residues in stream}


def _stored(path, features, ids):
  """Vectors of some ids in a file."""
  from protein_lm import embedding_file

  stored_ids, vectors = embedding_file.read(path, features)
  row_of = {id_: row for row, id_ in enumerate(stored_ids)}
  lacking = [id_ for id_ in ids if id_ not in row_of]
  if lacking:
    raise ValueError(
      f'{path} lacks {len(lacking):,} of {len(ids):,} labelled proteins, first '
      f'{lacking[0]!r}; embed {"this" if len(lacking) < len(ids) else "the"} '
      'FASTA file again.'
    )
  return vectors[[row_of[id_] for id_ in ids]]


def _embed(work_dir, step, gin_bindings, proteins, features):
  """Vectors of proteins, [P, D]."""
  from protein_lm import embedder as embedder_lib
  from protein_lm import loading, vocab
  from protein_lm.embedding_arrays import combine

  kind, _, layer = features.rpartition('_')
  if (
    kind not in embedder_lib.INCLUDE or kind == 'per_tok' or not _is_int(layer)
  ):
    raise ValueError(
      '--features must be mean, max, last or bos and a layer, such as mean_-1, '
      f'got {features!r}.'
    )
  embedder = embedder_lib.Embedder.of(
    loading.load(work_dir, step, gin_bindings),
    repr_layers=(int(layer),),
    include=(kind,),
  )
  ids = list(proteins)
  encoded = [vocab.encode(sequence) for sequence in proteins.values()]
  batches = embedder.plan(encoded)
  outputs = embedder.run(batches, ids, encoded)
  with _bar('embedding', len(batches)) as bar:
    outputs = []
    for output in embedder.run(batches, ids, encoded):
      outputs.append(output)
      bar.update()
  return np.stack([x[features] for x in combine(len(ids), batches, outputs)])


def _bar(description, total):
  from tqdm import tqdm

  return tqdm(
    total=total,
    desc=description,
    leave=False,
    disable=not sys.stderr.isatty(),
  )


def _is_int(text):
  return text.removeprefix('-').isdecimal()


def _main(argv):
  del argv
  from protein_lm import compilation

  args = flags.FLAGS
  compilation.enable_cache()
  paths = {
    name: getattr(args, name) and os.path.expanduser(getattr(args, name))
    for name in ('work_dir', 'embeddings', 'fasta', 'labels', 'clusters', 'out')
  }
  report = probe(
    **paths,
    features=args.features,
    column=args.column,
    task=args.task,
    folds=args.folds,
    step=cli.parse_step(args.step),
    gin_bindings=args.gin_bindings,
    overwrite=args.overwrite,
  )
  print('\n' + probe_report.format_report(report) + '\n')
  if paths['out']:
    print(f'wrote {paths["out"]} and its predictions beside it')


def main():
  """Defines the flags and runs; the console script protein-lm-probe."""
  flags.DEFINE_string('fasta', None, 'Proteins.', required=True)
  flags.DEFINE_string('labels', None, 'Table of id and label.', required=True)
  cli.define_model_flags(is_required=False)
  flags.DEFINE_string('embeddings', None, 'What embed wrote, for --work_dir.')
  flags.DEFINE_string('features', 'mean_-1', 'Kind of vector and layer.')
  flags.DEFINE_string('column', 'label', 'Of the labels.')
  flags.DEFINE_string('task', 'auto', 'auto, regression or classification.')
  flags.DEFINE_integer('folds', 5, 'Of the cross-validation.')
  flags.DEFINE_string(
    'clusters',
    None,
    'A cluster.tsv of MMseqs2; none for no clusters; by default proteins that '
    'share 8-mers are together.',
  )
  flags.DEFINE_string('out', None, 'Report to write, .json or .csv.')
  flags.DEFINE_bool('overwrite', False, 'Replace files that exist.')
  cli.run(_main)


if __name__ == '__main__':
  main()
