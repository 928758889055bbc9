"""Planned packing: full rows, each example once, the same for everybody."""

import collections

import numpy as np
import pytest

from protein_lm import packing


def random_lengths(size, seed=0, mean=200):
  rng = np.random.default_rng(seed)
  return rng.gamma(2, mean / 2, size).astype(int) + 3


def rows_of(epochs, seed, first, last):
  return [list(epochs.row(seed, number)) for number in range(first, last)]


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
  rows = [plan.row(number) for number in range(plan.num_rows)]
  assert sorted(rank for row in rows for rank in row) == list(range(size))
  assert max(lengths[row].sum() for row in rows) <= capacity
  assert plan.num_tokens == lengths.sum()


def test_equal_lengths_fill_rows_evenly():
  plan = packing.plan_rows(np.full(10, 4), 13)
  assert [len(plan.row(number)) for number in range(4)] == [3, 3, 3, 1]


def test_one_per_row_pads():
  plan = packing.plan_rows(np.array([3, 3, 5]), 16, one_per_row=True)
  assert sorted(plan.row(number) for number in range(3)) == [[0], [1], [2]]


@pytest.mark.parametrize('one_per_row', [False, True])
def test_each_epoch_shows_each_example_once(one_per_row):
  epochs = packing.Epochs(random_lengths(500), 256, one_per_row)
  size = epochs.plan.num_rows
  for epoch in range(3):
    rows = rows_of(epochs, 7, epoch * size, (epoch + 1) * size)
    seen = collections.Counter(w.example for row in rows for w in row)
    assert seen == collections.Counter(range(500))


def test_windows_lie_within_their_examples():
  lengths = random_lengths(500)
  epochs = packing.Epochs(lengths, 128)
  for row in rows_of(epochs, 0, 0, 2 * epochs.plan.num_rows):
    for window in row:
      assert window.length == min(lengths[window.example], 128)
      assert 0 <= window.first <= lengths[window.example] - window.length


def test_order_and_crops_change_with_seed_and_epoch():
  epochs = packing.Epochs(random_lengths(500), 128)
  size = epochs.plan.num_rows
  first = rows_of(epochs, 0, 0, size)
  assert first != rows_of(epochs, 1, 0, size)
  assert first != rows_of(epochs, 0, size, 2 * size)


def test_a_row_does_not_depend_on_what_was_read_before():
  lengths = random_lengths(100)
  all_rows = rows_of(packing.Epochs(lengths, 128), 3, 0, 200)
  assert list(packing.Epochs(lengths, 128).row(3, 137)) == all_rows[137]


def test_crops_of_an_epoch_reach_both_ends():
  epochs = packing.Epochs(np.full(2000, 12), 8)
  firsts = [w.first for row in rows_of(epochs, 0, 0, 2000) for w in row]
  count = np.bincount(firsts, minlength=5)
  assert len(count) == 5 and count.min() > 300  # 400 expected of each


def test_draws_are_the_same_for_ever():
  assert packing.draws(3, 0, 1, 2).tolist() == [
    6856777441267181547,
    5335710951878364255,
    13202366267555525369,
  ]
  assert packing.draws(3, -1).tolist() != packing.draws(3, 1).tolist()


def test_draws_are_uniform():
  draws = packing.draws(100_000, 5) / 2**64
  count, _ = np.histogram(draws, 10, (0, 1))
  assert abs(count - 10_000).max() < 500  # five standard deviations
