"""Any FASTA file as a data set in train, validation and test.

The config's name carries a hash of the file's bytes, so a changed file is
another data set. Splits are whole 8-mer clusters up to 100,000 sequences, and
by the hash of the sequence above (clusters.py).
"""

import collections
import hashlib
import pathlib
import re

import tensorflow_datasets as tfds

from protein_lm.datasets import builder, clusters
from protein_lm.datasets.fasta_file import SUFFIXES, Protein, Tally, read_fasta

_HASH_DIGITS = 12
_STEM_LETTERS = 60


def config_stem(path: pathlib.Path) -> str:
  """The readable part of a config's name: the file's, without its suffixes."""
  stem = path.name
  while stem.lower().endswith(SUFFIXES):
    stem = stem.rpartition('.')[0]
  return re.sub('[^A-Za-z0-9-]+', '_', stem)[:_STEM_LETTERS] or 'fasta'


def make_config(path: pathlib.Path) -> tfds.core.BuilderConfig:
  """Names the data set of a file by its name and content."""
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise ValueError(
      f'data.source = {str(path)!r} cannot be read: {error.strerror or error}.'
    ) from error
  return tfds.core.BuilderConfig(
    name=f'{config_stem(path)}_{digest[:_HASH_DIGITS]}',
    description=f'The proteins of {path.name}.',
  )


def find_prepared(path: pathlib.Path, data_dir: pathlib.Path) -> str | None:
  """Returns the config prepared from a file that is gone, if just one is."""
  pattern = f'{config_stem(path)}_' + '[0-9a-f]' * _HASH_DIGITS
  found = [
    folder.name
    for folder in (data_dir / Fasta.name).glob(pattern)
    if (folder / str(Fasta.VERSION) / 'dataset_info.json').is_file()
  ]
  return found[0] if len(found) == 1 else None


class Fasta(builder.ProteinBuilder):
  """The proteins of one FASTA file.

  Args:
    path: the file; may be absent where its prepared copy exists.
    data_dir: where the prepared copy lives.
  """

  DESCRIPTION = 'Proteins of a FASTA file, split by 8-mer clusters.'

  def __init__(self, *, path, data_dir, config=None, version=None):
    self._path = path = pathlib.Path(path)
    if config is None and not path.exists():
      name = find_prepared(path, pathlib.Path(data_dir))
      if name is None:
        raise ValueError(f'data.source = {str(path)!r}: there is no such file.')
      print(
        f'{path} is gone: using its prepared copy, fasta/{name}', flush=True
      )
      config = tfds.core.BuilderConfig(name=name)
    config = config or make_config(path)
    super().__init__(config=config, data_dir=data_dir, version=version)

  def make_splits(self, tally: Tally) -> dict[str, list[Protein]]:
    print(f'reading {self._path}', flush=True)
    proteins = list(read_fasta(self._path, tally))
    num = len(proteins)
    if num <= clusters.MAX_SEQUENCES:
      print(f'clustering {num:,} sequences by 8-mers', flush=True)
    else:
      print(
        f'{num:,} sequences are too many to cluster: splitting by the hash of '
        'each, so that relatives may be in several splits',
        flush=True,
      )
    names = clusters.name_clusters(
      [protein.id for protein in proteins],
      [protein.sequence for protein in proteins],
    )
    num_residues = collections.Counter()
    for protein, cluster in zip(proteins, names, strict=True):
      protein.cluster = cluster
      num_residues[cluster] += len(protein.sequence)
    tally.counts['clusters'] = len(num_residues)
    assigned = clusters.split_clusters(num_residues)
    splits = {'train': [], 'validation': [], 'test': []}
    for protein in proteins:
      splits[assigned[protein.cluster]].append(protein)
    return splits
