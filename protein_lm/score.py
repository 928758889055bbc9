"""Scores sequences or variants: python -m protein_lm.score --work_dir=D --out=O

    --fasta=F                log-likelihood of every record, EOS beside it; of a
                             masked model the pseudo-log-likelihood
    --mutations=dms.csv      effect of every variant (mutation_table.py says
                             what is read), with Spearman, NDCG and AUC if there
                             are measurements
    --mutations=folder       the same of every table in it; O is a folder then,
                             with a table each and summary.csv

Strategies are those of scoring.py; the one that was used is in the output. What
is written is complete or not there.
"""

import functools
import os
import pathlib
import sys

from absl import flags

from protein_lm import cli, score_tables, whole_file


def score_fasta(
  work_dir,
  fasta,
  out,
  *,
  step='latest',
  gin_bindings=(),
  batch_size=None,
  max_len=None,
  skip_bad=False,
  overwrite=False,
):
  """Writes the log-likelihood of every record of a FASTA file.

  Args:
    work_dir: the folder of a run.
    fasta: path of a file, plain or gzip; equal sequences have a row each.
    out: path of the CSV to write; columns as scoring.score_sequences says.
    step: a number, 'latest' or 'best'.
    gin_bindings: bindings on top of the run's, such as another attention.
    batch_size: see scoring.score_sequences, like max_len.
    max_len: tokens of a window.
    skip_bad: leave out records that cannot be read, instead of stopping.
    overwrite: replace what is there.

  Returns:
    The rows.

  Raises:
    OSError: out exists, or its folder does not.
    ValueError: the file cannot be read, or the model has no likelihoods.
  """
  from protein_lm import fasta_records, loading, scoring
  from protein_lm.attention_name import describe

  out = score_tables.check_out(out, overwrite, is_folder=False)
  records = fasta_records.read(fasta, skip_bad)
  loaded = loading.load(work_dir, step, gin_bindings)
  scoring.choose_strategy('auto', loaded)
  cost = ''
  if loaded.model.objective == 'masked':
    passes = sum(len(sequence) for _, sequence in records)
    cost = f', {passes:,} passes, one for each residue'
  print(f'{describe(loaded)}: {len(records):,} sequences{cost}', flush=True)
  rows = scoring.score_sequences(
    loaded,
    [sequence for _, sequence in records],
    batch_size=batch_size,
    max_len=max_len,
    progress=functools.partial(_bar, 'sequences'),
  )
  rows = [
    row | {'id': id_} for row, (id_, _) in zip(rows, records, strict=True)
  ]
  with whole_file.written(out) as path:
    score_tables.write_rows(path, list(rows[0]), rows)
  return rows


def score_mutations(
  work_dir,
  mutations,
  out,
  *,
  wild_type=None,
  strategy='auto',
  offset=0,
  step='latest',
  gin_bindings=(),
  batch_size=None,
  max_len=None,
  skip_bad=False,
  overwrite=False,
):
  """Writes tables with the columns of others, and a score for each variant.

  Args:
    work_dir: the folder of a run.
    mutations: path of a table, or a folder of them (mutation_table.py).
    out: path of the CSV to write, or of the folder.
    wild_type: a sequence, a FASTA file, or a CSV with target_seq
      (wild_types.py); None to take it from mutated_sequence.
    strategy: see scoring.score_variants, like offset, batch_size, max_len.
    offset: what is taken from each position to count from 1.
    step: a number, 'latest' or 'best'.
    gin_bindings: bindings on top of the run's, such as another attention.
    batch_size: rows of a pass.
    max_len: tokens of a window.
    skip_bad: leave the score of rows that have none empty, and write why,
      instead of stopping.
    overwrite: replace what is there.

  Returns:
    A dict a table: file, num_variants, num_scored, strategy, and what
    ranking.rank_metrics gives where there are measurements; of a folder, their
    means in a last one.

  Raises:
    OSError: out exists, or its folder does not.
    ValueError: a table cannot be read, or a row cannot be scored.
  """
  from protein_lm import loading, mutation_folder, scoring
  from protein_lm.attention_name import describe

  mutations = pathlib.Path(mutations)
  is_folder = mutations.is_dir()
  out = score_tables.check_out(out, overwrite, is_folder)
  tables = mutation_folder.read(mutations, wild_type, offset, skip_bad)
  loaded = loading.load(work_dir, step, gin_bindings)
  strategy = scoring.choose_strategy(strategy, loaded)
  if strategy in scoring.MARGINALS:
    for table in tables:
      table.refuse_indels(scoring.indels_refused(strategy, loaded), skip_bad)
  shape = scoring.shape_of(loaded, batch_size, max_len)
  loaded = scoring.ready(loaded)
  print(f'{describe(loaded)}, {strategy}', flush=True)
  scores = [_score_table(loaded, strategy, shape, table) for table in tables]
  if not is_folder:
    with whole_file.written(out) as path:
      return [score_tables.write_table(path, tables[0], *scores[0], skip_bad)]
  summary = []
  with whole_file.written_folder(out) as folder:
    for table, its in zip(tables, scores, strict=True):
      path = folder / f'{table.name}.csv'
      summary.append(score_tables.write_table(path, table, *its, skip_bad))
    summary.append(score_tables.mean(summary))
    score_tables.write_rows(
      folder / 'summary.csv', score_tables.SUMMARY, summary
    )
  return summary


def _score_table(loaded, strategy, shape, table):
  """The scores, NaN for rows without one, and the strategy as it is told."""
  import numpy as np

  from protein_lm import scoring

  where = [n for n, v in enumerate(table.variants) if v is not None]
  variants = [table.variants[n] for n in where]
  passes = scoring.num_passes(variants, strategy, table.wild_type)
  print(
    f'{table.path.name}: {len(variants):,} variants, {passes:,} passes',
    flush=True,
  )
  if table.wild_type is None:
    strategy += ' without wild type'
    print(
      f'{table.path.name} names no wild type: its scores are log-likelihoods, '
      'not ratios, which rank alike; --wild_type gives ratios'
    )
  scores = np.full(len(table), np.nan)
  if where:
    scores[where] = scoring.score_read_variants(
      loaded,
      table.wild_type,
      variants,
      strategy.partition(' ')[0],
      shape,
      functools.partial(_bar, table.path.name),
    )
  return scores, strategy


def _bar(name, batches):
  from tqdm import tqdm

  return tqdm(
    batches,
    desc=name,
    unit='batch',
    leave=False,
    disable=not sys.stderr.isatty(),
  )


def _main(argv):
  del argv
  args = flags.FLAGS
  if (args.fasta is None) == (args.mutations is None):
    raise ValueError('give --fasta or --mutations, one of them')
  options = {
    'step': cli.parse_step(args.step),
    'gin_bindings': args.gin_bindings,
    'batch_size': args.batch_size,
    'max_len': args.max_len,
    'skip_bad': args.skip_bad,
    'overwrite': args.overwrite,
  }
  work_dir = os.path.abspath(os.path.expanduser(args.work_dir))
  out = os.path.expanduser(args.out)
  if args.fasta is not None:
    for name in ('wild_type', 'strategy', 'offset'):
      if args[name].present:
        raise ValueError(f'--{name} is of --mutations, not of --fasta')
    fasta = os.path.expanduser(args.fasta)
    rows = score_fasta(work_dir, fasta, out, **options)
    print(f'wrote scores of {len(rows):,} sequences to {out}')
    return
  summary = score_mutations(
    work_dir,
    os.path.expanduser(args.mutations),
    out,
    wild_type=args.wild_type,
    strategy=args.strategy,
    offset=args.offset,
    **options,
  )
  if table := score_tables.format_summary(summary):
    print(f'\n{table}\n')
  print(f'wrote scores of {summary[-1]["num_scored"]:,} variants to {out}')


def main():
  """Defines the flags and runs; the console script protein-lm-score."""
  cli.define_model_flags()
  flags.DEFINE_string('out', None, 'Table or folder to write.', required=True)
  flags.DEFINE_string('fasta', None, 'Sequences to score.')
  flags.DEFINE_string('mutations', None, 'A table of variants, or a folder.')
  flags.DEFINE_string(
    'wild_type',
    None,
    'A sequence, a FASTA file, or a CSV with DMS_id and target_seq; by default '
    'it follows from mutant and mutated_sequence.',
  )
  flags.DEFINE_string(
    'strategy',
    'auto',
    'masked-marginal, wild-type-marginal, pseudo-likelihood (masked models), '
    'likelihood (causal models); auto is the first or the last.',
  )
  flags.DEFINE_integer(
    'offset',
    0,
    'Taken from each position to count residues from 1: 23 if the first '
    'residue is called 24.',
  )
  flags.DEFINE_integer('batch_size', None, 'Rows of a pass.', lower_bound=1)
  flags.DEFINE_integer(
    'max_len', None, 'Tokens of a window, for longer proteins.', lower_bound=1
  )
  flags.DEFINE_bool('skip_bad', False, 'Go on where a row has no score.')
  flags.DEFINE_bool('overwrite', False, 'Replace what exists.')
  cli.run(_main)


if __name__ == '__main__':
  main()
