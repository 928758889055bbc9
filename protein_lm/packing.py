"""Planned packing: which proteins share a row, as a function of seed and epoch.

Best-fit-decreasing on the histogram of lengths gives a plan once: groups of
rows with the same combination of lengths. It depends on the lengths alone, so
every epoch has the same number of rows. In each epoch the rows are shuffled,
and each place in a row takes the next example of its length, in an order
shuffled within the length; every example is in one row. Nothing depends on
what was read before, so any row of any epoch is found at once.

Axes: N examples, R rows.
"""

import bisect
import collections
import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

_BITS = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Plan:
  """Groups of rows that hold the same lengths.

  Examples are ranked by length. The place i of a group stands for the ranks
  `ranks[i] + j`, with j the row's number in the group.

  Attributes:
    first_rows: the first row of each group.
    ranks: of each group, the first rank at each of its places.
    num_rows: of all groups.
    num_tokens: of all examples.
  """

  first_rows: list[int]
  ranks: list[tuple[int, ...]]
  num_rows: int
  num_tokens: int

  def row(self, number: int) -> list[int]:
    """The ranks of the examples in a row."""
    group = bisect.bisect_right(self.first_rows, number) - 1
    place = number - self.first_rows[group]
    return [rank + place for rank in self.ranks[group]]


def plan_rows(lengths: np.ndarray, capacity: int, one_per_row=False) -> Plan:
  """Packs lengths into rows by best fit, longest first.

  Args:
    lengths: [N] integers from 1 to capacity.
    capacity: tokens of a row.
    one_per_row: pads instead of packing.
  """
  histogram = np.bincount(lengths, minlength=capacity + 1)
  next_rank = np.cumsum(histogram) - histogram
  # Groups of (ranks of the places, number of rows), by free tokens in a row.
  groups = collections.defaultdict(list)
  full = []  # groups that take no more
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
      times = 1 if one_per_row else min(free // length, left)
      used = min(rows, left // times)
      if used < rows and ranks:
        _put(
          groups, free_sizes, free, tuple(r + used for r in ranks), rows - used
        )
      ranks += tuple(rank + used * i for i in range(times))
      rank += used * times
      left -= used * times
      if one_per_row:
        full.append((ranks, used))
      else:
        _put(groups, free_sizes, free - times * length, ranks, used)
  full += [group for free in free_sizes for group in groups[free]]
  rows = [used for _, used in full]
  return Plan(
    first_rows=(np.cumsum([0, *rows])[:-1]).tolist(),
    ranks=[ranks for ranks, _ in full],
    num_rows=sum(rows),
    num_tokens=int(np.sum(lengths)),
  )


def _put(groups, free_sizes, free, ranks, rows) -> None:
  if free not in groups:
    bisect.insort(free_sizes, free)
  groups[free].append((ranks, rows))


def draws(size: int, *key: int) -> np.ndarray:
  """Returns uint64 random numbers that depend on key and place alone.

  The splitmix64 finaliser over a counter: the same on every machine and with
  every version of numpy.

  Args:
    size: how many.
    key: integers, such as seed, epoch and purpose.
  """
  state = np.zeros(1, np.uint64)
  for part in key:
    state = _mix(state + np.array([part & _BITS], np.uint64))
  step = np.uint64(0x9E3779B97F4A7C15)
  return _mix(state + step * np.arange(1, size + 1, dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class Window:
  """The tokens first to first + length of an example."""

  example: int
  first: int
  length: int


_ROWS, _EXAMPLES, _CROPS = range(3)  # purposes of random numbers


class Epochs:
  """The rows of all epochs, one after another.

  Args:
    lengths: [N] tokens of each example; those above capacity are cropped, to a
      window that is drawn anew in each epoch.
    capacity: tokens of a row.
    one_per_row: pads instead of packing.
  """

  def __init__(self, lengths: np.ndarray, capacity: int, one_per_row=False):
    self._lengths = lengths
    self._clipped = np.minimum(lengths, capacity)
    self.plan = plan_rows(self._clipped, capacity, one_per_row)
    # Threads share this; a value made twice is the same value.
    self._tables = functools.lru_cache(maxsize=3)(self._make_tables)

  def row(self, seed: int, number: int) -> Iterable[Window]:
    """The windows of a row; row `plan.num_rows` is the first of epoch 1."""
    epoch, place = divmod(number, self.plan.num_rows)
    order_R, example_N, first_N = self._tables(seed, epoch)
    for rank in self.plan.row(int(order_R[place])):
      example = int(example_N[rank])
      yield Window(example, int(first_N[example]), int(self._clipped[example]))

  def _make_tables(self, seed: int, epoch: int):
    size = len(self._lengths)
    order_R = np.argsort(
      draws(self.plan.num_rows, seed, epoch, _ROWS), kind='stable'
    )
    example_N = np.lexsort((draws(size, seed, epoch, _EXAMPLES), self._clipped))
    choices_N = (self._lengths - self._clipped + 1).astype(np.uint64)
    first_N = draws(size, seed, epoch, _CROPS) % choices_N
    return order_R, example_N, first_N
