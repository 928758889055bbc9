"""Planned packing: full rows, each rank in one of them."""

import time

import numpy as np
import pytest

from protein_lm import packing


def random_lengths(size, seed=0, mean=200):
  rng = np.random.default_rng(seed)
  return rng.gamma(2, mean / 2, size).astype(int) + 3


def ranks_by_row(plan):
  row, rank = plan.places(np.arange(plan.num_rows))
  return [rank[row == number].tolist() for number in range(plan.num_rows)]


def best_fit_decreasing(lengths, capacity):
  """Bin by bin, the definition of what plan_rows does by histogram."""
  free = []
  for length in sorted(lengths, reverse=True):
    fits = [i for i, size in enumerate(free) if size >= length]
    if not fits:
      free.append(capacity)
      fits = [len(free) - 1]
    free[min(fits, key=lambda i: free[i])] -= length
  return len(free)


@pytest.mark.parametrize(
  'size, capacity', [(1, 8), (7, 8), (300, 97), (900, 512)]
)
def test_plan_needs_as_many_rows_as_best_fit_decreasing(size, capacity):
  lengths = np.minimum(random_lengths(size), capacity)
  plan = packing.plan_rows(lengths, capacity)
  assert plan.num_rows == best_fit_decreasing(lengths.tolist(), capacity)


@pytest.mark.parametrize('size, capacity', [(1, 8), (63, 8), (2000, 512)])
def test_plan_places_each_rank_once_and_within_capacity(size, capacity):
  lengths = np.sort(np.minimum(random_lengths(size), capacity))
  plan = packing.plan_rows(lengths, capacity)
  rows = ranks_by_row(plan)
  assert sorted(rank for row in rows for rank in row) == list(range(size))
  assert max(lengths[row].sum() for row in rows) <= capacity
  assert plan.num_tokens == lengths.sum()


def test_equal_lengths_fill_rows_evenly():
  plan = packing.plan_rows(np.full(10, 4), 13)
  assert [len(row) for row in ranks_by_row(plan)] == [3, 3, 3, 1]


def test_rows_are_found_alone_and_in_any_order():
  plan = packing.plan_rows(np.minimum(random_lengths(100), 128), 128)
  rows = ranks_by_row(plan)
  row, rank = plan.places(np.array([7, 3, 7]))
  assert [rank[row == i].tolist() for i in range(3)] == [
    rows[7],
    rows[3],
    rows[7],
  ]


def test_a_histogram_is_the_same_whatever_is_read_at_once(monkeypatch):
  lengths = random_lengths(1000).astype(np.int32)
  whole = packing.length_histogram(lengths, 256)
  monkeypatch.setattr(packing, '_CHUNK', 77)
  np.testing.assert_array_equal(packing.length_histogram(lengths, 256), whole)
  assert whole[256] == (lengths >= 256).sum()


def test_a_billion_proteins_are_planned_in_a_moment():
  histogram = np.bincount(np.minimum(random_lengths(10**5), 512))
  start = time.perf_counter()
  plan = packing.plan_histogram(histogram * 10_000)
  assert time.perf_counter() - start < 1
  assert plan.num_tokens / (512 * plan.num_rows) > 0.97
