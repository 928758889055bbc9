"""Prepares a data set, explicitly or on first use.

    python -m protein_lm.prepare --dataset=human_swissprot
    python -m protein_lm.prepare --dataset=fasta --fasta='my/*.fasta.gz'
    python -m protein_lm.prepare --dataset=parquet --parquet=folder --report
    python -m protein_lm.prepare --dataset=uniprot/uniref50 --clusters=c.tsv

writes it below --data_dir (TFDS's default: TFDS_DATA_DIR, else
~/tensorflow_datasets) and prints what was left out and the size of each split.
A data set that is prepared already is left as it is. What is printed as
`data.source` is what a training run takes.
"""

import contextlib
import difflib
import functools
import glob
import importlib
import os
import pathlib
import shutil

from absl import logging

from protein_lm import cores, datasets

_PREPARED = 'dataset_info.json'  # that TFDS writes into a prepared folder


def default_data_dir() -> pathlib.Path:
  """Where TFDS keeps data sets."""
  path = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(path).expanduser()


def is_file_source(source: str) -> bool:
  """Whether a source is a path, and not a builder's name."""
  if source in datasets.BUILDERS or source.startswith('uniprot/'):
    return False
  # No name of a builder holds a dot or a separator.
  return not source.replace('-', '_').isidentifier() or os.path.exists(source)


def _kind_of_file(source: str) -> str:
  """The builder for a path."""
  if source.lower().endswith('.parquet'):
    return 'parquet'
  if os.path.isdir(source):
    if glob.glob(f'{glob.escape(source)}/**/*.parquet', recursive=True):
      return 'parquet'
    raise ValueError(
      f'data.source = {source!r} is a folder; name a FASTA file (or a pattern '
      'such as folder/*.fasta), a prepared data set, or a folder of Parquet '
      'files.'
    )
  return 'fasta'


def make_builder(source: str, data_dir: str | os.PathLike, **options):
  """Returns the TFDS builder of a builder's name, a file, or a prepared copy.

  Args:
    source: a builder's name, a path or pattern, or a folder that holds a
      prepared data set.
    data_dir: where prepared data lives.
    **options: of the builder, such as `rule`; `kind` says what a path is.

  Raises:
    ValueError: no such data set (names the nearest) or no such file.
  """
  kind = options.pop('kind', None)
  if is_file_source(source):
    if os.path.isfile(os.path.join(source, _PREPARED)):
      return _open_prepared(source, options)
    kind = kind or _kind_of_file(source)
    options['patterns'] = (*options.pop('patterns', ()), source)
  elif source in ('fasta', 'parquet'):
    raise ValueError(
      f'The data set {source!r} needs a file: data.source = '
      f"'my.{source}{'.gz' * (source == 'fasta')}', or --dataset={source} "
      f'--{source}=my.{source}{".gz" * (source == "fasta")} for prepare.'
    )
  elif source.partition('/')[0] == 'uniprot':
    kind, _, options['collection'] = source.partition('/')
  elif source in datasets.BUILDERS:
    kind = source
  else:
    near = difflib.get_close_matches(source, datasets.BUILDERS, 1, 0)
    raise ValueError(
      f'data.source (--dataset) = {source!r} is neither a data set nor a file; '
      f'the data sets are {", ".join(datasets.BUILDERS)}; did you mean '
      f'{near[0]!r}?'
    )
  module = importlib.import_module(f'protein_lm.datasets.{kind}')
  make = getattr(module, datasets.BUILDERS[kind])
  if kind.startswith('human_') and options:
    raise ValueError(
      f'{kind} has its own splits and takes no options ({", ".join(options)}).'
    )
  return make(data_dir=data_dir, **options)


def _open_prepared(folder: str, options: dict):
  """Returns the builder of a folder that holds a prepared data set."""
  import tensorflow_datasets as tfds

  from protein_lm.datasets import builder, letters, split_rule

  if (split_rule.SplitRule(), letters.LetterPolicy()) != (
    split_rule.DEFAULT,
    letters.DEFAULT,
  ):
    print(
      f'warning: {folder} is prepared already, so splits and letters that gin '
      'binds change nothing.',
      flush=True,
    )
  if options:
    raise ValueError(
      f'{folder} is prepared already and takes no options '
      f'({", ".join(options)}).'
    )
  try:
    found = tfds.builder_from_directory(folder)
    is_ours = builder.is_whole(found.info)
  except Exception as error:
    raise ValueError(
      f'{folder} holds no whole data set ({str(error)[:100]}); prepare it '
      'again.'
    ) from error
  if not is_ours or found.version < builder.ProteinBuilder.VERSION:
    raise ValueError(
      f'{folder} was not prepared by this version of protein_lm.prepare; '
      'prepare it again.'
    )
  return found


@contextlib.contextmanager
def _quiet():
  """Keeps TFDS's own lines and bars from the screen."""
  import tensorflow_datasets as tfds

  verbosity = logging.get_verbosity()
  logging.set_verbosity(min(verbosity, logging.ERROR))
  tfds.disable_progress_bar()
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def make_private(folder: pathlib.Path) -> None:
  """Makes a folder that only its owner can read."""
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o777 != 0o700:  # may be read-only by now
      folder.chmod(0o700)
  except OSError as error:
    raise ValueError(
      f'{folder} cannot be made: {error.strerror or error}.'
    ) from error


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
  """Lets one process at a time prepare in a folder; the lock dies with it."""
  import fcntl

  with open(folder / '.preparing', 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f'another process is preparing {folder}: waiting', flush=True)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def prepare(
  source: str,
  data_dir: str | os.PathLike | None = None,
  *,
  num_processes: int = 1,
  beam_runner: str | None = None,
  beam_options: tuple[str, ...] = (),
  may_write: bool = True,
  **options,
):
  """Returns the builder of a prepared data set, preparing it if need be.

  Args:
    source: see `make_builder`.
    data_dir: where prepared data lives, TFDS's default if None.
    num_processes: that prepare. More than one are new Python processes, so a
      script that asks for them needs `if __name__ == '__main__'`.
    beam_runner: of Apache Beam, which then prepares instead; the data_dir must
      be seen by all its workers.
    beam_options: of Beam, such as '--flink_master=host:8081'.
    may_write: False refuses to prepare what is not.
    **options: of the builder.

  Raises:
    ValueError: one sentence on what is wrong with the source or the folder.
  """
  source = os.path.expanduser(source)
  data_dir = pathlib.Path(data_dir or default_data_dir()).expanduser()
  make = functools.partial(make_builder, source, data_dir, **options)
  with _quiet():
    builder = make()
    if not hasattr(builder, 'is_prepared') or builder.is_prepared():
      return builder
    folder = pathlib.Path(builder.data_dir).parent
    if not may_write:
      raise ValueError(
        f'{source!r} is not prepared in {str(data_dir)!r}, and nothing is '
        'written to a folder outside that only the configuration of a run '
        'names: if it is right, name it yourself with '
        f'--gin_bindings="data.data_dir = {str(data_dir)!r}".'
      )
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if is_file_source(source):  # a user's own file is nobody else's business
        make_private(data_dir / builder.name)
      with _alone(folder):
        builder = make()  # another may be done by now
        if not builder.is_prepared():
          for leftover in folder.glob('incomplete.*'):
            shutil.rmtree(leftover)
          builder.num_processes = num_processes
          builder.beam_runner = beam_runner
          builder.beam_options = tuple(beam_options)
          builder.download_and_prepare(file_format='array_record')
    except OSError as error:
      raise ValueError(
        f'{folder} cannot take the prepared data: '
        f'{error.strerror or f"{error} (is the disk full?)"}; choose another '
        'place with --data_dir or data.data_dir.'
      ) from error
  return builder


def describe(builder) -> str:
  """Lists a prepared data set's splits with their sizes."""
  lines = [f'{builder.info.full_name} in {builder.data_dir}']
  for split, content in builder.info.metadata['content'].items():
    lines.append(
      f'  {split:<10} {content["num_proteins"]:>9,} proteins '
      f'{content["num_residues"]:>13,} residues'
    )
  return '\n'.join(lines)


def _source_of_flags(args) -> tuple[str, dict]:
  """Returns the source that the flags name, and options to read it."""
  kind, patterns = args.dataset, [*args.fasta, *args.parquet]
  for flag in ('fasta', 'parquet'):
    if args[flag].value and kind not in (None, flag):
      raise ValueError(f'--{flag} goes with --dataset={flag}, not {kind!r}.')
  if args.fasta and args.parquet:
    raise ValueError('--fasta and --parquet cannot both be given.')
  if args.sequence_column and not args.parquet:
    raise ValueError('--sequence_column goes with --parquet.')
  if not patterns:
    if not kind:
      raise ValueError(
        f'--dataset is required, one of {", ".join(datasets.BUILDERS)}.'
      )
    return kind, {}
  for pattern in patterns:
    if args.fasta and os.path.isdir(os.path.expanduser(pattern)):
      raise ValueError(
        f'--fasta={pattern} is a folder; name its files, such as '
        f'--fasta={pattern.rstrip("/")}/*.fasta.'
      )
    if not glob.glob(os.path.expanduser(pattern), recursive=True):
      flag = 'fasta' if args.fasta else 'parquet'
      raise ValueError(f'--{flag}={pattern}: there is no such file.')
  *others, source = map(os.path.expanduser, patterns)
  if not is_file_source(source):  # a file may be called as a builder is
    source = os.path.join('.', source)
  options = {'kind': 'fasta' if args.fasta else 'parquet'}
  if others:
    options['patterns'] = tuple(others)
  if args.sequence_column:
    options['sequence_column'] = args.sequence_column
  return source, options


def _rule_of_flags(args):
  """Returns the rule for splits if a flag says anything of it, else None."""
  from protein_lm.datasets import split_rule

  given = {
    'ids': tuple(args.split_ids),
    'organisms': tuple(args.split_organisms),
    'clusters': args.clusters,
    'family_table': args.family_table,
    'max_cluster_fraction': args.max_cluster_fraction,
  }
  given = {k: v for k, v in given.items() if v not in (None, (), '')}
  if args.split_fractions:
    try:
      given['fractions'] = tuple(map(float, args.split_fractions))
    except ValueError as error:
      raise ValueError(
        f'--split_fractions must be three numbers such as 0.9,0.05,0.05, got '
        f'{",".join(args.split_fractions)}.'
      ) from error
  return split_rule.SplitRule(**given) if given else None


def prepare_from_flags(argv: list[str]) -> None:
  """Prepares what the flags name and prints its splits."""
  from absl import flags

  from protein_lm import cli

  del argv
  args = flags.FLAGS
  if args.gin_files or args.gin_bindings:
    cli.parse_gin_flags()
  source, options = _source_of_flags(args)
  if rule := _rule_of_flags(args):
    options['rule'] = rule
  if not is_file_source(source) and source.startswith('uniprot'):
    options |= {
      'base_url': args.mirror,
      'checksum': args.checksum,
      'look_up': True,
    }
  elif args.mirror or args.checksum:
    raise ValueError('--mirror and --checksum go with --dataset=uniprot/...')
  builder = prepare(
    source,
    args.data_dir,
    num_processes=(
      cores.available() if args.num_processes is None else args.num_processes
    ),
    beam_runner=args.beam_runner,
    beam_options=tuple(args.beam_options),
    **options,
  )
  print(describe(builder))
  print(f"  data.source = '{builder.data_dir}'")
  if args.report:
    from protein_lm import data_report

    path = pathlib.Path(builder.data_dir, 'report.html')
    print(f'  report: {data_report.write_report(builder, path)}')


def _define_flags() -> None:
  from absl import flags

  names = ', '.join(datasets.BUILDERS)
  text, many = flags.DEFINE_string, flags.DEFINE_multi_string
  text('dataset', None, f'What to prepare: {names} (uniprot/swissprot ...).')
  many('fasta', [], 'A file or pattern of --dataset=fasta; repeatable.')
  many('parquet', [], 'A file, pattern or folder of --dataset=parquet.')
  text('sequence_column', None, 'Column of --parquet, if not found by name.')
  text('data_dir', None, 'Where prepared data sets live.')
  text('clusters', None, 'Split by these clusters: cluster.tsv of MMseqs2.')
  many('split_ids', [], 'Split by ids: test=FILE with one id a line.')
  many('split_organisms', [], 'Split by organism: test=9606 or test=NAME.')
  flags.DEFINE_list('split_fractions', [], 'Of train, validation, test.')
  text('family_table', None, 'accession,pfam[,start,end]: makes the split ood.')
  flags.DEFINE_float(
    'max_cluster_fraction', None, 'Of the residues; a larger one is refused.'
  )
  text('mirror', None, "Folder of UniProt's release on another server.")
  text('checksum', None, 'md5:... or sha256:... of the file of --mirror.')
  flags.DEFINE_integer('num_processes', None, 'That prepare; default: cores.')
  text('beam_runner', None, 'Prepare with Apache Beam, such as DirectRunner.')
  many('beam_options', [], 'Option for Beam, such as --beam_options=--x=y.')
  flags.DEFINE_bool('report', False, 'Write report.html beside the data.')


def main() -> None:
  """The command; its flags are defined here, so that an import has none."""
  from protein_lm import cli

  _define_flags()
  cli.define_gin_flags()
  cli.run(prepare_from_flags)


if __name__ == '__main__':
  main()
