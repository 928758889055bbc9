"""What every protein data set shares: features, metadata, how it is written.

A data set is prepared once as ArrayRecord files under
`data_dir/name[/config]/version`. Beside TFDS's own files, metadata.json holds
the counts of everything left out and, for each split, its size and a hash of
its proteins that does not depend on their order.
"""

import abc
import hashlib
import json
import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from protein_lm.datasets.fasta_file import Protein, Tally


class _Info(tfds.core.DatasetInfo):
  """TFDS's description of a data set, without its look into a bucket."""

  def initialize_from_bucket(self) -> None:
    pass  # the original leaves a temporary folder behind, each time


def content_hash(proteins: Iterable[Protein]) -> str:
  """Hashes proteins as a set: the sum, mod 2^256, of the sha256 of each."""
  total = 0
  for protein in proteins:
    fields = (protein.id, protein.sequence, protein.envelopes, protein.pure)
    total += int.from_bytes(hashlib.sha256(repr(fields).encode()).digest())
  return f'{total % 2**256:064x}'


class ProteinBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the builders: says which proteins are in which split."""

  VERSION = tfds.core.Version('1.0.0')
  DESCRIPTION: str
  HOMEPAGE: str | None = None
  LICENSE: str | None = None

  def __init__(self, **kwargs):
    try:
      super().__init__(**kwargs)  # reads what lies in the data_dir
    except Exception as error:
      if not os.path.exists(getattr(self, '_data_dir', '')):
        raise
      raise self._not_whole() from error

  @abc.abstractmethod
  def make_splits(self, tally: Tally) -> dict[str, list[Protein]]:
    """Reads the source and returns the proteins of each split."""

  def is_prepared(self) -> bool:
    """Whether a prepared copy lies in the data_dir.

    Raises:
      ValueError: what lies there is not whole.
    """
    try:
      if 'content' in self.info.metadata:
        return True
    except json.JSONDecodeError as error:
      raise self._not_whole() from error
    if self.data_path.exists():
      raise self._not_whole()
    return False

  def _not_whole(self) -> ValueError:
    return ValueError(
      f'{self._data_dir} holds no whole data set; delete this folder and '
      'prepare again.'
    )

  def _log_download_bytes(self) -> None:
    """Nothing: nothing is downloaded, and the counts are printed below."""

  _log_download_done = _log_download_bytes

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features
    return _Info(
      builder=self,
      description=self.DESCRIPTION,
      homepage=self.HOMEPAGE,
      license=self.LICENSE,
      features=features.FeaturesDict(
        {
          'id': features.Text(),
          'sequence': features.Text(),
          'description': features.Text(),
          'organism': features.Text(),
          'cluster': features.Text(),
          # Held-out domains: (start, end) from 1, both ends included.
          'envelopes': features.Tensor(shape=(None, 2), dtype=np.int32),
          'pure': np.bool_,
        }
      ),
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # the sources are local files
    tally = Tally()
    splits = self.make_splits(tally)
    for split in [split for split, members in splits.items() if not members]:
      print(f'  too few clusters for a split {split!r}: left out', flush=True)
      del splits[split]
    self.info.metadata['counts'] = tally.counts
    self.info.metadata['content'] = {
      split: {
        'num_proteins': len(proteins),
        'num_residues': sum(len(protein.sequence) for protein in proteins),
        'sha256': content_hash(proteins),
      }
      for split, proteins in splits.items()
    }
    print(f'{self.name}: {tally.summary()}', flush=True)
    return {
      split: self._generate_examples(proteins)
      for split, proteins in splits.items()
    }

  def _generate_examples(self, proteins) -> Iterator[tuple[str, dict]]:
    for protein in proteins:
      envelopes = np.array(protein.envelopes, np.int32).reshape(-1, 2)
      yield (
        protein.id,
        {
          'id': protein.id,
          'sequence': protein.sequence,
          'description': protein.description,
          'organism': protein.organism,
          'cluster': protein.cluster,
          'envelopes': envelopes,
          'pure': protein.pure,
        },
      )


def to_protein(example: dict) -> Protein:
  """Returns a prepared record, as read by TFDS, as a protein."""
  return Protein(
    id=example['id'].decode(),
    sequence=example['sequence'].decode(),
    description=example['description'].decode(),
    organism=example['organism'].decode(),
    cluster=example['cluster'].decode(),
    envelopes=tuple(map(tuple, example['envelopes'].tolist())),
    pure=bool(example['pure']),
  )
