"""The splits of a prepared data set: whole in memory, or by number from disk.

Axes: P proteins, T all residues of all proteins (or all tokens), L residues of
one protein.
"""

import dataclasses
import functools
import hashlib
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from protein_lm import vocab

# A split of up to so many residues is read into memory at once.
MAX_RESIDUES_IN_MEMORY = 2**26
# With seek, 3 us a record in random order; other options or reads by number
# take 40 to 800 us (scripts/BENCHMARKS.md, section 4).
_ONE_BY_ONE = 'readahead_buffer_size:0,max_parallelism:0'


@dataclasses.dataclass(frozen=True)
class Proteins:
  """The proteins of a split, their residues one after another.

  Attributes:
    ids: [P] names.
    residues: [T] uint8, ids of residues; protein p has
      `residues[offsets[p]:offsets[p + 1]]`.
    offsets: [P + 1] int64.
    held_out: [T] bool, whether a residue lies in a held-out domain.
    pure: [P] bool, whether a protein shares no family with one outside `ood`.
    clusters: [P] names of the 8-mer clusters.
    nearest_train_share: [P] float32, see `record.Protein`; NaN where it was
      not measured.
  """

  ids: list[str]
  residues: np.ndarray
  offsets: np.ndarray
  held_out: np.ndarray
  pure: np.ndarray
  clusters: list[str]
  nearest_train_share: np.ndarray

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def lengths(self) -> np.ndarray:
    """[P] residues of each protein."""
    return np.diff(self.offsets)


def from_sequences(sequences: dict[str, str]) -> Proteins:
  """Makes Proteins of id -> sequence, held out nowhere."""
  encoded = [vocab.encode(sequence) for sequence in sequences.values()]
  residues_T = np.concatenate([np.zeros(0, np.uint8), *encoded])
  return Proteins(
    ids=list(sequences),
    residues=residues_T,
    offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    held_out=np.zeros(len(residues_T), bool),
    pure=np.zeros(len(encoded), bool),
    clusters=list(sequences),
    nearest_train_share=np.full(len(encoded), np.nan, np.float32),
  )


def read_fasta(path) -> Proteins:
  """Reads the distinct proteins of a FASTA file; prints what was left out.

  Raises:
    ValueError: the file cannot be read, or holds no protein.
  """
  from protein_lm.datasets.collection import read_proteins
  from protein_lm.datasets.fasta_file import FastaFiles
  from protein_lm.datasets.intake import Tally

  tally = Tally()
  members = read_proteins(FastaFiles((pathlib.Path(path),)), tally)
  print(f'{path}: {tally.summary()}', flush=True)
  return from_sequences({protein.id: protein.sequence for protein in members})


def with_ends(proteins: Proteins) -> tuple[np.ndarray, np.ndarray]:
  """Returns flat tokens with BOS and EOS, [T] uint8, and offsets, [P + 1]."""
  starts = proteins.offsets + 2 * np.arange(len(proteins) + 1)
  tokens_T = np.empty(starts[-1], np.uint8)
  is_residue_T = np.ones(starts[-1], bool)
  for place, token_id in (
    (starts[:-1], vocab.BOS_ID),
    (starts[1:] - 1, vocab.EOS_ID),
  ):
    tokens_T[place] = token_id
    is_residue_T[place] = False
  tokens_T[is_residue_T] = proteins.residues
  return tokens_T, starts


def load_proteins(builder, split: str) -> Proteins:
  """Reads a split of a prepared data set, and checks it against its hash.

  Args:
    builder: as `prepare.prepare` returns it.
    split: one of its splits.

  Raises:
    ValueError: no such split, or a file is missing, damaged or changed.
  """
  from protein_lm.datasets import record

  content = _content(builder, split)
  members = []
  for path, size in _shards(builder, split):
    members += _decoded(
      path, _read_shard(path, size, builder), builder.data_dir
    )
  if record.content_hash(members) != content['sha256']:
    raise _damaged(
      builder.data_dir,
      f'the proteins of split {split!r} are not those that were prepared',
      builder.data_dir,
    )
  return _flatten(members)


def read_ids(builder, split: str) -> list[str]:
  """Reads the ids of a split, a file at a time, in the order of its stores.

  Raises:
    ValueError: no such split, or a file is missing or damaged.
  """
  _content(builder, split)
  return [
    protein.id
    for path, size in _shards(builder, split)
    for protein in _decoded(
      path, _read_shard(path, size, builder), builder.data_dir
    )
  ]


class MemoryStore:
  """The sequences of a split by number, in memory.

  Attributes:
    lengths: [P] residues of each protein.
    by_length: [P] numbers by ascending length, then by number.
  """

  def __init__(self, proteins: Proteins):
    self._residues_T, self._offsets = proteins.residues, proteins.offsets
    self.lengths = proteins.lengths
    self.by_length = np.argsort(self.lengths, kind='stable')

  def many(self, numbers: Sequence[int]) -> list[np.ndarray]:
    """Returns the residues of each, [L] uint8."""
    residues_T, offsets = self._residues_T, self._offsets
    return [residues_T[offsets[i] : offsets[i + 1]] for i in numbers]


class DiskStore:
  """The sequences of a split by number, read when they are asked for.

  Holds no more than `lengths` and `by_length`, both mapped from files that
  were written in preparation. Can be sent to another process.

  Attributes: as those of MemoryStore.
  """

  def __init__(self, builder, split: str):
    self._folder = pathlib.Path(builder.data_dir)
    shards = list(_shards(builder, split))
    self._paths = [path for path, _ in shards]
    self._sizes = [size for _, size in shards]
    self._starts = np.cumsum([0, *self._sizes])
    num_proteins = _content(builder, split)['num_proteins']
    self._index = {
      name: index_path(self._folder, split, name)
      for name in ('lengths', 'by_length')
    }
    for name, path in self._index.items():
      found = getattr(self, name).shape
      if found != (num_proteins,):
        why = f'{found} numbers, not {num_proteins}'
        raise _damaged(path, why, self._folder)
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      if digest != builder.info.metadata['index'][split][name]:
        raise _damaged(path, 'it has other bytes', self._folder)

  def __getstate__(self):
    cached = ('lengths', 'by_length', '_readers', '_lock')
    return {k: v for k, v in self.__dict__.items() if k not in cached}

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    return self._mapped('lengths')

  @functools.cached_property
  def by_length(self) -> np.ndarray:
    return self._mapped('by_length')

  @functools.cached_property
  def _readers(self) -> dict:
    return {}

  @functools.cached_property
  def _lock(self):
    return threading.Lock()  # a reader has a place of its own in its file

  def _mapped(self, name: str) -> np.ndarray:
    path = self._index[name]
    try:
      return np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
      raise _damaged(path, error, self._folder) from error

  def _reader(self, shard: int):
    if shard not in self._readers:
      self._readers[shard] = _open_shard(
        self._paths[shard],
        self._sizes[shard],
        self._folder,
        _ONE_BY_ONE,
      )
    return self._readers[shard]

  def many(self, numbers: Sequence[int]) -> list[np.ndarray]:
    """Returns the residues of each, [L] uint8.

    Raises:
      ValueError: a shard is missing or damaged; names shard and record.
    """
    numbers = np.asarray(numbers, np.int64)
    shard_of = np.searchsorted(self._starts, numbers, side='right') - 1
    found = [None] * len(numbers)
    with self._lock:
      for shard in np.unique(shard_of).tolist():
        (places,) = np.nonzero(shard_of == shard)
        try:
          its = self._read(shard, numbers[places])
        except ValueError:
          self._readers.pop(shard, None)  # it reads nothing more
          raise
        for place, residues in zip(places.tolist(), its, strict=True):
          found[place] = residues
    return found

  def _read(self, shard: int, numbers: np.ndarray) -> list[np.ndarray]:
    """Returns the residues of some proteins of a shard."""
    reader, path = self._reader(shard), self._paths[shard]
    records = (numbers - self._starts[shard]).tolist()
    raw = _read(reader, path, records, self._folder)
    found = []
    for record, length, protein in zip(
      records,
      self.lengths[numbers].tolist(),
      _decoded(path, raw, self._folder, records),
      strict=True,
    ):
      if len(protein.sequence) != length:
        where = f'{path}, record {record}'
        raise _damaged(where, 'another length than prepared', self._folder)
      found.append(vocab.encode(protein.sequence))
    return found


def open_store(builder, split: str) -> MemoryStore | DiskStore:
  """Returns the sequences of a split, in memory if they are few enough.

  Raises:
    ValueError: no such split, or a file is missing, damaged or changed.
  """
  if _content(builder, split)['num_residues'] <= MAX_RESIDUES_IN_MEMORY:
    return MemoryStore(load_proteins(builder, split))
  return DiskStore(builder, split)


def index_path(folder, split: str, name: str) -> pathlib.Path:
  """Where preparation writes the lengths of a split, or their order."""
  return pathlib.Path(folder, f'{split}-{name}.npy')


def _content(builder, split: str) -> dict:
  content = builder.info.metadata['content']
  if split not in content:
    raise ValueError(
      f'{builder.info.full_name} has no split {split!r}; it has '
      f'{", ".join(content)}.'
    )
  return content[split]


def _shards(builder, split: str) -> Iterator[tuple[str, int]]:
  """Yields the path and the number of records of each shard."""
  info = builder.info.splits[split]
  yield from zip(map(str, info.filepaths), info.shard_lengths, strict=True)


def _open_shard(path: str, size: int, folder, options: str = ''):
  """Returns a reader of one ArrayRecord file of so many records."""
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(path, options)
  found = reader.num_records()
  if found == size:
    return reader
  why = f'{found} records, not {size}'
  try:
    reader.close()  # raises what opening the file did not
  except (RuntimeError, IndexError) as error:
    why = error
  raise _damaged(path, why, folder)


def _read_shard(path: str, size: int, builder) -> list[bytes]:
  """Reads all records of one ArrayRecord file."""
  try:
    return _open_shard(path, size, builder.data_dir).read_all()
  except (RuntimeError, IndexError):  # say which record is damaged
    reader = _open_shard(path, size, builder.data_dir, _ONE_BY_ONE)
    return list(_read(reader, path, range(size), builder.data_dir))


def _read(reader, path: str, records: Sequence[int], folder) -> Iterator[bytes]:
  """Yields records by number; names one that is damaged."""
  for number in records:
    try:
      reader.seek(number)
      yield reader.read()
    except (RuntimeError, IndexError) as error:
      raise _damaged(f'{path}, record {number}', error, folder) from error


def _decoded(path: str, raw: Iterable[bytes], folder, records=None) -> Iterator:
  """Yields the proteins of records; names one that holds something else."""
  from protein_lm.datasets import record

  for place, data in enumerate(raw):
    try:
      yield record.from_bytes(data)
    except Exception as error:
      number = place if records is None else records[place]
      where = f'{path}, record {number}'
      raise _damaged(where, error, folder) from error


def _damaged(where, why, folder) -> ValueError:
  return ValueError(
    f'{where} cannot be read as it was prepared '
    f'({str(why)[:200] or type(why).__name__}); delete '
    f'{folder} and prepare again.'
  )


def _flatten(members: list) -> Proteins:
  """Lays proteins one after another and marks held-out residues."""
  proteins = from_sequences({member.id: member.sequence for member in members})
  for index, member in enumerate(members):
    proteins.pure[index] = member.pure
    proteins.nearest_train_share[index] = member.nearest_train_share
    first = proteins.offsets[index]
    for start, end in member.envelopes:
      proteins.held_out[first + start - 1 : first + end] = True
  clusters = [member.cluster for member in members]
  return dataclasses.replace(proteins, clusters=clusters)
