"""Which proteins are evaluated: splits of the run's data, or a file."""

import dataclasses
import pathlib

from protein_lm import vocab
from protein_lm.datasets import clusters
from protein_lm.proteins import Proteins, read_fasta

SPLITS = ('test', 'ood')


def choose_proteins(loaded, splits=None, fasta=None):
  """Reads splits, or a file as a split of its own.

  Args:
    loaded: LoadedModel.
    splits: names; None for those of test and ood that exist.
    fasta: path of a file, whose split has its name without endings (with them
      if the data has a split of that name). Its clusters are made by 8-mers;
      how similar it is to train is not known.

  Returns:
    (Data of the run, or None where a file is evaluated and the data is gone;
    name of what is read, for rows; split -> Proteins).

  Raises:
    ValueError: there is no such split, or the file cannot be read or is empty.
  """
  if fasta is None:
    data = loaded.open_data()
    _warn_of_other_data(loaded, data)
    names = _choose_splits(splits, data)
    return data, data.name, {name: data.proteins(name) for name in names}
  proteins = _with_clusters(read_fasta(fasta))
  data = _open_if_there(loaded)
  name = pathlib.Path(fasta).name
  return data, name, {_split_name(name, data): proteins}


def _warn_of_other_data(loaded, data):
  saved = loaded.metadata.get('data_fingerprint')
  if saved not in (None, data.fingerprint):
    print(
      f'warning: {data.name} is not the data of training: its splits may hold '
      'proteins that the model has seen, and its train split fits the baselines'
    )


def _open_if_there(loaded):
  """The run's data, which a FASTA file needs for its baselines alone."""
  try:
    return loaded.open_data()
  except (ValueError, OSError) as error:
    print(f'warning: no baselines but uniform, without the data: {error}')
    return None


def _split_name(name, data):
  """The file's name without its endings, unless a split is called so."""
  short = name.removesuffix('.gz')
  short = short.rpartition('.')[0] or short
  return name if data is not None and short in data.splits else short


def _with_clusters(proteins: Proteins) -> Proteins:
  sequences = [
    vocab.decode(proteins.residues[start:end])
    for start, end in zip(
      proteins.offsets[:-1], proteins.offsets[1:], strict=True
    )
  ]
  return dataclasses.replace(
    proteins, clusters=clusters.name_clusters(proteins.ids, sequences)
  )


def _choose_splits(splits, data):
  if splits is None:
    splits = [split for split in SPLITS if split in data.splits]
    splits = splits or [split for split in data.splits if split != 'train']
  for split in splits:
    if split not in data.splits:
      raise ValueError(
        f'there is no split {split!r}; the splits are {", ".join(data.splits)}'
      )
  if not splits:
    raise ValueError(
      'there is no split to evaluate, choose with --splits from '
      f'{", ".join(data.splits)}'
    )
  return splits
