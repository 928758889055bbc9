"""Compares two trained models: python -m protein_lm.compare RUN_A RUN_B

Both score the same residues: those of the splits of RUN_A's data, or of a file
(--fasta). Differences are of A from B, in nats per residue, with a paired
bootstrap over clusters of proteins: each draw takes the same clusters for both,
so that what makes a protein hard for both cancels.
"""

import dataclasses
import json
import math
import os
import pathlib

import numpy as np
from absl import flags

from protein_lm import cli, evaluation_table


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two models on the same residues.

  Attributes:
    split: name of the proteins.
    objective: 'causal', or 'masked' (five masks of 15 %, those of evaluation).
    a: which model, step and attention.
    b: the other one.
    num_residues: scored, of a masked model once for each mask.
    num_proteins: with a residue that is scored.
    num_clusters: of these proteins.
    nats_a: mean nats per residue.
    nats_b: of the other one.
    difference: nats_a - nats_b; below 0 A is better.
    low: of the 95 % interval of the difference; None with one cluster.
    high: of the same.
    share_a_better: of the draws of the bootstrap.
  """

  split: str
  objective: str
  a: str
  b: str
  num_residues: int
  num_proteins: int
  num_clusters: int
  nats_a: float
  nats_b: float
  difference: float
  low: float | None
  high: float | None
  share_a_better: float | None

  def __str__(self):
    word = 'masked residue' if self.objective == 'masked' else 'residue'
    text = (
      f'{self.split}: {self.num_residues:,} {word}s of {self.num_proteins:,} '
      f'proteins in {self.num_clusters:,} clusters\n'
      f'  A {self.a}: perplexity {math.exp(self.nats_a):.3f}\n'
      f'  B {self.b}: perplexity {math.exp(self.nats_b):.3f}\n'
      f'  A - B: {self.difference:+.4f} nats per {word}, perplexity ratio '
      f'A / B {math.exp(self.difference):.4f}'
    )
    if self.low is None:
      return text + '\n  no interval: there is one cluster'
    return text + (
      f'\n  95 % intervals: {self.low:+.4f} to {self.high:+.4f} nats, ratio '
      f'{math.exp(self.low):.4f} to {math.exp(self.high):.4f}'
      f'\n  A is better in {self.share_a_better:.1%} of the draws'
    )


def compare(
  work_dir_a,
  work_dir_b,
  *,
  step_a='latest',
  step_b='latest',
  splits=None,
  fasta=None,
  gin_bindings=(),
  batch_size=None,
  num_devices=None,
):
  """Compares two checkpoints, residue by residue.

  Args:
    work_dir_a: the folder of a run, whose data is used.
    work_dir_b: that of another, or the same.
    step_a: a number, 'latest' or 'best'.
    step_b: the same of B.
    splits: names; None for those of test and ood that exist.
    fasta: a file to score instead of splits.
    gin_bindings: on top of B's configuration and of A's.
    batch_size: rows of a batch; None for what suits the device.
    num_devices: over which they are cut; None as Scorer chooses.

  Returns:
    A Comparison for each split.

  Raises:
    ValueError: one is causal and the other masked, or there is no such split.

  Example:
    for found in compare('runs/a', 'runs/b', splits=['test']):
      print(found)
  """
  from protein_lm import config, loading
  from protein_lm.attention_name import describe
  from protein_lm.evaluation_proteins import choose_proteins
  from protein_lm.scorer import Scorer, check_objective

  if splits is not None and fasta is not None:
    raise ValueError('--splits and --fasta exclude each other: leave one out.')
  options = dict(batch_size=batch_size, num_devices=num_devices)
  # Each is read under its own configuration, the second one after the first.
  scorers, names, data = [], [], None
  for work_dir, step in ((work_dir_a, step_a), (work_dir_b, step_b)):
    with config.isolated():
      loaded = loading.load(work_dir, step, gin_bindings)
      check_objective(loaded)
      if scorers:
        _check_pair(scorers[0].loaded, loaded, data)
      else:
        data, _, proteins = choose_proteins(loaded, splits, fasta)
      its_data = None if scorers else data
      scorers.append(Scorer(loaded, data=its_data, **options))
      names.append(f'{work_dir} ({describe(loaded)})')
  return [_compare(scorers, names, split, x) for split, x in proteins.items()]


def _check_pair(a, b, data):
  """Refuses what cannot be compared; warns of what should not be."""
  kinds = [x.model.objective for x in (a, b)]
  if kinds[0] != kinds[1]:
    raise ValueError(
      f'{a.work_dir} is {kinds[0]} and {b.work_dir} is {kinds[1]}: their '
      'perplexities are of different questions and cannot be compared.'
    )
  saved = b.metadata.get('data_fingerprint')
  if data is not None and saved not in (None, data.fingerprint):
    print(
      f'warning: {b.work_dir} was trained on other data than {data.name}, and '
      'may have seen proteins of these splits',
      flush=True,
    )
  lengths = [x.data_arguments.get('max_len') for x in (a, b)]
  if lengths[0] != lengths[1]:
    print(
      f'warning: data.max_len is {lengths[0]} in A and {lengths[1]} in B, '
      'which read long proteins in other windows',
      flush=True,
    )


def _compare(scorers, names, split, proteins) -> Comparison:
  """Scores a split with both, and draws clusters."""
  from protein_lm import bootstrap, per_sequence

  sums = []
  for scorer in scorers:
    parts = [
      per_sequence.sums(scorer.score(proteins, k=k), proteins)[:2]
      for k in scorer.masks
    ]
    sums.append([sum(part) for part in zip(*parts, strict=True)])
  (count_P, nats_a_P), (_, nats_b_P) = sums
  is_there = count_P > 0
  clusters = [
    name
    for name, there in zip(proteins.clusters, is_there, strict=True)
    if there
  ]
  low = high = share = None
  sums_PQ = np.stack([count_P, nats_a_P - nats_b_P], axis=-1)[is_there]
  if len(set(clusters)) > 1:
    count_R, nats_R = bootstrap.draw_sums(sums_PQ, clusters).T
    low, high = bootstrap.interval(nats_R / count_R)
    share = float((nats_R < 0).mean())
  total = float(count_P.sum())
  return Comparison(
    split,
    scorers[0].loaded.model.objective,
    *names,
    int(total),
    int(is_there.sum()),
    len(set(clusters)),
    float(nats_a_P.sum() / total),
    float(nats_b_P.sum() / total),
    float(sums_PQ[:, 1].sum() / total),
    low,
    high,
    share,
  )


def _main(argv):
  from protein_lm import cores

  args = flags.FLAGS
  if len(argv) != 3:
    raise ValueError(
      f'name two folders, as in python -m protein_lm.compare runs/a runs/b; '
      f'got {len(argv) - 1}.'
    )
  cores.make_devices()
  out = args.out and pathlib.Path(os.path.expanduser(args.out))
  if out and out.exists() and not args.overwrite:
    raise FileExistsError(f'{out} exists; choose another name or --overwrite')
  found = compare(
    *argv[1:],
    step_a=cli.parse_step(args.step_a, 'step_a'),
    step_b=cli.parse_step(args.step_b, 'step_b'),
    splits=args.splits,
    fasta=args.fasta and os.path.expanduser(args.fasta),
    gin_bindings=args.gin_bindings,
    batch_size=args.batch_size,
    num_devices=args.num_devices,
  )
  for comparison in found:
    print(comparison)
  if out:
    rows = [dataclasses.asdict(comparison) for comparison in found]
    evaluation_table.replace(out, json.dumps(rows, indent=1) + '\n')
    print(f'wrote {out}')


def main():
  """Defines the flags and runs; the console script protein-lm-compare."""
  flags.DEFINE_string('step_a', 'latest', 'A number, latest or best.')
  flags.DEFINE_string('step_b', 'latest', 'A number, latest or best.')
  flags.DEFINE_list('splits', None, 'Such as test,ood (those, by default).')
  flags.DEFINE_string('fasta', None, 'Score the proteins of this file instead.')
  flags.DEFINE_multi_string(
    'gin_bindings', [], "Bindings on top of both runs' configurations."
  )
  flags.DEFINE_integer('batch_size', None, 'Rows of a batch.', lower_bound=1)
  flags.DEFINE_integer(
    'num_devices',
    None,
    'Devices to use; by default all accelerators, or cores of the CPU.',
    lower_bound=1,
  )
  flags.DEFINE_string('out', None, 'A JSON file to write too.')
  flags.DEFINE_bool('overwrite', False, 'Replace a file that exists.')
  cli.run(_main, takes_arguments=True)


if __name__ == '__main__':
  main()
