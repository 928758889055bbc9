"""Clusters made elsewhere: the cluster.tsv of MMseqs2, joined to a collection.

A line holds the representative of a cluster, a tab, and the id of a member. For
a collection of any size, table and ids are spread over partitions by the hash
of the id, and joined in each.
"""

import contextlib
import marshal

import numpy as np

from protein_lm.datasets.fasta_file import parse_header, read_lines
from protein_lm.datasets.intake import hash_id


def read_clusters(path):
  """Yields (id, cluster) of each line of a table of clusters."""
  for number, line in read_lines(path):
    if not line.strip():
      continue
    cluster, is_pair, id_ = line.rstrip('\n').partition('\t')
    if not is_pair or '\t' in id_:
      raise ValueError(
        f'{path}:{number} holds {line.strip()[:40]!r}, not a representative, '
        'a tab and an id, as in the cluster.tsv of MMseqs2.'
      )
    yield parse_header(id_)[0], parse_header(cluster)[0]


def cluster_in(table, id_: str, rule) -> str:
  if id_ not in table:
    raise ValueError(
      f'{rule.clusters} has no line for {id_!r} of the collection; cluster the '
      'same sequences that are prepared.'
    )
  return table[id_]


def put(table, id_, cluster: str, rule) -> None:
  """Puts a line of the table of clusters under its id, or the id's hash."""
  other = table.setdefault(id_, cluster)
  if other != cluster:
    raise ValueError(
      f'{rule.clusters} puts one id in two clusters, {other!r} and '
      f'{cluster!r}; give each sequence an id of its own and cluster again.'
    )


def spread(collection, path) -> int:
  """Spreads a table over partitions by id; returns the number of clusters."""
  num_clusters = 0
  with contextlib.ExitStack() as stack:
    files = [
      stack.enter_context(open(collection.folder / f'table-{i}', 'wb'))
      for i in range(collection.num_partitions)
    ]
    for id_, cluster in read_clusters(path):
      hash_ = hash_id(id_)
      marshal.dump((hash_, cluster), files[hash_ % len(files)])
      num_clusters += id_ == cluster
  return num_clusters


def join(partition, collection, rule) -> None:
  """Finds the cluster of each id of a partition."""
  table = {}
  with open(collection.folder / f'table-{partition}', 'rb') as file:
    while True:
      try:
        hash_, cluster = marshal.load(file)
      except EOFError:
        break
      put(table, hash_, cluster, rule)
  found = [{} for _ in range(collection.num_buckets)]
  for hash_, ordinal, bucket in collection.ids(partition).tolist():
    if hash_ not in table:
      ordinals = collection.rows(bucket)['ordinal']
      place = int(np.flatnonzero(ordinals == ordinal)[0])
      cluster_in({}, collection.proteins(bucket)[place].id, rule)
    found[bucket][ordinal] = table[hash_]
  for bucket, clusters_of in enumerate(found):
    path = collection.folder / f'joined-{partition}-{bucket}'
    path.write_bytes(marshal.dumps(clusters_of))


def joined(collection, bucket, ordinals) -> list[str]:
  """The clusters, by `join`, of a bucket's proteins."""
  found = {}
  for partition in range(collection.num_partitions):
    path = collection.folder / f'joined-{partition}-{bucket}'
    found |= marshal.loads(path.read_bytes())
  return [found[ordinal] for ordinal in ordinals]
