"""What every protein data set shares: features, metadata, how it is written.

A data set is prepared once, as ArrayRecord files under
`data_dir/name[/config]/version`. Beside TFDS's own files, metadata.json holds
the counts of everything left out and, for each split, its size, a hash of its
proteins that does not depend on their order, and its leakage; `-lengths.npy`
and `-by_length.npy` are the index of `proteins.DiskStore`.
"""

import abc
import json
import os
import pathlib
import shutil
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming

from protein_lm.datasets import (
  leakage,
  record,
  runners,
  shards,
  split_rule,
  splits,
)
from protein_lm.datasets.collection import read_collection
from protein_lm.datasets.intake import Tally
from protein_lm.datasets.letters import LetterPolicy
from protein_lm.proteins import index_path


def is_whole(info) -> bool:
  """Whether a description says what was prepared, and without contradiction.

  Raises:
    KeyError, TypeError: it was changed since.
  """
  content = info.metadata.get('content')
  if content is None:
    return False
  if content.keys() != info.splits.keys():
    raise KeyError('the splits are not those of the content')
  for split, its_content in content.items():
    sizes = info.splits[split].shard_lengths
    if sum(sizes) != its_content['num_proteins']:
      raise TypeError(f'{split} has another number of proteins')
    if its_content['num_residues'] < its_content['num_proteins']:
      raise TypeError(f'{split} has too few residues')
    if (
      len(its_content['sha256']) != 64
      or len(info.metadata['index'][split]) != 2
    ):
      raise TypeError(f'{split} has no hashes')
  return True


class _Info(tfds.core.DatasetInfo):
  """TFDS's description of a data set, without its look into a bucket."""

  def initialize_from_bucket(self) -> None:
    pass  # the original leaves a temporary folder behind, each time


class ProteinBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the builders: says where the proteins come from.

  Attributes:
    num_processes: that prepare a source of more than a few MB.
    beam_runner: of Apache Beam, which then prepares instead.
    beam_options: for it.
  """

  VERSION = tfds.core.Version('2.0.0')
  RELEASE_NOTES = {  # noqa: RUF012 - as TFDS wants it
    '2.0.0': 'Length, taxonomy id and nearest_train_share in each record.'
  }
  DESCRIPTION: str
  HOMEPAGE: str | None = None
  LICENSE: str | None = None
  num_processes: int = 1
  beam_runner: str | None = None
  beam_options: tuple[str, ...] = ()

  def __init__(
    self, *, rule: split_rule.SplitRule, policy: LetterPolicy, **kwargs
  ):
    self.rule, self.policy = rule, policy
    try:
      super().__init__(**kwargs)  # reads what lies in the data_dir
    except Exception as error:
      if not os.path.exists(getattr(self, '_data_dir', '')):
        raise
      raise self._not_whole() from error

  @abc.abstractmethod
  def make_source(self):
    """Returns what is read, such as `fasta_file.FastaFiles`."""

  def is_prepared(self) -> bool:
    """Whether a prepared copy lies in the data_dir.

    Raises:
      ValueError: what lies there is not whole.
    """
    try:
      if is_whole(self.info):
        return True
    except (json.JSONDecodeError, KeyError, TypeError) as error:
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
    """Nothing: what is downloaded is told elsewhere."""

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
          'length': np.int32,
          'description': features.Text(),
          'organism': features.Text(),
          'taxonomy_id': np.int32,
          'cluster': features.Text(),
          'nearest_train_share': np.float32,
          # Held-out domains: (start, end) from 1, both ends included.
          'envelopes': features.Tensor(shape=(None, 2), dtype=np.int32),
          'pure': np.bool_,
        }
      ),
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    raise NotImplementedError('shards are written by _download_and_prepare')

  _generate_examples = _split_generators

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    """Writes all shards; TFDS then writes the description and moves all."""
    del dl_manager, download_config
    source = self.make_source()
    data_dir = pathlib.Path(self.data_dir)  # a temporary one, until it is whole
    folder = pathlib.Path(tempfile.mkdtemp(prefix='parts.', dir=data_dir))
    runner = self._make_runner(source, folder)
    try:
      self._prepare(source, folder, runner)
    finally:
      runner.close()
    shutil.rmtree(folder)

  def _make_runner(self, source, folder):
    if self.beam_runner:
      options = list(self.beam_options)
      return runners.Beam(self.beam_runner, options, folder)
    return runners.make_runner(self.num_processes, source.num_bytes())

  def _prepare(self, source, folder, runner) -> None:
    for path in source.paths:
      print(f'reading {path}', flush=True)
    tally = Tally()
    collection = read_collection(source, self.policy, folder, runner, tally)
    num_proteins = splits.assign_splits(
      collection, source, self.rule, runner, tally
    )
    written, leaked = shards.write_shards(collection, num_proteins, runner)
    what = 'proteins' if self.rule.is_given else 'clusters'
    for split in splits.SPLITS[:3]:
      if not num_proteins.get(split):
        print(f'  too few {what} for a split {split!r}: left out', flush=True)
    infos, content, index = [], {}, {}
    for split, its_shards in written.items():
      infos.append(self._place_shards(split, its_shards))
      lengths, index[split] = self._write_index(split, its_shards)
      content[split] = {
        'num_proteins': len(lengths),
        'num_residues': int(lengths.sum(dtype=np.int64)),
        'sha256': record.hash_of_sum(shard.hash_sum for shard in its_shards),
      }
    self.info.set_splits(tfds.core.splits.SplitDict(infos))
    self.info.metadata['counts'] = tally.counts
    self.info.metadata['content'] = content
    self.info.metadata['index'] = index
    self.info.metadata['leakage'] = leaked
    print(f'{self.name}: {tally.summary()}', flush=True)
    for split, numbers in leaked.items():
      print(_describe_leakage(split, numbers, content), flush=True)

  def _place_shards(self, split: str, its_shards) -> tfds.core.SplitInfo:
    """Moves shards to the names that TFDS gives them."""
    its_shards = [shard for shard in its_shards if shard.path]
    template = naming.ShardedFileTemplate(
      data_dir=self.data_path,
      dataset_name=self.name,
      split=split,
      filetype_suffix='array_record',
    )
    for number, shard in enumerate(its_shards):
      path = template.sharded_filepath(
        shard_index=number, num_shards=len(its_shards)
      )
      os.replace(shard.path, path)
    return tfds.core.SplitInfo(
      name=split,
      shard_lengths=[len(shard.lengths) for shard in its_shards],
      num_bytes=sum(shard.num_bytes for shard in its_shards),
      filename_template=template,
    )

  def _write_index(self, split: str, its_shards):
    """Writes the lengths of a split's records and their order by length.

    Returns:
      the lengths, and the sha256 of both files by name.
    """
    lengths = [np.zeros(0, np.int32), *(shard.lengths for shard in its_shards)]
    lengths = np.concatenate(lengths)
    order = np.argsort(lengths, kind='stable').astype(np.uint32)
    hashes = {}
    for name, array in (('lengths', lengths), ('by_length', order)):
      path = index_path(self.data_dir, split, name)
      np.save(path, array)
      hashes[name] = split_rule.file_hash(path)
    return lengths, hashes


def _describe_leakage(split: str, numbers: dict, content: dict) -> str:
  """One line on what a split shares with train."""
  size = content[split]['num_proteins']
  measured = numbers['num_measured']
  which = 'its' if measured == size else f'{measured:,} sampled of its'
  return (
    f'  leakage: of {which} {size:,} proteins, {split} has '
    f'{numbers["train_share"]:.1%} that share at least '
    f'{leakage.THRESHOLD:.0%} of their 8-mers with train, '
    f'{numbers["nearest_share"]:.1%} with a single protein of it'
  )
