"""Prepares a data set, explicitly or on first use.

    python -m protein_lm.prepare --dataset=human_swissprot
    python -m protein_lm.prepare --dataset=fasta --fasta=my.fasta.gz

writes it below --data_dir (TFDS's default: TFDS_DATA_DIR, else
~/tensorflow_datasets) and prints what was left out and the size of each split.
A data set that is prepared already is left as it is.
"""

import contextlib
import difflib
import importlib
import os
import pathlib
import shutil

from absl import logging

from protein_lm import datasets


def default_data_dir() -> pathlib.Path:
  """Where TFDS keeps data sets."""
  path = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(path).expanduser()


def is_file_source(source: str) -> bool:
  """Whether a source is a path, and not a builder's name."""
  if source in datasets.BUILDERS:
    return False
  # No name of a builder holds a dot or a separator.
  return not source.replace('-', '_').isidentifier() or os.path.exists(source)


def make_builder(source: str, data_dir: str | os.PathLike):
  """Returns the TFDS builder of a builder's name or a FASTA file.

  Raises:
    ValueError: no such data set (names the nearest) or no such file.
  """
  if is_file_source(source):
    if os.path.isdir(source):
      raise ValueError(
        f'data.source = {source!r} is a folder; name a FASTA file.'
      )
    from protein_lm.datasets import fasta

    return fasta.Fasta(path=source, data_dir=data_dir)
  if source == 'fasta':
    raise ValueError(
      "The data set 'fasta' needs a file: data.source = 'my.fasta.gz', or "
      '--dataset=fasta --fasta=my.fasta.gz for prepare.'
    )
  if source not in datasets.BUILDERS:
    near = difflib.get_close_matches(source, datasets.BUILDERS, 1, 0)
    raise ValueError(
      f'data.source (--dataset) = {source!r} is neither a data set nor a file; '
      f'the data sets are {", ".join(datasets.BUILDERS)}; did you mean '
      f'{near[0]!r}?'
    )
  module = importlib.import_module(f'protein_lm.datasets.{source}')
  return getattr(module, datasets.BUILDERS[source])(data_dir=data_dir)


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


def prepare(source: str, data_dir: str | os.PathLike | None = None):
  """Returns the builder of a prepared data set, preparing it if need be.

  Args:
    source: a builder's name or the path of a FASTA file.
    data_dir: where prepared data lives, TFDS's default if None.

  Raises:
    ValueError: one sentence on what is wrong with the source or the folder.
  """
  source = os.path.expanduser(source)
  data_dir = pathlib.Path(data_dir or default_data_dir()).expanduser()
  with _quiet():
    builder = make_builder(source, data_dir)
    if builder.is_prepared():
      return builder
    folder = pathlib.Path(builder.data_dir).parent
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if is_file_source(source):  # a user's own file is nobody else's business
        make_private(data_dir / builder.name)
      with _alone(folder):
        builder = make_builder(source, data_dir)  # another may be done by now
        if not builder.is_prepared():
          for leftover in folder.glob('incomplete.*'):
            shutil.rmtree(leftover)
          builder.download_and_prepare(file_format='array_record')
    except OSError as error:
      raise ValueError(
        f'{folder} cannot take the prepared data: {error.strerror or error}; '
        'choose another place with --data_dir or data.data_dir.'
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


def prepare_from_flags(argv: list[str]) -> None:
  """Prepares what the flags name and prints its splits."""
  from absl import flags

  del argv
  args = flags.FLAGS
  source = args.dataset
  if args.fasta:
    if source not in (None, 'fasta'):
      raise ValueError(f'--fasta goes with --dataset=fasta, not {source!r}.')
    source = args.fasta
    if not os.path.isfile(source):
      raise ValueError(f'--fasta={source}: there is no such file.')
  if not source:
    raise ValueError(
      f'--dataset is required, one of {", ".join(datasets.BUILDERS)}.'
    )
  print(describe(prepare(source, args.data_dir)))


def main() -> None:
  """The command; its flags are defined here, so that an import has none."""
  from absl import flags

  from protein_lm import cli

  names = ', '.join(datasets.BUILDERS)
  flags.DEFINE_string('dataset', None, f'What to prepare: {names}.')
  flags.DEFINE_string('fasta', None, 'The file of --dataset=fasta.')
  flags.DEFINE_string('data_dir', None, 'Where prepared data sets live.')
  cli.run(prepare_from_flags)


if __name__ == '__main__':
  main()
