"""A user's own files as a data set, named by what is in them.

The config's name carries a hash of the bytes of all files and of what was asked
for (splits, letters), so changed files are another data set.
"""

import glob
import hashlib
import pathlib
import re

import tensorflow_datasets as tfds

from protein_lm.datasets import builder, letters, split_rule
from protein_lm.datasets.fasta_file import SUFFIXES

_HASH_DIGITS = 12
_STEM_LETTERS = 60


def config_stem(path: pathlib.Path) -> str:
  """The readable part of a config's name: the file's, without its suffixes."""
  stem = path.name
  while stem.lower().endswith((*SUFFIXES, '.parquet')):
    stem = stem.rpartition('.')[0]
  return re.sub('[^A-Za-z0-9-]+', '_', stem)[:_STEM_LETTERS] or 'fasta'


def find_paths(pattern: str) -> tuple[pathlib.Path, ...]:
  """Returns the file of this name, or all that match it as a pattern."""
  path = pathlib.Path(pattern)
  if path.is_fifo() or path.is_char_device():
    raise ValueError(
      f'{pattern} is a pipe, which can be read only once; write it to a file '
      'first.'
    )
  if path.exists():
    return (path,)
  matches = sorted(glob.glob(pattern, recursive=True))
  return tuple(path for path in map(pathlib.Path, matches) if path.is_file())


class FileBuilder(builder.ProteinBuilder, skip_registration=True):
  """The proteins of one or many files.

  Args:
    patterns: names of files, or patterns with * ? []; may match nothing where
      a prepared copy exists.
    data_dir: where the prepared copy lives.
    rule, policy: for splits and letters; the gin-configured ones if None.
    reading: anything else that says what is read.
  """

  def __init__(
    self,
    *,
    patterns: tuple[str, ...],
    data_dir,
    rule=None,
    policy=None,
    reading: str = '',
    config=None,
    version=None,
  ):
    rule = rule or split_rule.SplitRule()
    policy = policy or letters.LetterPolicy()
    self._patterns = patterns
    self.paths = tuple(
      path for pattern in patterns for path in self.find(pattern)
    )
    if config is None:
      config = self._make_config(pathlib.Path(data_dir), rule, policy, reading)
    super().__init__(
      rule=rule,
      policy=policy,
      config=config,
      data_dir=data_dir,
      version=version,
    )

  def find(self, pattern: str) -> tuple[pathlib.Path, ...]:
    """Returns the files that a name or pattern stands for."""
    return find_paths(pattern)

  def _make_config(self, data_dir, rule, policy, reading):
    stem = config_stem(pathlib.Path(self._patterns[0]))
    asked = rule.identity(), repr(policy), reading
    defaults = split_rule.DEFAULT.identity(), repr(letters.DEFAULT), ''
    if not self.paths:
      if asked != defaults:
        raise self._absent()
      return self._find_prepared(data_dir, stem)
    for pattern in self._patterns:
      if not self.find(pattern):
        raise ValueError(f'{pattern!r}: there is no such file.')
    hashes = [split_rule.file_hash(path) for path in self.paths]
    digest = hashes[0]
    if len(hashes) > 1 or asked != defaults:
      text = repr((hashes, asked if asked != defaults else ''))
      digest = hashlib.sha256(text.encode()).hexdigest()
    names = ', '.join(path.name for path in self.paths[:3])
    more = f' and {len(self.paths) - 3} more' if len(self.paths) > 3 else ''
    return tfds.core.BuilderConfig(
      name=f'{stem}_{digest[:_HASH_DIGITS]}',
      description=f'The proteins of {names}{more}.',
    )

  def _absent(self) -> ValueError:
    source = ', '.join(self._patterns)
    return ValueError(f'data.source = {source!r}: there is no such file.')

  def _find_prepared(self, data_dir: pathlib.Path, stem: str):
    """Returns the config prepared from files that are gone, if just one is."""
    pattern = f'{stem}_' + '[0-9a-f]' * _HASH_DIGITS
    found = [
      folder.name
      for folder in (data_dir / self.name).glob(pattern)
      if (folder / str(self.VERSION) / 'dataset_info.json').is_file()
    ]
    if len(found) != 1:
      raise self._absent()
    print(
      f'{", ".join(self._patterns)} is gone: using its prepared copy, '
      f'{self.name}/{found[0]}',
      flush=True,
    )
    return tfds.core.BuilderConfig(name=found[0])
