"""Planned packing: which lengths share a row, from the lengths alone.

Best-fit-decreasing on the histogram of lengths gives a plan once: groups of
rows with the same combination of lengths. It is as small as the histogram is,
whatever the number of examples, and finds any row at once.

Axes: N examples, G groups, R rows asked for, S places of these rows.
"""

import bisect
import collections
import dataclasses

import numpy as np

_CHUNK = 1 << 24  # lengths read at once, if they lie on disk


@dataclasses.dataclass(frozen=True)
class Plan:
  """Groups of rows that hold the same lengths.

  Examples are ranked by length. Place i of row j of a group stands for rank
  `ranks[i] + j`.

  Attributes:
    first_rows: [G] the first row of each group.
    first_places: [G + 1] where a group's places begin in `ranks`.
    ranks: the first rank at each place of each group, one after another.
    num_rows: of all groups.
    num_tokens: of all examples.
  """

  first_rows: np.ndarray
  first_places: np.ndarray
  ranks: np.ndarray
  num_rows: int
  num_tokens: int

  def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the examples in rows.

    Args:
      rows: [R] numbers of rows.

    Returns:
      ([S] index into `rows`, ascending; [S] rank of the example there).
    """
    group_R = np.searchsorted(self.first_rows, rows, side='right') - 1
    first_R = self.first_places[group_R]
    count_R = self.first_places[group_R + 1] - first_R
    end_R = np.cumsum(count_R)
    row_S = np.repeat(np.arange(len(rows)), count_R)
    place_S = np.arange(len(row_S)) + (first_R - end_R + count_R)[row_S]
    return row_S, self.ranks[place_S] + (rows - self.first_rows[group_R])[row_S]


def length_histogram(lengths: np.ndarray, capacity: int) -> np.ndarray:
  """Counts lengths; longer ones count as `capacity`.

  Args:
    lengths: [N] integers from 0, in memory or on disk.
    capacity: the longest that is told apart.

  Returns:
    [capacity + 1] int64.
  """
  histogram = np.zeros(capacity + 1, np.int64)
  for first in range(0, len(lengths), _CHUNK):
    clipped = np.minimum(lengths[first : first + _CHUNK], capacity)
    histogram += np.bincount(clipped, minlength=capacity + 1)
  return histogram


def plan_rows(lengths: np.ndarray, capacity: int) -> Plan:
  """Packs lengths into rows by best fit, longest first.

  Args:
    lengths: [N] integers from 1 to capacity.
    capacity: tokens of a row.
  """
  return plan_histogram(length_histogram(lengths, capacity))


def plan_histogram(histogram: np.ndarray) -> Plan:
  """Packs the lengths of a histogram into rows as long as its longest bin.

  Args:
    histogram: [capacity + 1] how often each length occurs.
  """
  capacity = len(histogram) - 1
  next_rank = np.cumsum(histogram) - histogram
  # Groups of (ranks of the places, number of rows), by free tokens in a row.
  groups = collections.defaultdict(list)
  free_sizes = []  # keys of `groups`, ascending
  for length in np.flatnonzero(histogram)[::-1].tolist():
    left, rank = int(histogram[length]), int(next_rank[length])
    while left:
      fit = bisect.bisect_left(free_sizes, length)
      if fit == len(free_sizes):
        free, ranks, rows = capacity, (), left
      else:
        free = free_sizes[fit]
        ranks, rows = groups[free].pop()
        if not groups[free]:
          del groups[free], free_sizes[fit]
      # Best fit fills a row with this length before it opens the next.
      times = min(free // length, left)
      used = min(rows, left // times)
      if used < rows and ranks:
        rest = tuple(r + used for r in ranks)
        _put(groups, free_sizes, free, rest, rows - used)
      ranks += tuple(rank + used * i for i in range(times))
      rank += used * times
      left -= used * times
      _put(groups, free_sizes, free - times * length, ranks, used)
  return _plan([g for free in free_sizes for g in groups[free]], histogram)


def _put(groups, free_sizes, free, ranks, rows) -> None:
  if free not in groups:
    bisect.insort(free_sizes, free)
  groups[free].append((ranks, rows))


def _plan(groups, histogram) -> Plan:
  end_rows = np.cumsum([0, *(rows for _, rows in groups)], dtype=np.int64)
  sizes = [len(ranks) for ranks, _ in groups]
  return Plan(
    first_rows=end_rows[:-1],
    first_places=np.cumsum([0, *sizes], dtype=np.int64),
    ranks=np.array([r for ranks, _ in groups for r in ranks], np.int64),
    num_rows=int(end_rows[-1]),
    num_tokens=int(np.arange(len(histogram)) @ histogram),
  )
