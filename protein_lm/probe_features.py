"""What a probe sees of a protein without a model, and which are alike.

Axes: P proteins, L residues, F features.
"""

from collections.abc import Sequence

import numpy as np

from protein_lm import vocab
from protein_lm.datasets.cluster_table import read_clusters
from protein_lm.datasets.clusters import name_clusters

_NUM_STANDARD = len(vocab.STANDARD_RESIDUES)
_NUM_BINS = 1024  # of hashed 3-mers
_FACTOR = 2654435761  # spreads consecutive numbers (Knuth's TAOCP 3, 6.4)


def composition(sequences: Sequence[str]) -> np.ndarray:
  """Shares of the 20 amino acids, and the log of the length, [P, 21]."""
  rows = []
  for sequence in sequences:
    counts = np.bincount(vocab.encode(sequence), minlength=_NUM_STANDARD)
    share = counts[:_NUM_STANDARD] / len(sequence)
    rows.append([*share, np.log(len(sequence))])
  return np.array(rows, np.float32)


def one_hot(sequences: Sequence[str]) -> tuple[str, np.ndarray]:
  """The letters themselves.

  Returns:
    'one-hot' and [P, F], the amino acid at each position, if all sequences
    are equally long, without columns that never change; else '3-mers' and
    [P, 1024], the shares of all 3-mers, hashed into 1,024 bins.
  """
  encoded = [vocab.encode(sequence) for sequence in sequences]
  if len(set(map(len, encoded))) == 1:
    ids_PL = np.stack(encoded)
    letters = np.arange(_NUM_STANDARD, dtype=np.uint8)
    hot_PF = (ids_PL[:, :, None] == letters).reshape(len(ids_PL), -1)
    changes_F = hot_PF.any(axis=0) & ~hot_PF.all(axis=0)
    return 'one-hot', hot_PF[:, changes_F].astype(np.float32)
  shares_PF = np.zeros((len(encoded), _NUM_BINS), np.float32)
  base = len(vocab.RESIDUES)
  for row, ids in zip(shares_PF, encoded, strict=True):
    ids = ids.astype(np.uint64)
    words = (ids[:-2] * base + ids[1:-1]) * base + ids[2:]
    bins = (words * _FACTOR % 2**32) * _NUM_BINS // 2**32
    row += np.bincount(bins.astype(int), minlength=_NUM_BINS)
    row /= max(len(words), 1)
  return '3-mers', shares_PF


def clusters_of(ids, sequences, path=None) -> list[str]:
  """The cluster of each protein.

  Args:
    ids: [P].
    sequences: [P].
    path: a cluster.tsv as MMseqs2 writes it; 'none', each protein is its own;
      None, those that share 8-mers are together (datasets/clusters.py), and
      equal ones.

  Raises:
    ValueError: the table cannot be read, or lacks one of the ids.
  """
  if path == 'none':
    return list(ids)
  if path is None:
    distinct = {}
    for id_, sequence in zip(ids, sequences, strict=True):
      distinct.setdefault(sequence, id_)
    names = name_clusters(list(distinct.values()), list(distinct))
    names = dict(zip(distinct, names, strict=True))
    return [names[sequence] for sequence in sequences]
  table = dict(read_clusters(path))
  lacking = [id_ for id_ in ids if id_ not in table]
  if lacking:
    raise ValueError(
      f'{path} has no line for {lacking[0]!r} and {len(lacking) - 1:,} more of '
      f'{len(ids):,} proteins; cluster the sequences of the FASTA file.'
    )
  return [table[id_] for id_ in ids]
