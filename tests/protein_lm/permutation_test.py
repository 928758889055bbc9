"""Permutations in closed form: each entry once, every order as likely."""

import collections

import numpy as np
import pytest

from protein_lm.permutation import draw, permute


@pytest.mark.parametrize('size', [1, 2, 3, 5, 63, 257, 70_001])
def test_each_entry_has_its_own_place(size):
  for seed in range(3):
    places = permute(np.arange(size), size, draw(seed))
    np.testing.assert_array_equal(np.sort(places), np.arange(size))


def test_an_entry_does_not_depend_on_what_is_asked_beside_it():
  sizes = np.array([1, 7, 250_000_000, 2**40])
  keys = draw(3, np.arange(4))
  together = permute(sizes - 1, sizes, keys)
  alone = [
    permute([size - 1], size, key)[0]
    for size, key in zip(sizes, keys, strict=True)
  ]
  assert together.tolist() == alone
  assert (together < sizes).all()


@pytest.mark.parametrize('size, num_orders', [(3, 6), (4, 24)])
def test_every_order_is_as_likely(size, num_orders):
  keys = draw(5, np.arange(24_000))
  orders = [permute(np.full(24_000, i), size, keys) for i in range(size)]
  count = collections.Counter(zip(*(x.tolist() for x in orders), strict=True))
  expected = 24_000 / num_orders
  assert len(count) == num_orders
  deviations = np.array([n - expected for n in count.values()])
  assert abs(deviations).max() < 5 * expected**0.5


def test_a_key_changes_the_order():
  orders = [permute(np.arange(1000), 1000, draw(0, e)) for e in range(2)]
  assert (orders[0] == orders[1]).sum() < 10  # one expected


def test_draws_are_the_same_for_ever():
  assert draw(0, 1, np.arange(3)).tolist() == [
    draw(0, 1, i)[0] for i in range(3)
  ]
  assert draw(0, 1, 2).tolist() == [17650578182555822980]
  assert permute([0, 1, 2], 10, draw(0)).tolist() == [0, 7, 8]


def test_draws_are_uniform():
  draws = draw(5, np.arange(100_000)) / 2**64
  count, _ = np.histogram(draws, 10, (0, 1))
  assert abs(count - 10_000).max() < 500  # five standard deviations


def test_negative_and_large_parts_are_keys_of_their_own():
  assert len({draw(part)[0] for part in (-1, 1, 2**32, 2**63, 2**64 - 2)}) == 5
