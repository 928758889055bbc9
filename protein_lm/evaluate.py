"""Evaluates a trained model: python -m protein_lm.evaluate --work_dir=D

Scores every residue of test and ood (of --splits, or of a file, --fasta) once,
prints a table with the baselines beside the model, and writes into D

    evaluation.json, evaluation.csv     a row for each model and baseline
    per_sequence_SPLIT.csv, .parquet    a row for each protein
    evaluation_kernel_error.json        with --attention: a row for each layer
    *.png                               figures

Evaluating again, other steps or another attention

    --step=all --attention=exact,softmax

adds its rows to what is there. --follow evaluates the checkpoints of a run that
is going on.
"""

import os
import pathlib

from absl import flags

from protein_lm import cli

ATTENTIONS = {
  'exact': '@exact_attention()',
  'softmax': '@make_fast_softmax_attention()',
  'generalized': '@make_fast_generalized_attention()',
}


def __getattr__(name):
  # Lazy: the names of attentions need JAX, and --help does not.
  if name in ('attention_name', 'describe'):
    from protein_lm import attention_name

    return getattr(attention_name, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def evaluate(
  work_dir,
  step='latest',
  splits=None,
  gin_bindings=(),
  *,
  fasta=None,
  attention=(),
  num_projections=None,
  num_pseudo=None,
  batch_size=None,
  num_devices=None,
  follow=False,
):
  """Scores checkpoints and baselines; writes rows and figures into work_dir.

  Args:
    work_dir: the folder of a run.
    step: a number, 'latest', 'best', 'all', or a list of numbers.
    splits: names of splits; None for those of test and ood that exist.
    gin_bindings: bindings on top of the run's, such as another attention.
    fasta: a file to evaluate instead of splits, a split named after it.
    attention: kinds to compare, of ATTENTIONS, each as the run's configuration
      has it; () for that of the run.
    num_projections: draws of the random projection, over which mean and spread
      of perplexity are taken, its own among them; 1 for no others. None takes 5
      on a fixed sample of a split.
    num_pseudo: of a masked model, the proteins of each split whose
      pseudo-perplexity is computed; None for none.
    batch_size: rows of a batch; None for what suits the device.
    num_devices: over which the rows are cut; None as Scorer chooses.
    follow: evaluate the checkpoints of a run as they appear, until it ends.

  Returns:
    (rows of this evaluation and earlier ones on the same splits and steps,
    paths of the files written).

  Raises:
    ValueError: for a step, split or kind of attention that does not exist, and
      for arguments that contradict each other.

  Example:
    rows, paths = evaluate('runs/quickstart', splits=['test'])
  """
  from protein_lm import evaluation_figures, evaluation_files, loading
  from protein_lm.checkpoint import CheckpointError
  from protein_lm.evaluator import Evaluator

  work_dir = pathlib.Path(work_dir)
  if splits is not None and fasta is not None:
    raise ValueError('--splits and --fasta exclude each other: leave one out.')
  variants = _variants(attention, gin_bindings)
  steps, are_several = _steps(work_dir, step, follow)
  evaluator, findings, done, paths = None, None, [], {}
  try:
    for number in steps:
      found = evaluation_files.Findings()
      try:
        for bindings in variants:
          loaded = loading.load(work_dir, number, bindings)
          if evaluator is None:
            _warn_of_unused(bindings)
            evaluator = Evaluator(
              loaded,
              splits=splits,
              fasta=fasta,
              num_projections=num_projections,
              num_pseudo=num_pseudo,
              batch_size=batch_size,
              num_devices=num_devices,
            )
            evaluation_files.check(work_dir, evaluator.splits)
          evaluator.evaluate(loaded, found, with_kernel_error=bool(attention))
      except CheckpointError as error:
        if not are_several:
          raise
        print(f'warning: step {number} is left out: {error}')
        continue
      paths |= dict.fromkeys(found.write(work_dir))
      findings = found
      done.append(loaded.step)
  except KeyboardInterrupt:
    if not (follow and done):
      raise
    print(f'\nended by hand after {len(done)} checkpoints', flush=True)
  if not done:
    raise ValueError(f'no checkpoint of {work_dir} could be evaluated.')
  paths |= dict.fromkeys(evaluation_figures.draw(work_dir, findings, evaluator))
  return evaluator.rows_of(work_dir, done), list(paths)


def _variants(attention, gin_bindings):
  """The bindings of each kind of attention to compare."""
  for kind in attention:
    if kind not in ATTENTIONS:
      raise ValueError(
        f'there is no attention {kind!r}; the kinds are '
        f'{", ".join(ATTENTIONS)}, and --gin_bindings takes any other.'
      )
  if not attention:
    return [tuple(gin_bindings)]
  return [
    (*gin_bindings, f'FlaxModel.attention_fn = {ATTENTIONS[kind]}')
    for kind in dict.fromkeys(attention)
  ]


def _steps(work_dir, step, follow):
  """(steps to evaluate, whether one that fails is passed over)."""
  from protein_lm import follow as follow_lib

  if follow:
    if step not in ('latest', 'all'):
      raise ValueError(f'--follow takes every step, got --step={step}.')
    return follow_lib.follow_steps(work_dir), True
  if step == 'all':
    return follow_lib.good_steps(work_dir) or ['latest'], True
  if isinstance(step, list | tuple):
    return step, False
  return [step], False


def _warn_of_unused(bindings):
  from protein_lm import config

  bound = '\n'.join(bindings)
  if unused := [x for x in config.unused_bindings() if x in bound]:
    print(f'warning: nothing used {"; ".join(unused)}')


def _one_pass(work_dir, step, id_or_path, gin_bindings):
  from protein_lm import loading, one_pass
  from protein_lm.attention_name import describe

  loaded = loading.load(work_dir, step, gin_bindings)
  data = loaded.open_data()
  loaded = loading.calibrated(loaded, data)
  protein = one_pass.find_protein(id_or_path, data)
  print(describe(loaded), flush=True)
  return one_pass.score_one_pass(
    loaded.make_score_step(),
    loaded.weights,
    protein,
    is_masked=loaded.model.objective == 'masked',
  )


def parse_step(text: str):
  """What --step says: a word, a number, or several numbers.

  Raises:
    ValueError: it is none of these.
  """
  if text in ('latest', 'best', 'all'):
    return text
  parts = [part.strip() for part in text.split(',')]
  if not all(part.isdecimal() for part in parts):
    raise ValueError(
      f'--step is a number, several such as 100,200, latest, best or all, got '
      f'{text!r}'
    )
  numbers = sorted({int(part) for part in parts})
  return numbers[0] if len(numbers) == 1 else numbers


class _NumProteins(flags.Flag):
  """--pseudo_perplexity alone, or with =NUM_PROTEINS."""

  def __init__(self):
    super().__init__(
      flags.ArgumentParser(),
      flags.ArgumentSerializer(),
      'pseudo_perplexity',
      None,
      'Of a masked model, also pseudo-perplexity, on so many proteins of each '
      'split (20); the cost is printed first.',
    )
    self.boolean = True  # needs no value

  def _parse(self, argument):
    from protein_lm.pseudo_perplexity import NUM_PROTEINS

    if argument in (None, 'false'):
      return None
    if argument == 'true':
      return NUM_PROTEINS
    if not str(argument).isdecimal() or int(argument) < 1:
      raise flags.IllegalFlagValueError(
        f'flag --pseudo_perplexity={argument}: it takes a number of proteins'
      )
    return int(argument)


def _main(argv):
  from protein_lm import cores, evaluation_table

  del argv
  cores.make_devices()
  args = flags.FLAGS
  work_dir = os.path.abspath(os.path.expanduser(args.work_dir))
  step = parse_step(args.step)
  if args.one_pass:
    if step == 'all' or isinstance(step, list):
      raise ValueError(f'--one_pass is of one step, got --step={args.step}')
    if args.splits or args.fasta or args.attention or args.follow:
      raise ValueError(
        '--one_pass takes --work_dir, --step and --gin_bindings alone.'
      )
    print(_one_pass(work_dir, step, args.one_pass, args.gin_bindings))
    return
  rows, paths = evaluate(
    work_dir,
    step,
    args.splits,
    args.gin_bindings,
    fasta=args.fasta and os.path.expanduser(args.fasta),
    attention=args.attention or (),
    num_projections=args.num_projections,
    num_pseudo=args.pseudo_perplexity,
    batch_size=args.batch_size,
    num_devices=args.num_devices,
    follow=args.follow,
  )
  print('\n' + evaluation_table.format_table(rows) + '\n')
  for path in paths:
    print(f'wrote {path}')


def main():
  """Defines the flags and runs; the console script protein-lm-evaluate."""
  cli.define_model_flags('A number, several (100,200), latest, best or all.')
  flags.DEFINE_list('splits', None, 'Such as test,ood (those, by default).')
  flags.DEFINE_string(
    'fasta', None, 'Evaluate the proteins of this file instead of splits.'
  )
  flags.DEFINE_list(
    'attention',
    None,
    f'Kinds of attention to compare on the same weights: '
    f'{", ".join(ATTENTIONS)}.',
  )
  flags.DEFINE_integer(
    'num_projections',
    None,
    'Draws of the random projection, over which mean and spread are taken, on '
    'whole splits; by default 5 on a sample. 1 for none.',
    lower_bound=1,
  )
  flags.DEFINE_flag(_NumProteins())
  flags.DEFINE_bool(
    'follow', False, 'Evaluate the checkpoints of a run as they appear.'
  )
  flags.DEFINE_integer('batch_size', None, 'Rows of a batch.', lower_bound=1)
  flags.DEFINE_integer(
    'num_devices',
    None,
    'Devices to use; by default all accelerators, or cores of the CPU.',
    lower_bound=1,
  )
  flags.DEFINE_string(
    'one_pass',
    None,
    'Score one protein without windows instead: an id of any split, or a FASTA '
    'file, whose longest protein is taken.',
  )
  cli.run(_main)


if __name__ == '__main__':
  main()
