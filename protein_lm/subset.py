"""Some proteins of a split: which, and these alone.

Axes: T residues of a split, P proteins.
"""

import hashlib

import numpy as np

from protein_lm.proteins import Proteins
from protein_lm.scores import counted_residues


def choose(
  proteins: Proteins, num_proteins: int | None, max_residues: int
) -> list[int]:
  """Numbers of the first proteins by the sha256 of their ids, in this order.

  Args:
    proteins: a split.
    num_proteins: how many at most; None for all.
    max_residues: of a protein.

  Returns:
    Numbers of proteins with a residue to score.
  """
  is_there_P = np.zeros(len(proteins), bool)
  counted = np.flatnonzero(counted_residues(proteins))
  owner = np.searchsorted(proteins.offsets, counted, side='right') - 1
  is_there_P[owner] = True
  is_there_P &= proteins.lengths <= max_residues
  ordered = sorted(
    np.flatnonzero(is_there_P).tolist(),
    key=lambda p: hashlib.sha256(proteins.ids[p].encode()).digest(),
  )
  return ordered[:num_proteins]


def take(proteins: Proteins, numbers) -> Proteins:
  """Some of the proteins, in the order of their numbers."""
  numbers = np.asarray(numbers, np.int64)
  where_T = np.concatenate(
    [np.arange(*proteins.offsets[p : p + 2]) for p in numbers]
    or [np.zeros(0, np.int64)]
  )
  return Proteins(
    ids=[proteins.ids[p] for p in numbers],
    residues=proteins.residues[where_T],
    offsets=np.cumsum([0, *proteins.lengths[numbers]], dtype=np.int64),
    held_out=proteins.held_out[where_T],
    pure=proteins.pure[numbers],
    clusters=[proteins.clusters[p] for p in numbers],
    nearest_train_share=proteins.nearest_train_share[numbers],
  )
