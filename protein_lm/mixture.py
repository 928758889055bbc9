"""Several data sets as one: whose turn a row is, and what they share.

Axes: R rows asked for, P proteins.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from protein_lm.proteins import MemoryStore, Proteins, open_store

_BLOCK = 1000  # rows after which the turns repeat


class Interleaving:
  """A fixed order in which rows are taken from sources, each evenly spread.

  Of each 1,000 rows a source has its share, rounded by largest remainders, but
  one row at least. Row and source's row follow from each other's numbers.

  Attributes:
    shares: of each source, the share of the rows that it really has.
  """

  def __init__(self, weights: Sequence[float]):
    """Lays out a block.

    Args:
      weights: of each source, positive, to any scale.
    """
    counts = _apportion(np.array(weights, float), _BLOCK)
    self.shares = (counts / _BLOCK).tolist()
    self._counts = counts
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    # The i-th of n rows of a source lies at (i + 1/2) / n of the block.
    order = np.argsort((rank + 0.5) / counts[source], kind='stable')
    self._source, self._rank = source[order], rank[order]

  def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ([R] source, [R] row of this source) of rows [R]."""
    block, place = np.divmod(rows, _BLOCK)
    source = self._source[place]
    return source, block * self._counts[source] + self._rank[place]


def _apportion(weights: np.ndarray, total: int) -> np.ndarray:
  """Splits a total by largest remainders; nobody gets nothing."""
  exact = weights / weights.sum() * total
  counts = np.maximum(exact.astype(np.int64), 1)
  while (missing := total - counts.sum()) > 0:
    largest = np.argsort(counts - exact, kind='stable')[:missing]
    counts[largest] += 1
  while counts.sum() > total:  # what the smallest got beyond their share
    counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
  return counts


def join_proteins(parts: dict[str, Proteins]) -> Proteins:
  """Lays the proteins of several data sets one after another.

  Args:
    parts: by the name of the data set. An id that occurs more than once gets
      its data set's name in front: 'human_swissprot/P12345'.
  """
  count = collections.Counter(
    id_ for part in parts.values() for id_ in part.ids
  )
  joined = {
    'ids': [
      f'{name}/{id_}' if count[id_] > 1 else id_
      for name, part in parts.items()
      for id_ in part.ids
    ],
    'offsets': np.cumsum(
      [0, *np.concatenate([part.lengths for part in parts.values()])]
    ),
  }
  for field in dataclasses.fields(Proteins):
    if field.name in joined:
      continue
    values = [getattr(part, field.name) for part in parts.values()]
    if isinstance(values[0], np.ndarray):
      joined[field.name] = np.concatenate(values)
    else:
      joined[field.name] = [x for value in values for x in value]
  return Proteins(**joined)


def check_builders(builders) -> None:
  """Refuses equal data sets; warns of sequences that splits share."""
  names = [builder.info.full_name for builder in builders]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(
        f'data.source names {name} twice; name it once, and raise its share '
        'with data.weights.'
      )
  shared = count_shared(builders)
  told = (
    'they are too large to look for sequences in both train and evaluation'
    if shared is None
    else f'{shared:,} sequences of validation, test or ood of one are in train '
    'of another'
  )
  print(
    f'warning: the splits of {" and ".join(names)} were made apart: {told}.',
    flush=True,
  )


def count_shared(builders) -> int | None:
  """Counts sequences that one data set trains on and another holds out.

  Args:
    builders: of the data sets, prepared.

  Returns:
    The number of different sequences; None if a split is not in memory.
  """
  trained, held_out = [], []
  for builder in builders:
    hashes = {
      split: _sequence_hashes(open_store(builder, split))
      for split in builder.info.metadata['content']
    }
    if None in hashes.values():
      return None
    trained.append(hashes.pop('train', set()))
    held_out.append(set().union(*hashes.values()))
  others = [
    set().union(*trained[:i], *trained[i + 1 :]) for i in range(len(trained))
  ]
  return sum(len(a & b) for a, b in zip(held_out, others, strict=True))


def _sequence_hashes(store) -> set[int] | None:
  """Hashes sequences, equal ones alike within this process."""
  if not isinstance(store, MemoryStore):
    return None
  sequences = store.many(range(len(store.lengths)))
  return {hash(residues.tobytes()) for residues in sequences}
