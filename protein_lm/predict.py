"""Predicts labels: python -m protein_lm.predict --work_dir=D --fasta=F --out=O

D is the folder of a FlaxRegressor or FlaxClassifier. Writes a table with the
header id,prediction (a number; numbers parted by ';' where residues have
labels), or for classes id,prediction,probability (names, of residues one letter
each, and the probability of what is predicted, of residues its mean). A protein
longer than data.max_len is read in windows, whose outputs are averaged. Nothing
is predicted for the residues B X Z: '.' or nothing.
"""

import csv
import math
import os
import pathlib

import numpy as np
from absl import flags

from protein_lm import cli, whole_file


def predict(work_dir, fasta, out, step='latest', overwrite=False):
  """Writes the predictions for the proteins of a FASTA file.

  Args:
    work_dir: the folder of a run with labels.
    fasta: path of a file, plain or gzip; equal sequences are read once.
    out: path of the table to write; it exists completely or not at all.
    step: a step, 'latest' or 'best'.
    overwrite: replace what is there.

  Returns:
    The number of proteins.

  Raises:
    FileExistsError: out exists, and overwrite is False.
    ValueError: the run is of another kind, or the file cannot be read.
  """
  from protein_lm import label_evaluation, loading
  from protein_lm.data import EvalBatches
  from protein_lm.proteins import read_fasta

  out = pathlib.Path(out)
  if out.exists() and not overwrite:
    raise FileExistsError(f'{out} exists; choose another name or --overwrite')
  loaded = loading.load(work_dir, step)
  facts = loaded.metadata.get('labels')
  if not facts:
    raise ValueError(
      f'{work_dir} holds a {type(loaded.model).__name__} that was trained on '
      'no labels; predict with a FlaxRegressor or FlaxClassifier.'
    )
  proteins = read_fasta(fasta)
  outputs = label_evaluation.predict(
    loaded.make_score_step(),
    loaded.weights,
    EvalBatches(
      proteins,
      loaded.data_arguments.get('batch_size', 32),
      loaded.data_arguments.get('max_len', 512),
    ),
    proteins,
    facts['per'],
  )
  with whole_file.opened(out) as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(_HEADER[: 3 if 'classes' in facts else 2])
    for p, id_ in enumerate(proteins.ids):
      where = slice(p, p + 1)
      if facts['per'] == 'residue':
        where = slice(*proteins.offsets[p : p + 2])
      writer.writerow([id_, *_cells(outputs[where], facts)])
  return len(proteins)


_HEADER = ('id', 'prediction', 'probability')


def _cells(outputs_IC, facts):
  """The cells of a protein."""
  from protein_lm import label_evaluation

  known_I = ~np.isnan(outputs_IC[:, 0])
  if 'classes' not in facts:
    values = label_evaluation.to_labels(outputs_IC, facts)
    return [';'.join('' if math.isnan(x) else f'{x:.6g}' for x in values)]
  log_p_IC = outputs_IC[known_I]
  log_p_IC -= np.logaddexp.reduce(log_p_IC, axis=1, keepdims=True)
  names = np.full(len(outputs_IC), '.', object)
  names[known_I] = np.array(facts['classes'], object)[log_p_IC.argmax(1)]
  probability = np.exp(log_p_IC.max(1)).mean() if known_I.any() else math.nan
  return [''.join(names), f'{probability:.4f}']


def _main(argv):
  del argv
  args = flags.FLAGS
  out = os.path.expanduser(args.out)
  number = predict(
    os.path.abspath(os.path.expanduser(args.work_dir)),
    os.path.expanduser(args.fasta),
    out,
    cli.parse_step(args.step),
    args.overwrite,
  )
  print(f'wrote predictions of {number:,} proteins to {out}')


def main():
  """Defines the flags and runs; the console script protein-lm-predict."""
  flags.DEFINE_string('work_dir', None, 'Folder of the run.', required=True)
  flags.DEFINE_string('fasta', None, 'Proteins to predict.', required=True)
  flags.DEFINE_string('out', None, 'Table to write.', required=True)
  flags.DEFINE_string('step', 'latest', 'A number, latest or best.')
  flags.DEFINE_bool('overwrite', False, 'Replace a file that exists.')
  cli.run(_main)


if __name__ == '__main__':
  main()
