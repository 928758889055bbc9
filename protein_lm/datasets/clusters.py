"""Groups of sequences that share 8-mers, and the splits made of whole groups.

Two sequences are linked when they share at least 5 distinct 8-mers and these
are at least 10 % of the 8-mers of the one that has fewer; a cluster is a
connected component of links. This makes splits 8-mer-disjoint up to that
threshold. It does not see remote homology.

Axes: N entries (one for each distinct 8-mer of each sequence), P pairs, S
sequences.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from protein_lm.datasets.words import words_of

MIN_SHARED = 5
MIN_SHARED_FRACTION = 0.1
# Up to here clusters are made by 8-mers, above it each sequence is its own.
MAX_SEQUENCES = 100_000
# A word in more sequences than this (a tag, a linker) no longer links every
# pair of them, only neighbours in the file; in human Swiss-Prot at most 333.
MAX_OWNERS = 2_000
# A cluster with more of the residues is train's, whatever its hash.
MAX_SPLIT_FRACTION = 0.05
_MAX_PAIRS = 5_000_000  # compared at a time, to bound the memory

SPLIT_FRACTIONS = {'train': 0.9, 'validation': 0.05, 'test': 0.05}


def _words(sequences: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distinct words of each sequence and their owners, sorted by
  word, then owner."""
  size = max(len(sequences), 1)
  code_N, owner_N = words_of(sequences)
  # One number holds both (56 bits), which sorts fastest.
  code_N *= size
  code_N += owner_N
  code_N.sort()
  code_N = code_N[np.diff(code_N, prepend=-1) > 0]
  return np.divmod(code_N, size)


def _links(first_P, second_P, num_words_S) -> np.ndarray:
  """Returns the linked pairs, [2, links], of one pair for each shared word."""
  size = len(num_words_S)
  pairs, shared = np.unique(
    first_P.astype(np.int64) * size + second_P, return_counts=True
  )
  first, second = np.divmod(pairs, size)
  smaller = np.minimum(num_words_S[first], num_words_S[second])
  linked = (shared >= MIN_SHARED) & (shared >= MIN_SHARED_FRACTION * smaller)
  return np.stack([first[linked], second[linked]])


def _components(links: np.ndarray, size: int) -> np.ndarray:
  """Labels each sequence with its connected component."""
  from scipy.sparse import coo_array, csgraph

  graph = coo_array((np.ones(links.shape[1], bool), tuple(links)), (size, size))
  return csgraph.connected_components(graph, directed=False)[1]


def link_by_words(sequences: list[str]) -> np.ndarray:
  """Returns the component of each sequence, [S] integers.

  Args:
    sequences: letters of `vocab.RESIDUES`. A sequence shorter than 8 is its
      own component.
  """
  words_N, owners_N = _words(sequences)
  size = len(sequences)
  num_words_S = np.bincount(owners_N, minlength=size)
  # Neighbours within a word's owners first: they join most of each family, and
  # only pairs across components remain to be compared.
  same_N = words_N[1:] == words_N[:-1]
  links = _links(owners_N[:-1][same_N], owners_N[1:][same_N], num_words_S)
  component_S = _components(links, size)

  starts = np.flatnonzero(np.diff(words_N, prepend=-1))
  counts = np.diff(np.append(starts, len(words_N)))
  after_N = np.repeat(starts + counts, counts) - np.arange(len(words_N)) - 1
  if len(words_N):
    component_N = component_S[owners_N]
    low = np.minimum.reduceat(component_N, starts)
    high = np.maximum.reduceat(component_N, starts)
    open_ = (low < high) & (counts <= MAX_OWNERS)
    after_N *= np.repeat(open_, counts)
  # Entries by owner, so that all words of a pair fall into one block.
  entries = np.flatnonzero(after_N)
  entries = entries[np.argsort(owners_N[entries], kind='stable')]
  block = np.cumsum(after_N[entries]) // _MAX_PAIRS
  # An owner's entries all go to the block of its first.
  _, first, inverse = np.unique(
    owners_N[entries], return_index=True, return_inverse=True
  )
  block = block[first][inverse] if len(entries) else block
  for number in np.unique(block):
    chosen = entries[block == number]
    times = after_N[chosen]
    first_P = np.repeat(chosen, times)
    step_P = np.arange(len(first_P)) - np.repeat(
      np.cumsum(times) - times, times
    )
    second_P = first_P + step_P + 1
    first_P, second_P = owners_N[first_P], owners_N[second_P]
    across_P = component_S[first_P] != component_S[second_P]
    more = _links(first_P[across_P], second_P[across_P], num_words_S)
    links = np.concatenate([links, more], axis=1)
  return _components(links, size)


def name_clusters(ids: list[str], sequences: list[str]) -> list[str]:
  """Names each sequence's cluster: by its smallest id, or by its own hash.

  Above `MAX_SEQUENCES` each sequence is a cluster, named by its sha256.
  """
  if len(sequences) > MAX_SEQUENCES:
    return [hashlib.sha256(s.encode()).hexdigest()[:16] for s in sequences]
  component_S = link_by_words(sequences).tolist()
  names = {}
  for component, id_ in zip(component_S, ids, strict=True):
    names[component] = min(id_, names.get(component, id_))
  return [names[component] for component in component_S]


def split_of(
  cluster: str, fractions: Mapping[str, float] = SPLIT_FRACTIONS
) -> str:
  """Assigns a cluster to a split by the sha256 of its name.

  Args:
    cluster: its name.
    fractions: of the clusters, by split; they sum to 1.
  """
  digest = hashlib.sha256(cluster.encode()).digest()
  place = int.from_bytes(digest[:8], 'big') / 2**64
  last = ''
  for split, fraction in fractions.items():
    if place < fraction:
      return split
    place -= fraction
    last = split if fraction else last
  return last


def split_clusters(
  num_residues: Mapping[str, int],
  fractions: Mapping[str, float] = SPLIT_FRACTIONS,
) -> dict[str, str]:
  """Assigns each cluster of a small or uneven collection to a split.

  By hash as `split_of`, with two exceptions, both functions of the clusters
  alone. A cluster with more than 5 % of the residues goes to train. A split
  still empty then takes the smallest cluster (fewest residues, then name) of
  the split that has the most clusters, so that three clusters fill three
  splits; with two, test stays empty, with one, validation too.

  Args:
    num_residues: of each cluster, by name.
    fractions: of the clusters, by split; a split of 0 stays empty.
  """
  if not num_residues:
    return {}
  limit = MAX_SPLIT_FRACTION * sum(num_residues.values())
  split = {
    name: 'train' if size > limit else split_of(name, fractions)
    for name, size in num_residues.items()
  }
  for empty in (name for name in fractions if fractions[name]):
    members = {name: [] for name in fractions}
    for name in sorted(split, key=lambda name: (num_residues[name], name)):
      members[split[name]].append(name)
    richest = max(members, key=lambda name: len(members[name]))
    if not members[empty] and (empty == 'train' or len(members[richest]) > 1):
      split[members[richest][0]] = empty
  return split
