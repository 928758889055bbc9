"""Intervals against what theory says, and what a cluster is."""

import numpy as np
import pytest

from protein_lm import bootstrap


def test_interval_of_independent_proteins_is_that_of_the_normal_mean():
  values = np.random.default_rng(1).normal(3.0, 2.0, 400)
  ((low, high),) = bootstrap.ratio_intervals([values], np.ones(400), [''] * 400)
  half = 1.96 * values.std() / 20
  np.testing.assert_allclose([low, high], values.mean() + [-half, half], 0.02)


def test_copies_of_a_protein_in_one_cluster_add_no_certainty():
  values = np.random.default_rng(1).normal(3.0, 2.0, 40)
  names = [str(i) for i in range(40)]
  once = bootstrap.ratio_intervals([values], np.ones(40), names)
  thrice = bootstrap.ratio_intervals(
    [np.tile(values, 3)], np.ones(120), names * 3
  )
  np.testing.assert_allclose(once, thrice, rtol=1e-12)


def test_proteins_of_unknown_cluster_are_their_own():
  sums_PQ = np.random.default_rng(0).random((5, 2))
  unknown = bootstrap.draw_sums(sums_PQ, [''] * 5, 20)
  np.testing.assert_allclose(unknown, bootstrap.draw_sums(sums_PQ, 'abcde', 20))


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
  sums_PQ = np.random.default_rng(0).random((5, 2))
  together = bootstrap.draw_sums(sums_PQ, 'aabcd', 20)
  monkeypatch.setattr(bootstrap, '_COUNTS_AT_ONCE', 13)
  np.testing.assert_allclose(
    bootstrap.draw_sums(sums_PQ, 'aabcd', 20), together
  )


@pytest.mark.parametrize(
  'count, names', [([2, 2], 'aa'), ([2, 0], 'ab'), ([2], ['']), ([], '')]
)
def test_fewer_than_two_clusters_have_no_interval(count, names):
  nats = np.ones(len(count))
  assert bootstrap.ratio_intervals([nats], np.array(count), names) is None
