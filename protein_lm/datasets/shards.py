"""The records of a collection, written as ArrayRecord shards with their index.

First train, in which the 8-mers of held-out proteins are looked for meanwhile;
then the held-out splits, each record with its share. A bucket of the collection
is a shard of each split; in it records are in the order of the hash of their
sequence, which is no order at all.
"""

import contextlib
import dataclasses
import errno
import functools
import marshal
import os
import pathlib
import pickle

import numpy as np

from protein_lm.datasets import clusters, leakage, record, splits
from protein_lm.datasets.collection import Collection

# Held-out proteins looked for in train, of each split of a large collection.
_SAMPLE_SIZE = 1_000
_FIELDS = [field.name for field in dataclasses.fields(record.Protein)][:6]
# For random reads; compression would save a fifth of the bytes and cost more
# time than all the rest (scripts/BENCHMARKS.md, section 7).
_WRITER_OPTIONS = 'group_size:1,uncompressed'


@dataclasses.dataclass(frozen=True)
class Shard:
  """What was written of a split from a bucket.

  Attributes:
    path: of the ArrayRecord file, None if there is no record.
    lengths: residues of each record, int32.
    hash_sum: of `record.hash_number`.
    num_bytes: of the records.
  """

  path: pathlib.Path | None
  lengths: np.ndarray
  hash_sum: int
  num_bytes: int


def write_shards(
  collection: Collection, num_proteins: dict[str, int], runner
) -> tuple[dict[str, list[Shard]], dict[str, dict]]:
  """Writes all splits of a collection into its folder.

  Args:
    collection: with its splits assigned.
    num_proteins: of each split.
    runner: does the work.

  Returns:
    shards of each split, in order, and its leakage: number measured, and the
    share of these that have `leakage.THRESHOLD` of their 8-mers in train as a
    whole, and in one protein of it.
  """
  buckets = range(collection.num_buckets)
  names = [split for split in splits.SPLITS[1:] if num_proteins.get(split)]
  # 1. The held-out proteins that are looked for.
  limits = dict.fromkeys(names, 2**64)
  if collection.num_proteins > clusters.MAX_SEQUENCES:
    for split in limits:
      fraction = min(1.0, _SAMPLE_SIZE / num_proteins[split])
      limits[split] = int(fraction * 2**64)
  choose = functools.partial(_choose, collection=collection, limits=limits)
  chosen = [one for found in runner.map(choose, buckets) for one in found]
  words = leakage.HeldOutWords([sequence for _, _, sequence in chosen])
  path = collection.folder / 'held_out_words'
  path.write_bytes(pickle.dumps(words))
  # 2. Train.
  write = functools.partial(
    _write_train, collection=collection, words_path=str(path)
  )
  shards, found = {'train': []}, words.nothing()
  for shard, its_found in runner.map(write, buckets):
    shards['train'].append(shard)
    found |= its_found
  in_train, nearest = words.shares(found)
  # 3. The others.
  shares = {
    ordinal: float(share)
    for (ordinal, _, _), share in zip(chosen, nearest, strict=True)
  }
  path = collection.folder / 'shares'
  path.write_bytes(pickle.dumps(shares))
  write = functools.partial(
    _write_held_out, collection=collection, names=names, path=str(path)
  )
  for its_shards in runner.map(write, buckets):
    for split, shard in its_shards.items():
      shards.setdefault(split, []).append(shard)
  if not num_proteins.get('train'):
    del shards['train']
  split_of = np.array([split for _, split, _ in chosen])
  return shards, {
    split: {
      'num_measured': int((split_of == split).sum()),
      'train_share': _leaked(in_train[split_of == split]),
      'nearest_share': _leaked(nearest[split_of == split]),
    }
    for split in limits
  }


def _leaked(shares: np.ndarray) -> float:
  return float((shares >= leakage.THRESHOLD).mean()) if len(shares) else 0.0


def _choose(bucket, collection, limits) -> list[tuple[int, str, str]]:
  """Returns (ordinal, split, sequence) of held-out proteins, all or some."""
  rows = collection.rows(bucket)
  chosen = [
    (place, split)
    for place, (low, (split, _)) in enumerate(
      zip(
        rows['digest_low'].tolist(),
        splits.assigned(collection, bucket),
        strict=True,
      )
    )
    if low < limits.get(split, 0)
  ]
  if not chosen:
    return []
  proteins = collection.proteins(bucket)
  return [
    (int(rows['ordinal'][place]), split, proteins[place].sequence)
    for place, split in chosen
  ]


class _Writer:
  """Writes one shard; `Shard` is made at the end."""

  def __init__(self, path: pathlib.Path):
    from array_record.python import array_record_module

    self._path = path
    self._writer = array_record_module.ArrayRecordWriter(
      str(path), _WRITER_OPTIONS
    )
    self._to_bytes = record.Encoder().to_bytes
    self._lengths, self._hash_sum, self._num_bytes = [], 0, 0

  def write(self, protein: record.Protein) -> None:
    data = self._to_bytes(protein)
    with self._storing():
      self._writer.write(data)
    self._lengths.append(len(protein.sequence))
    self._hash_sum += record.hash_number(protein)
    self._num_bytes += len(data)

  @contextlib.contextmanager
  def _storing(self):
    try:
      yield
    except RuntimeError as error:  # ArrayRecord has no other
      number = errno.ENOSPC if 'No space left' in str(error) else errno.EIO
      raise OSError(number, os.strerror(number), str(self._path)) from error

  def close(self) -> Shard:
    with self._storing():
      self._writer.close()
    if not self._lengths:
      self._path.unlink()
    return Shard(
      path=self._path if self._lengths else None,
      lengths=np.array(self._lengths, np.int32),
      hash_sum=self._hash_sum,
      num_bytes=self._num_bytes,
    )


def _shard_path(collection, split: str, bucket: int) -> pathlib.Path:
  return collection.folder / f'{split}-{bucket}.array_record'


def _members(bucket, collection):
  """Yields (ordinal, split, protein) of a bucket, with the cluster set."""
  for ordinal, protein, (split, cluster) in zip(
    collection.rows(bucket)['ordinal'].tolist(),
    collection.proteins(bucket),
    splits.assigned(collection, bucket),
    strict=True,
  ):
    protein.cluster = cluster
    yield ordinal, split, protein


def _write_train(bucket, collection, words_path):
  """Writes a shard of train, and puts the held-out proteins aside.

  Returns:
    the shard, and what of the held-out words it has.
  """
  writer = _Writer(_shard_path(collection, 'train', bucket))
  sequences, held_out = [], []
  for ordinal, split, protein in _members(bucket, collection):
    if split == 'train':
      protein.nearest_train_share = 1.0
      writer.write(protein)
      sequences.append(protein.sequence)
    elif split:
      fields = [getattr(protein, name) for name in _FIELDS]
      held_out.append((ordinal, split, *fields))
  path = collection.folder / f'held_out-{bucket}'
  path.write_bytes(marshal.dumps(held_out))
  return writer.close(), _unpickled(words_path).look_for(sequences)


def _write_held_out(bucket, collection, names, path) -> dict[str, Shard]:
  """Writes a shard of each held-out split."""
  shares, families = _unpickled(path), splits.families_of(collection)
  writers = {
    split: _Writer(_shard_path(collection, split, bucket)) for split in names
  }
  aside = (collection.folder / f'held_out-{bucket}').read_bytes()
  for ordinal, split, *fields in marshal.loads(aside):
    protein = record.Protein(*fields)
    protein.nearest_train_share = shares.get(ordinal, float('nan'))
    if split == 'ood' and families and protein.id in families.envelopes:
      protein.envelopes = _envelopes(protein, families)
      protein.pure = protein.id in families.pure
    writers[split].write(protein)
  return {split: writer.close() for split, writer in writers.items()}


def _envelopes(protein, families) -> tuple[tuple[int, int], ...]:
  """The held-out domains of a protein, which must lie in it."""
  envelopes = families.envelopes[protein.id]
  for start, end in envelopes:
    if end > len(protein.sequence):
      raise ValueError(
        f'the table of families has a domain {start}-{end} of {protein.id!r}, '
        f'which has {len(protein.sequence):,} residues; take the table of the '
        'same release as the sequences.'
      )
  return envelopes


@functools.lru_cache(maxsize=2)
def _unpickled(path: str):
  return pickle.loads(pathlib.Path(path).read_bytes())
