"""Makes proteins: python -m protein_lm.sample --work_dir=D --out=F.fasta

A FlaxLM writes them from nothing or from a --prompt:

    --num_samples=64 --max_len=512 --temperature=0.8 --top_p=0.95

A FlaxBERT fills the gaps of one, written as _:

    --infill=MKT____LLVA --num_samples=8

Writes a FASTA file, each header with the log-probability of what was drawn, and
prints how the samples compare with the proteins of train. Sample i of a seed is
the same alone (--first=i --num_samples=1) and among others.
"""

import os
import pathlib
import sys
import textwrap
import time

from absl import flags

from protein_lm import cli, whole_file

_COLUMNS = 60  # letters of a line
# Settings of both kinds of sampling, and of one alone.
OF_BOTH = ('temperature', 'top_k', 'top_p', 'min_p', 'seed', 'first')
OF_BOTH += ('batch_size',)
OF_PROMPTS = ('prompt', 'max_len', 'min_len', 'repetition_penalty')
OF_GAPS = ('num_sweeps',)


def sample(
  work_dir,
  out,
  num_samples=1,
  *,
  infill=None,
  step='latest',
  gin_bindings=(),
  overwrite=False,
  summary=True,
  **settings,
):
  """Makes proteins and writes them to a FASTA file.

  Args:
    work_dir: the folder of a run.
    out: path of the file; it exists completely or not at all.
    num_samples: how many.
    infill: a protein with gaps, for a masked model.
    step: a number, 'latest' or 'best'.
    gin_bindings: bindings on top of the run's, such as another attention.
    overwrite: replace what is there.
    summary: read train, and print how the samples compare with it.
    **settings: of sampling.sample, or with infill of infilling.infill.

  Returns:
    The samples. Those without a residue are not in the file.

  Raises:
    FileExistsError: out exists, and overwrite is False.
    ValueError: an argument is wrong, or not of this kind of model.
  """
  from protein_lm import config, evaluate, loading, sampling

  out = pathlib.Path(out)
  _check_out(out, overwrite)
  _check_kind(infill, settings)
  loaded = loading.load(work_dir, step, gin_bindings)
  bound = '\n'.join(gin_bindings)
  if unused := [x for x in config.unused_bindings() if x in bound]:
    print(f'warning: nothing used {"; ".join(unused)}')
  loaded = loading.calibrated(loaded)
  print(evaluate.describe(loaded), flush=True)
  _warn_of_length(loaded, infill, settings)
  with _Meter() as meter:
    if infill is None:
      samples = sampling.sample(
        loaded, num_samples, after_chunk=meter, **settings
      )
    else:
      samples = sampling.infill(
        loaded, infill, num_samples, after_pass=meter, **settings
      )
  _write(out, samples, settings)
  print(meter)
  _summarize(samples, loaded if summary else None)
  return samples


def _check_out(out, overwrite):
  if out.is_dir():
    raise ValueError(f'--out={out} is a folder; name a file in it.')
  if out.exists() and not overwrite:
    raise FileExistsError(f'{out} exists; choose another name or --overwrite')
  if not out.absolute().parent.is_dir():
    raise ValueError(
      f'the folder of --out={out} does not exist; make it first.'
    )


def _check_kind(infill, settings):
  """Refuses what belongs to the other kind of sampling."""
  other = OF_GAPS if infill is None else OF_PROMPTS
  wrong = [name for name in other if name in settings]
  if wrong and infill is None:
    raise ValueError(f'{wrong[0]} goes with infill, which was not given.')
  if wrong:
    raise ValueError(
      f'{wrong[0]} does not go with infill: the protein is given with its '
      'gaps, and keeps its length.'
    )


def _warn_of_length(loaded, infill, settings):
  trained = loaded.data_arguments.get('max_len', 512)
  wanted = settings.get('max_len') if infill is None else len(infill)
  if wanted and wanted > trained:
    print(
      f'warning: {wanted:,} residues are more than the {trained:,} tokens of a '
      'row in training: what comes after these is extrapolated',
      flush=True,
    )


class _Meter:
  """A bar, and a clock that starts when all is compiled.

  The functions that sample call it with the number of tokens drawn, 0 first.
  """

  def __init__(self):
    self._made = time.perf_counter()
    self._start, self._end, self._tokens = None, None, 0

  def __enter__(self):
    from tqdm import tqdm

    self._bar = tqdm(unit='token', leave=False, disable=not sys.stderr.isatty())
    return self

  def __exit__(self, *exception):
    self._bar.close()

  def __call__(self, num_tokens):
    self._end = time.perf_counter()
    if self._start is None:
      self._start = self._end
    self._tokens += num_tokens
    self._bar.update(num_tokens)

  def __str__(self):
    seconds = max(self._end - self._start, 1e-9)
    return (
      f'drew {self._tokens:,} tokens in {seconds:.1f} s, '
      f'{self._tokens / seconds:,.0f} tokens/s '
      f'(and {self._start - self._made:.1f} s to compile)'
    )


def _write(out, samples, settings):
  """Writes the FASTA file; it takes its place when it is complete."""
  empty = sum(not sample.sequence for sample in samples)
  if empty == len(samples):
    raise ValueError(
      'all samples ended before their first residue, so there is nothing to '
      'write: raise --min_len.'
    )
  with whole_file.opened(out) as file:
    for sample in samples:
      if sample.sequence:
        file.write(_record(sample, settings))
  print(f'wrote {len(samples) - empty:,} proteins to {out}')
  if empty:
    print(
      f'{empty:,} samples ended before their first residue and are left out; '
      '--min_len=1 forbids that'
    )


def _record(sample, settings):
  fields = {
    'log_prob': f'{sample.log_prob:.3f}',
    'per_residue': f'{sample.per_residue:.4f}',
    'length': len(sample.sequence),
    'drawn': len(sample.drawn),
    'ended': str(sample.finished).lower(),
    'seed': settings.get('seed', 0),
  }
  header = ' '.join(f'{name}={value}' for name, value in fields.items())
  lines = textwrap.wrap(sample.sequence, _COLUMNS)
  return '\n'.join([f'>sample_{sample.index} {header}', *lines, ''])


def _summarize(samples, loaded):
  """Prints a summary, of train too if a LoadedModel is given."""
  from tqdm import tqdm

  from protein_lm import sample_summary

  print(sample_summary.describe(samples), flush=True)
  if loaded is None:
    return
  samples = [sample for sample in samples if sample.sequence]
  try:
    data = loaded.open_data()
    with tqdm(
      desc='train',
      unit='protein',
      leave=False,
      total=sample_summary.num_train(data),
      disable=not sys.stderr.isatty(),
    ) as bar:
      train = sample_summary.read_train(
        data, [sample.sequence for sample in samples], bar.update
      )
  except (ValueError, OSError) as error:
    print(f'warning: not compared with train, which cannot be read: {error}')
    return
  print(sample_summary.compare(samples, train))


def _main(argv):
  del argv
  args = flags.FLAGS
  step = cli.parse_step(args.step)

  from protein_lm import compilation

  compilation.enable_cache()
  sample(
    os.path.abspath(os.path.expanduser(args.work_dir)),
    os.path.expanduser(args.out),
    args.num_samples,
    infill=args.infill,
    step=step,
    gin_bindings=args.gin_bindings,
    overwrite=args.overwrite,
    summary=args.summary,
    **_changed(args, (*OF_BOTH, *OF_PROMPTS, *OF_GAPS)),
  )


def _changed(args, names):
  """The flags that differ from their defaults."""
  return {
    name: args[name].value
    for name in names
    if args[name].value != args[name].default
  }


def main():
  """Defines the flags and runs; the console script protein-lm-sample."""
  cli.define_model_flags()
  flags.DEFINE_string('out', None, 'FASTA file to write.', required=True)
  flags.DEFINE_integer('num_samples', 1, 'How many.')
  flags.DEFINE_string('prompt', '', 'Residues that all begin with.')
  flags.DEFINE_integer(
    'max_len', None, 'Residues at most, the prompt included; as in training.'
  )
  flags.DEFINE_integer('min_len', 1, 'Residues before which none ends.')
  flags.DEFINE_string(
    'infill', None, 'A protein with _ for each residue to fill in.'
  )
  flags.DEFINE_integer('num_sweeps', 0, 'Gibbs sweeps after the gaps are full.')
  flags.DEFINE_float('temperature', 1.0, '0 takes the most probable token.')
  flags.DEFINE_integer('top_k', None, 'Draw from the k most probable tokens.')
  flags.DEFINE_float('top_p', None, 'Draw from the top p of probability.')
  flags.DEFINE_float(
    'min_p', None, 'Draw from tokens with p times the largest probability.'
  )
  flags.DEFINE_float(
    'repetition_penalty', 1.0, 'Above 1 avoids the last 16 residues.'
  )
  flags.DEFINE_integer('seed', 0, 'Of all that is random.')
  flags.DEFINE_integer('first', 0, 'Number of the first sample.')
  flags.DEFINE_integer(
    'batch_size', None, 'Samples made together; 64, with --infill 8.'
  )
  flags.DEFINE_bool('summary', True, 'Compare with the proteins of train.')
  flags.DEFINE_bool('overwrite', False, 'Replace a file that exists.')
  cli.run(_main)


if __name__ == '__main__':
  main()
