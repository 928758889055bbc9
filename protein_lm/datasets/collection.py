"""The distinct proteins of a source, in buckets on disk.

Whatever the size of the source, memory holds a block or a bucket of it:

1. blocks are parsed and cleaned, and their records put in buckets by sequence;
2. in each bucket the first of equal sequences is kept (external hashing);
3. ids that occur again become id-2, id-3, the ids themselves being spread over
   partitions by hash.

Everything is a function of the source alone: neither the number of processes
nor the size of blocks shows in the result.
"""

import dataclasses
import functools
import marshal
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from protein_lm.datasets import letters, runners
from protein_lm.datasets.intake import LINE_BITS, ROW, Intake, Tally
from protein_lm.datasets.record import Protein

_BUCKET_BYTES = 2**25
_MAX_BUCKETS = 1024
_BUCKETS_PER_PARTITION = 128
_BLOCK_BYTES = (2**23, 2**26)  # least, most
_ID = np.dtype([('hash', '<u8'), ('ordinal', '<u8'), ('bucket', '<u4')])
_STEM = np.dtype([('hash', '<u8'), ('number', '<u4')])


@dataclasses.dataclass(frozen=True)
class Collection:
  """The distinct proteins of a source; see `read_collection`.

  Attributes:
    folder: of the files.
    num_buckets: by which proteins are spread.
    num_blocks: files of parsed records.
    num_proteins: distinct ones.
    num_residues: of these.
  """

  folder: pathlib.Path
  num_buckets: int
  num_blocks: int
  num_proteins: int = 0
  num_residues: int = 0

  @property
  def num_partitions(self) -> int:
    """By which ids are spread."""
    return -(-self.num_buckets // _BUCKETS_PER_PARTITION)

  def rows(self, bucket: int) -> np.ndarray:
    """The rows (intake.ROW) of a bucket's proteins, in order of digest."""
    return self._all_rows(bucket)[self._kept(bucket)]

  def proteins(self, bucket: int) -> list[Protein]:
    """A bucket's proteins, in the order of `rows`, their ids made distinct."""
    texts = []
    offsets = self._offsets()
    for block, path in enumerate(self._block_paths()):
      start, end = offsets[block, self.num_buckets + bucket :][:2]
      texts += marshal.loads(_read_piece(path, start, end))
    kept = self._kept(bucket)
    proteins = [Protein(*texts[place]) for place in kept.tolist()]
    renamed = np.load(self.folder / 'renamed.npy')
    if len(renamed):
      ordinals = self._all_rows(bucket)['ordinal'][kept]
      at = np.searchsorted(renamed['ordinal'], ordinals)
      at = np.minimum(at, len(renamed) - 1)
      for place in np.flatnonzero(renamed['ordinal'][at] == ordinals).tolist():
        protein = proteins[place]
        protein.id += f'-{renamed["number"][at[place]]}'
    return proteins

  def ids(self, partition: int) -> np.ndarray:
    """Hash, ordinal and bucket of the ids, before any was changed."""
    return self._partition(partition, 'ids', _ID)

  def _stems(self, partition: int) -> np.ndarray:
    return self._partition(partition, 'stems', _STEM)

  def _partition(self, partition: int, name: str, dtype) -> np.ndarray:
    pieces = [
      np.load(self.folder / f'{name}-{partition}-{bucket}.npy')
      for bucket in range(self.num_buckets)
    ]
    return np.concatenate([np.zeros(0, dtype), *pieces])

  def _block_paths(self) -> Iterator[pathlib.Path]:
    return (self.folder / f'block-{i}' for i in range(self.num_blocks))

  def _offsets(self) -> np.ndarray:
    return np.load(self.folder / 'offsets.npy', mmap_mode='r')

  def _kept(self, bucket: int) -> np.ndarray:
    return np.load(self.folder / f'kept-{bucket}.npy')

  def _all_rows(self, bucket: int) -> np.ndarray:
    offsets = self._offsets()
    pieces = [
      np.frombuffer(
        _read_piece(path, *offsets[block, bucket : bucket + 2]), ROW
      )
      for block, path in enumerate(self._block_paths())
    ]
    return np.concatenate([np.zeros(0, ROW), *pieces])


def _read_piece(path: pathlib.Path, start: int, end: int) -> bytes:
  with open(path, 'rb') as file:
    file.seek(start)
    return file.read(end - start)


def _parse_block(block, source, policy, num_buckets, folder):
  """Parses a block into a file; returns where its buckets lie, and counts.

  The file holds the rows of each bucket, then the texts of each bucket.
  """
  intake = Intake(policy, block, num_buckets)
  source.parse(block, intake)
  pieces = [*intake.rows, *map(marshal.dumps, intake.texts)]
  name = f'{block.number}-{block.first}'
  (folder / name).write_bytes(b''.join(pieces))
  sizes = [len(piece) for piece in pieces]
  return name, np.cumsum([0, *sizes]), intake.tally


def _drop_duplicates(bucket: int, collection: Collection):
  """Keeps the first of equal sequences; spreads the ids of those kept.

  Returns:
    proteins, residues, residues read as X and duplicates of the bucket.
  """
  rows = collection._all_rows(bucket)
  order = np.lexsort((rows['ordinal'], rows['digest_low'], rows['digest_high']))
  digests = rows[['digest_high', 'digest_low']][order]
  is_first = np.ones(len(rows), bool)
  is_first[1:] = digests[1:] != digests[:-1]
  kept = order[is_first]
  np.save(collection.folder / f'kept-{bucket}.npy', kept)
  rows = rows[kept]
  ids = np.zeros(len(rows), _ID)
  ids['hash'], ids['ordinal'] = rows['id_hash'], rows['ordinal']
  ids['bucket'] = bucket
  with_stem = rows[rows['stem_number'] > 0]
  stems = np.zeros(len(with_stem), _STEM)
  stems['hash'], stems['number'] = (
    with_stem['stem_hash'],
    with_stem['stem_number'],
  )
  for name, found in (('ids', ids), ('stems', stems)):
    partition_of = found['hash'] % np.uint64(collection.num_partitions)
    for partition in range(collection.num_partitions):
      path = collection.folder / f'{name}-{partition}-{bucket}.npy'
      np.save(path, found[partition_of == partition])
  sums = [int(rows[name].sum()) for name in ('length', 'num_j')]
  return len(kept), *sums, len(order) - len(kept)


def _find_renames(partition: int, collection: Collection) -> np.ndarray:
  """Numbers the second and later of equal ids, past numbers that are taken.

  Returns:
    records of `ordinal`, `bucket` and `number`, for id-number.
  """
  ids = collection.ids(partition)
  ids = ids[np.lexsort((ids['ordinal'], ids['hash']))]
  is_again = np.zeros(len(ids), bool)
  is_again[1:] = ids['hash'][1:] == ids['hash'][:-1]
  again = ids[is_again]
  stems = collection._stems(partition)
  stems = stems[np.isin(stems['hash'], again['hash'])]
  taken = set(
    zip(stems['hash'].tolist(), stems['number'].tolist(), strict=True)
  )
  numbers, last = [], {}
  for hash_ in again['hash'].tolist():
    number = last.get(hash_, 1) + 1
    while (hash_, number) in taken:
      number += 1
    last[hash_] = number
    numbers.append(number)
  renamed = np.zeros(len(again), [*_ID.descr[1:], ('number', '<u4')])
  renamed['ordinal'], renamed['bucket'] = again['ordinal'], again['bucket']
  renamed['number'] = numbers
  return renamed


def read_collection(
  source, policy: letters.LetterPolicy, folder, runner, tally: Tally
) -> Collection:
  """Reads a source into a folder.

  Args:
    source: `paths`, `num_bytes`, `blocks` and `parse`, as `FastaFiles` has.
    policy: for its letters.
    folder: empty; its files are the collection's.
    runner: does the work.
    tally: is told every count.

  Raises:
    ValueError: a file cannot be read, holds no protein, or has symbols in more
      records than the policy allows; says where.
  """
  folder = pathlib.Path(folder)
  num_bytes = source.num_bytes()
  num_buckets = min(max(-(-num_bytes // _BUCKET_BYTES), 1), _MAX_BUCKETS)
  least, most = _BLOCK_BYTES
  block_bytes = min(max(num_bytes // _MAX_BUCKETS, least), most)
  # 1. Parse.
  files = range(len(source.paths))
  blocks = runners.Spread(
    list(files), functools.partial(source.blocks, block_bytes=block_bytes)
  )
  parse = functools.partial(
    _parse_block,
    source=source,
    policy=policy,
    num_buckets=num_buckets,
    folder=folder,
  )
  offsets = []
  for name, its_offsets, its_tally in runner.map(parse, blocks):
    (folder / name).rename(folder / f'block-{len(offsets)}')
    offsets.append(its_offsets)
    tally.add(its_tally)
  np.save(
    folder / 'offsets.npy',
    np.array(offsets, np.int64).reshape(len(offsets), 2 * num_buckets + 1),
  )
  check_symbols(tally, policy)
  # 2. Drop duplicates.
  collection = Collection(folder, num_buckets, len(offsets))
  drop = functools.partial(_drop_duplicates, collection=collection)
  sums = np.array(list(runner.map(drop, range(num_buckets)))).sum(axis=0)
  num_proteins, num_residues, num_j, num_duplicates = sums.tolist()
  tally.counts['J read as X'] += num_j
  tally.counts['duplicates dropped'] += num_duplicates
  tally.counts['kept'] = num_proteins
  if not num_proteins:
    names = ', '.join(map(str, source.paths))
    raise ValueError(
      f'{names} holds no protein ({tally.summary()}); is it a file of protein '
      'sequences?'
    )
  collection = dataclasses.replace(
    collection, num_proteins=num_proteins, num_residues=num_residues
  )
  # 3. Make ids distinct.
  find = functools.partial(_find_renames, collection=collection)
  found = list(runner.map(find, range(collection.num_partitions)))
  renamed = np.concatenate(found)
  renamed.sort(order='ordinal')
  np.save(folder / 'renamed.npy', renamed)
  _tell_renames(source, collection, renamed, tally)
  return collection


def check_symbols(tally: Tally, policy: letters.LetterPolicy) -> None:
  """Refuses a source with symbols in too many records."""
  num_read = tally.counts['records read']
  num_bad = tally.counts['with symbols skipped']
  if num_bad > policy.max_symbol_fraction * num_read:
    kind = 'with symbols skipped'
    first = next(sentence for told, sentence in tally.told if told == kind)
    raise ValueError(
      f'{num_bad:,} of {num_read:,} records ({num_bad / num_read:.1%}) hold '
      f'symbols that are no residues, first {first.removesuffix(", skipped")}; '
      f'at most {policy.max_symbol_fraction:.0%} may, so correct or remove '
      "these records (letters.symbols = 'X' reads symbols as unknown residues)."
    )


def _tell_renames(source, collection, renamed, tally: Tally) -> None:
  """Counts the ids that were changed, and prints the first few."""
  its_tally = Tally()
  for ordinal, bucket, number in renamed[:3].tolist():
    ordinals = collection.rows(bucket)['ordinal']
    place = int(np.flatnonzero(ordinals == ordinal)[0])
    new_id = collection.proteins(bucket)[place].id
    path = source.paths[ordinal >> LINE_BITS]
    line = ordinal & ((1 << LINE_BITS) - 1)
    its_tally.tell(
      'ids made distinct',
      f'{path}:{line}: id {new_id.removesuffix(f"-{number}")} again, now '
      f'{new_id}',
    )
  its_tally.counts['ids made distinct'] = len(renamed)
  tally.add(its_tally)


def read_proteins(
  source, tally: Tally, policy: letters.LetterPolicy = letters.DEFAULT
) -> list[Protein]:
  """Returns the distinct proteins of a source in its order, in memory."""
  with tempfile.TemporaryDirectory() as folder:
    collection = read_collection(
      source, policy, folder, runners.InProcess(), tally
    )
    found = []
    for bucket in range(collection.num_buckets):
      ordinals = collection.rows(bucket)['ordinal'].tolist()
      found += zip(ordinals, collection.proteins(bucket), strict=True)
  return [protein for _, protein in sorted(found, key=lambda pair: pair[0])]
