"""Which split each protein of a collection goes to.

By whole clusters (the default), by lists of ids, by organism, or as the source
itself says. Clusters are those of clusters.py up to `clusters.MAX_SEQUENCES`
proteins; above it those of a table as MMseqs2 writes it, else every sequence is
its own. Proteins with a held-out family (held_out.py) form the split `ood`, and
the other members of their clusters belong to no split.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import marshal
import math
import pathlib
import pickle

import gin
import numpy as np

from protein_lm.datasets import clusters, held_out
from protein_lm.datasets.collection import Collection
from protein_lm.datasets.fasta_file import parse_header, readable
from protein_lm.datasets.intake import LINE_BITS, Tally, hash_id

SPLITS = ('train', 'validation', 'test', 'ood')
# Fewer proteins than this are split as they can be, whatever their clusters.
_MIN_PROTEINS_TO_REFUSE = 100
_NUM_CELLS = 2**20  # of the table of cluster sizes
_LISTED = 'listed'  # beside the splits, counts the proteins that a list names


@gin.configurable('splits')
@dataclasses.dataclass(frozen=True)
class SplitRule:
  """How a collection is split; of ids and organisms at most one is given.

  Attributes:
    ids: 'test=ids.txt' and the like, a file with one id a line; the proteins
      that no file lists are train.
    organisms: 'test=9606' or 'test=Homo sapiens' and the like, one or several
      a split; all other proteins are train.
    clusters: path of a table of clusters, as MMseqs2 writes it: a line for each
      protein, its cluster's representative, a tab, its id.
    family_table: path of a table accession,pfam[,start,end] (commas or tabs,
      gzip or plain, a header line or none); families held out by the rule of
      held_out.py make the split `ood`.
    fractions: of train, validation and test, for clusters.
    max_cluster_fraction: of all residues; a larger cluster is refused, since
      what is linked so far is no longer one family.
  """

  ids: tuple[str, ...] = ()
  organisms: tuple[str, ...] = ()
  clusters: str | None = None
  family_table: str | None = None
  fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
  max_cluster_fraction: float = 0.05

  def __post_init__(self):
    for name in ('ids', 'organisms', 'fractions'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if self.ids and self.organisms:
      raise ValueError(
        'splits.ids and splits.organisms cannot both be given: choose one.'
      )
    if (
      len(self.fractions) != 3
      or min(self.fractions) < 0
      or not math.isclose(sum(self.fractions), 1, abs_tol=1e-6)
    ):
      raise ValueError(
        'splits.fractions must be three shares (train, validation, test) that '
        f'sum to 1, got {self.fractions!r}.'
      )
    if not 0 < self.max_cluster_fraction <= 1:
      raise ValueError(
        'splits.max_cluster_fraction must be above 0 and at most 1, got '
        f'{self.max_cluster_fraction!r}.'
      )

  @property
  def is_given(self) -> bool:
    """Whether ids or organisms say it all, and clusters nothing."""
    return bool(self.ids or self.organisms)

  def identity(self) -> str:
    """What the rule says, with the hashes of the files it names."""
    fields = dataclasses.asdict(self)
    paths = [pair.partition('=')[2] for pair in self.ids]
    for path in (*paths, self.clusters, self.family_table):
      if path:
        fields[path] = file_hash(path)
    return repr(fields)


# Made before any gin file is read.
DEFAULT = SplitRule()


def file_hash(path) -> str:
  """Returns the sha256 of a file, in hex."""
  with readable(path), open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def text_hash(text: str) -> str:
  """Returns the sha256 of a text, in hex."""
  return hashlib.sha256(text.encode()).hexdigest()


def _pairs(pairs, argument: str):
  """Yields (split, text) of 'split=text'."""
  for pair in pairs:
    split, is_pair, text = pair.partition('=')
    if not is_pair or split not in SPLITS or not text:
      raise ValueError(
        f'{argument} must be like test=..., for one of {", ".join(SPLITS)}, '
        f'got {pair!r}.'
      )
    yield split, text


def _read_ids(rule: SplitRule) -> dict[str, str]:
  """Reads the lists of ids: the split of each."""
  split_of = {}
  for split, path in _pairs(rule.ids, 'splits.ids (--split_ids)'):
    with readable(path), open(path, encoding='utf-8-sig') as file:
      for number, line in enumerate(file, 1):
        id_ = parse_header(line.strip().removeprefix('>'))[0]
        if id_ and split_of.setdefault(id_, split) != split:
          raise ValueError(
            f'{path}:{number} puts {id_!r} in {split}, but it is in '
            f'{split_of[id_]} already.'
          )
  return split_of


def _organisms(rule: SplitRule) -> dict[str, str]:
  """The split of each organism that the rule names, in lower case."""
  argument = 'splits.organisms (--split_organisms)'
  split_of = {}
  for split, text in _pairs(rule.organisms, argument):
    name = text.strip().lower()
    if split_of.setdefault(name, split) != split:
      raise ValueError(
        f'{argument} puts {text!r} in {split} and in {split_of[name]}: choose '
        'one.'
      )
  return split_of


@dataclasses.dataclass(frozen=True)
class _Splitter:
  """What decides on one protein.

  Attributes:
    fractions: for clusters.
    by_id, by_organism: split by id, and by taxonomy id or name in lower case.
    by_file: split of each file of the source, or empty.
    families: those held out, or None.
    blocked: clusters that hold a protein of `ood`.
  """

  fractions: dict[str, float]
  by_id: dict[str, str]
  by_organism: dict[str, str]
  by_file: tuple[str, ...] = ()
  families: held_out.HeldOut | None = None
  blocked: frozenset[str] = frozenset()

  @property
  def uses_clusters(self) -> bool:
    return not (self.by_id or self.by_organism or self.by_file)

  @property
  def needs_proteins(self) -> bool:
    return bool(self.families or self.by_id or self.by_organism)

  def is_held_out(self, protein) -> bool:
    return self.families is not None and protein.id in self.families.envelopes

  def __call__(self, ordinal: int, protein, cluster: str) -> str:
    """Returns the split, '' for a neighbour of an ood protein."""
    if self.is_held_out(protein):
      return 'ood'
    if cluster in self.blocked:
      return ''
    if self.by_id:
      return self.by_id.get(protein.id, 'train')
    if self.by_organism:
      return self._of_organism(protein)
    if self.by_file:
      return self.by_file[ordinal >> LINE_BITS]
    return clusters.split_of(cluster, self.fractions)

  def _of_organism(self, protein) -> str:
    name = protein.organism.lower()
    for key in (
      str(protein.taxonomy_id),
      name,
      name.partition(' (')[0],  # without the strain
    ):
      if key in self.by_organism:
        return self.by_organism[key]
    return 'train'


def _make_splitter(source, rule: SplitRule, num_proteins: int) -> _Splitter:
  """Reads what the rule names."""
  told = [source.split_of(i) for i in range(len(source.paths))]
  by_file = tuple(split or 'train' for split in told)
  if rule.ids or rule.organisms or not set(by_file) - {'train'}:
    by_file = ()
  families = None
  if rule.family_table:
    domains = held_out.read_domains(pathlib.Path(rule.family_table))
    families = held_out.hold_out(domains, num_proteins)
    if not families.groups:
      raise ValueError(
        f'{rule.family_table} has no group of families that is small enough to '
        f'hold out of {num_proteins:,} proteins, about a tenth at most; add '
        'smaller families, or split by ids (--split_ids=test=ids.txt).'
      )
    print(
      f'holding out {len(families.groups)} groups of {len(families.families)} '
      f'families in {len(families.envelopes):,} proteins '
      f'({len(families.pure)} pure) in all',
      flush=True,
    )
  return _Splitter(
    fractions=dict(zip(SPLITS[:3], rule.fractions, strict=True)),
    by_id=_read_ids(rule),
    by_organism=_organisms(rule),
    by_file=by_file,
    families=families,
  )


def assign_splits(
  collection: Collection, source, rule: SplitRule, runner, tally: Tally
) -> dict[str, int]:
  """Assigns each protein of a collection; `assigned` reads the result.

  Returns:
    the number of proteins of each split.

  Raises:
    ValueError: a table cannot be read or does not fit the collection, or a
      cluster is too large; one sentence.
  """
  if rule.clusters and tally.counts['ids made distinct']:
    raise ValueError(
      f'{tally.counts["ids made distinct"]:,} ids stand for a second sequence, '
      f'so that {rule.clusters} cannot say which is meant; give each sequence '
      'an id of its own and cluster again.'
    )
  splitter = _make_splitter(source, rule, collection.num_proteins)
  if collection.num_proteins <= clusters.MAX_SEQUENCES:
    assigned = _assign_in_memory(collection, splitter, rule, tally)
  else:
    assigned = _assign_by_bucket(collection, splitter, rule, runner, tally)
  num_neighbours = assigned.pop('', 0)
  num_missing = len(splitter.by_id) - assigned.pop(_LISTED, 0)
  if splitter.families:
    tally.counts['kept'] -= num_neighbours
    tally.counts['neighbours of ood dropped'] = num_neighbours
    if not assigned['ood']:
      raise ValueError(
        f'no protein of {rule.family_table} with a held-out family is in the '
        'collection; its first column must hold the ids of the proteins.'
      )
  for names, argument in (
    (splitter.by_id, 'splits.ids'),
    (splitter.by_organism, 'splits.organisms'),
  ):
    for split in dict.fromkeys(names.values()):
      if not assigned[split]:
        raise ValueError(
          f'no protein of the collection is in what {argument} gives to '
          f'{split!r}, such as {next(n for n in names if names[n] == split)!r}.'
        )
  if num_missing:
    tally.counts['listed ids not found'] = num_missing
    print(
      f'  {num_missing:,} listed ids are not in the collection (absent, or '
      'dropped as duplicates)',
      flush=True,
    )
  return dict(assigned)


def assigned(collection: Collection, bucket: int) -> list[tuple[str, str]]:
  """Returns (split, cluster) of each of a bucket's proteins."""
  path = collection.folder / f'assigned-{bucket}'
  return marshal.loads(path.read_bytes())


def families_of(collection: Collection) -> held_out.HeldOut | None:
  """Returns the families that `assign_splits` held out."""
  return _load_splitter(str(collection.folder / 'splitter')).families


def _save_splitter(collection, splitter) -> str:
  path = collection.folder / 'splitter'
  path.write_bytes(pickle.dumps(splitter))
  _load_splitter.cache_clear()
  return str(path)


@functools.lru_cache(maxsize=1)
def _load_splitter(path: str) -> _Splitter:
  return pickle.loads(pathlib.Path(path).read_bytes())


def _write_assigned(collection, bucket, result) -> None:
  path = collection.folder / f'assigned-{bucket}'
  path.write_bytes(marshal.dumps(result))


def _refuse(name: str, share: float, limit: float) -> ValueError:
  return ValueError(
    f'the cluster of {name} holds {share:.1%} of all residues, more than '
    f'{limit:.0%}: sequences linked so far are no single family, and no split '
    'of them says much; give clusters of your own (--clusters=cluster.tsv), '
    'lists of ids (--split_ids=test=ids.txt), or accept it with '
    '--max_cluster_fraction=1.'
  )


def _assign_in_memory(collection, splitter, rule, tally):
  """Assigns a collection that is small enough to be clustered here."""
  places, proteins = [], []
  for bucket in range(collection.num_buckets):
    ordinals = collection.rows(bucket)['ordinal'].tolist()
    places += [(o, bucket) for o in ordinals]
    proteins += collection.proteins(bucket)
  order = sorted(range(len(places)), key=places.__getitem__)
  ids = [proteins[i].id for i in order]
  if rule.clusters:
    table = {}
    for id_, cluster in _read_clusters(rule.clusters):
      _put(table, id_, cluster, rule)
    found = [_cluster_in(table, id_, rule) for id_ in ids]
  else:
    print(f'clustering {len(ids):,} sequences by 8-mers', flush=True)
    found = clusters.name_clusters(ids, [proteins[i].sequence for i in order])
  names = [''] * len(places)
  for i, name in zip(order, found, strict=True):
    names[i] = name
  residues, members = collections.Counter(), collections.Counter(names)
  for name, protein in zip(names, proteins, strict=True):
    residues[name] += len(protein.sequence)
  tally.counts['clusters'] = len(residues)
  total, limit = sum(residues.values()), rule.max_cluster_fraction
  if splitter.uses_clusters and len(proteins) >= _MIN_PROTEINS_TO_REFUSE:
    # One protein alone is as it is; it goes to train below.
    sizes = {name: n for name, n in residues.items() if members[name] > 1}
    largest = max(sizes, key=sizes.get, default=None)
    if largest and sizes[largest] > limit * total:
      raise _refuse(largest, sizes[largest] / total, limit)
  blocked = frozenset(
    name
    for name, protein in zip(names, proteins, strict=True)
    if splitter.is_held_out(protein)
  )
  splitter = dataclasses.replace(splitter, blocked=blocked)
  _save_splitter(collection, splitter)
  free = {name: n for name, n in residues.items() if name not in blocked}
  of_cluster = {}
  if splitter.uses_clusters:
    of_cluster = clusters.split_clusters(free, splitter.fractions)
  result = [[] for _ in range(collection.num_buckets)]
  counts = collections.Counter(dict.fromkeys(SPLITS, 0))
  for (ordinal, bucket), protein, name in zip(
    places, proteins, names, strict=True
  ):
    split = splitter(ordinal, protein, name)
    if split not in ('', 'ood') and splitter.uses_clusters:
      split = of_cluster[name]
    result[bucket].append((split, name))
    counts[split] += 1
    counts[_LISTED] += protein.id in splitter.by_id
  for bucket, its_result in enumerate(result):
    _write_assigned(collection, bucket, its_result)
  return counts


def _assign_by_bucket(collection, splitter, rule, runner, tally):
  """Assigns a collection of any size, bucket by bucket."""
  if rule.clusters:
    tally.counts['clusters'] = _spread_clusters(collection, rule.clusters)
    join = functools.partial(_join_clusters, collection=collection, rule=rule)
    list(runner.map(join, range(collection.num_partitions)))
  else:
    tally.counts['clusters'] = collection.num_proteins
    if splitter.uses_clusters:
      print(
        f'{collection.num_proteins:,} sequences are too many to cluster here: '
        'splitting by the hash of each, so that relatives may be in several '
        'splits (--clusters=cluster.tsv takes clusters made by MMseqs2)',
        flush=True,
      )
  buckets = range(collection.num_buckets)
  path = _save_splitter(collection, splitter)
  if splitter.families and rule.clusters:
    block = functools.partial(_blocked, collection=collection, splitter=path)
    blocked = frozenset().union(*runner.map(block, buckets))
    splitter = dataclasses.replace(splitter, blocked=blocked)
    path = _save_splitter(collection, splitter)
  assign = functools.partial(
    _assign_bucket,
    collection=collection,
    splitter=path,
    has_clusters=bool(rule.clusters),
  )
  counts = collections.Counter(dict.fromkeys(SPLITS, 0))
  sizes = np.zeros(_NUM_CELLS)
  for its_counts, its_sizes in runner.map(assign, buckets):
    counts.update(its_counts)
    sizes += its_sizes
  limit = rule.max_cluster_fraction
  if splitter.uses_clusters and sizes.max() > limit * collection.num_residues:
    cell = int(sizes.argmax())
    raise _refuse(
      _largest_in_cell(collection, cell),
      sizes[cell] / collection.num_residues,
      limit,
    )
  return counts


def _cell(cluster: str) -> int:
  return hash_id(cluster) % _NUM_CELLS


def _assign_bucket(bucket, collection, splitter, has_clusters):
  """Assigns a bucket; returns counts of splits and residues by cluster cell."""
  split_of = _load_splitter(splitter)
  rows = collection.rows(bucket)
  ordinals = rows['ordinal'].tolist()
  proteins = itertools.repeat(None, len(rows))
  if split_of.needs_proteins:
    proteins = collection.proteins(bucket)
  names = (
    _joined(collection, bucket, ordinals)
    if has_clusters
    else [f'{high:016x}' for high in rows['digest_high'].tolist()]
  )
  result = [
    (split_of(ordinal, protein, name), name)
    for ordinal, protein, name in zip(ordinals, proteins, names, strict=True)
  ]
  _write_assigned(collection, bucket, result)
  sizes = np.zeros(_NUM_CELLS)
  if has_clusters:
    np.add.at(sizes, [_cell(name) for name in names], rows['length'])
  counts = collections.Counter(split for split, _ in result)
  if split_of.by_id:
    counts[_LISTED] = sum(protein.id in split_of.by_id for protein in proteins)
  return counts, sizes


def _blocked(bucket, collection, splitter) -> set[str]:
  """The clusters of a bucket's ood proteins."""
  is_held_out = _load_splitter(splitter).is_held_out
  names = _joined(
    collection, bucket, collection.rows(bucket)['ordinal'].tolist()
  )
  return {
    name
    for name, protein in zip(names, collection.proteins(bucket), strict=True)
    if is_held_out(protein)
  }


def _largest_in_cell(collection, cell: int) -> str:
  """The largest cluster among those that share a cell."""
  residues = collections.Counter()
  for bucket in range(collection.num_buckets):
    lengths = collection.rows(bucket)['length'].tolist()
    for (_, name), length in zip(
      assigned(collection, bucket), lengths, strict=True
    ):
      if _cell(name) == cell:
        residues[name] += length
  return residues.most_common(1)[0][0]


def _read_clusters(path):
  """Yields (id, cluster) of each line of a table of clusters."""
  with readable(path), open(path, encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      cluster, is_pair, id_ = line.rstrip('\n').partition('\t')
      if not is_pair or '\t' in id_:
        raise ValueError(
          f'{path}:{number} holds {line.strip()[:40]!r}, not a representative, '
          'a tab and an id, as in the cluster.tsv of MMseqs2.'
        )
      yield parse_header(id_)[0], parse_header(cluster)[0]


def _cluster_in(table, id_: str, rule) -> str:
  if id_ not in table:
    raise ValueError(
      f'{rule.clusters} has no line for {id_!r} of the collection; cluster the '
      'same sequences that are prepared.'
    )
  return table[id_]


def _put(table, id_, cluster: str, rule) -> None:
  """Puts a line of the table of clusters under its id, or the id's hash."""
  other = table.setdefault(id_, cluster)
  if other != cluster:
    raise ValueError(
      f'{rule.clusters} puts one id in two clusters, {other!r} and '
      f'{cluster!r}; give each sequence an id of its own and cluster again.'
    )


def _spread_clusters(collection, path) -> int:
  """Spreads a table over partitions by id; returns the number of clusters."""
  num_clusters = 0
  with contextlib.ExitStack() as stack:
    files = [
      stack.enter_context(open(collection.folder / f'table-{i}', 'wb'))
      for i in range(collection.num_partitions)
    ]
    for id_, cluster in _read_clusters(path):
      hash_ = hash_id(id_)
      marshal.dump((hash_, cluster), files[hash_ % len(files)])
      num_clusters += id_ == cluster
  return num_clusters


def _join_clusters(partition, collection, rule) -> None:
  """Finds the cluster of each id of a partition."""
  table = {}
  with open(collection.folder / f'table-{partition}', 'rb') as file:
    while True:
      try:
        hash_, cluster = marshal.load(file)
      except EOFError:
        break
      _put(table, hash_, cluster, rule)
  found = [{} for _ in range(collection.num_buckets)]
  for hash_, ordinal, bucket in collection.ids(partition).tolist():
    if hash_ not in table:
      ordinals = collection.rows(bucket)['ordinal']
      place = int(np.flatnonzero(ordinals == ordinal)[0])
      _cluster_in({}, collection.proteins(bucket)[place].id, rule)
    found[bucket][ordinal] = table[hash_]
  for bucket, clusters_of in enumerate(found):
    path = collection.folder / f'joined-{partition}-{bucket}'
    path.write_bytes(marshal.dumps(clusters_of))


def _joined(collection, bucket, ordinals) -> list[str]:
  """The clusters, by `_join_clusters`, of a bucket's proteins."""
  found = {}
  for partition in range(collection.num_partitions):
    path = collection.folder / f'joined-{partition}-{bucket}'
    found |= marshal.loads(path.read_bytes())
  return [found[ordinal] for ordinal in ordinals]
