"""Which split each protein of a collection goes to.

By whole clusters (the default), by lists of ids, by organism, or as the source
itself says. Clusters are those of clusters.py up to `clusters.MAX_SEQUENCES`
proteins; above it those of a table as MMseqs2 writes it, else every sequence is
its own. Proteins with a held-out family (held_out.py) form the split `ood`, and
the other members of their clusters belong to no split.
"""

import collections
import dataclasses
import functools
import itertools
import marshal
import pathlib
import pickle

import numpy as np

from protein_lm.datasets import cluster_table, clusters, held_out
from protein_lm.datasets.collection import Collection
from protein_lm.datasets.intake import Tally, hash_id
from protein_lm.datasets.split_rule import (
  SPLITS,
  SplitRule,
  Splitter,
  make_splitter,
)

# Fewer proteins than this are split as they can be, whatever their clusters.
_MIN_PROTEINS_TO_REFUSE = 100
_NUM_CELLS = 2**20  # of the table of cluster sizes
_LISTED = 'listed'  # beside the splits, counts the proteins that a list names


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
  splitter = make_splitter(source, rule, collection.num_proteins)
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


def _save_splitter(collection, splitter, name: str = 'splitter') -> str:
  """Saves under a name of its own: workers keep what they have loaded."""
  path = collection.folder / name
  path.write_bytes(pickle.dumps(splitter))
  _load_splitter.cache_clear()
  return str(path)


@functools.lru_cache(maxsize=1)
def _load_splitter(path: str) -> Splitter:
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
    for id_, cluster in cluster_table.read_clusters(rule.clusters):
      cluster_table.put(table, id_, cluster, rule)
    found = [cluster_table.cluster_in(table, id_, rule) for id_ in ids]
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
    tally.counts['clusters'] = cluster_table.spread(collection, rule.clusters)
    join = functools.partial(
      cluster_table.join, collection=collection, rule=rule
    )
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
    path = _save_splitter(collection, splitter, 'splitter-blocked')
  counts, sizes = _assign_buckets(collection, path, rule, runner)
  if not splitter.uses_clusters:
    return counts
  shares, limit = sizes / collection.num_residues, rule.max_cluster_fraction
  if shares.max() > limit:
    cell = int(shares.argmax())
    raise _refuse(_largest_in_cell(collection, cell), shares[cell], limit)
  large = np.flatnonzero(shares > clusters.MAX_SPLIT_FRACTION).tolist()
  if large:
    names = frozenset(_largest_in_cell(collection, cell) for cell in large)
    splitter = dataclasses.replace(splitter, large=names)
    path = _save_splitter(collection, splitter, 'splitter-large')
    counts, _ = _assign_buckets(collection, path, rule, runner)
  return counts


def _assign_buckets(collection, splitter: str, rule, runner):
  """Assigns all buckets; returns counts of splits and residues by cell."""
  assign = functools.partial(
    _assign_bucket,
    collection=collection,
    splitter=splitter,
    has_clusters=bool(rule.clusters),
  )
  counts = collections.Counter(dict.fromkeys(SPLITS, 0))
  sizes = np.zeros(_NUM_CELLS)
  for its_counts, its_sizes in runner.map(
    assign, range(collection.num_buckets)
  ):
    counts.update(its_counts)
    sizes += its_sizes
  return counts, sizes


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
    cluster_table.joined(collection, bucket, ordinals)
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
  names = cluster_table.joined(
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
