"""Rank metrics against their definitions written out."""

import math

import numpy as np
import pytest

from protein_lm import ranking


def test_spearman_is_of_ranks():
  assert ranking.spearman([1, 2, 3, 4], [1, 10, 100, 90]) == pytest.approx(0.8)


def test_ndcg_is_of_the_best_tenth():
  rng = np.random.default_rng(0)
  measured, scores = rng.normal(size=(2, 57))
  gains = (measured - measured.min()) / (measured.max() - measured.min())

  def dcg(order):
    return sum(gains[r] / math.log2(n + 2) for n, r in enumerate(order[:5]))

  expected = dcg(np.argsort(-scores)) / dcg(np.argsort(-gains))
  assert ranking.ndcg(measured, scores) == pytest.approx(expected)


def test_auc_is_the_share_of_pairs_in_order():
  assert ranking.auc([0, 0, 1, 1], [1, 3, 2, 4]) == pytest.approx(3 / 4)


def test_rows_without_a_score_or_a_measurement_are_left_out():
  nan = math.nan
  found = ranking.rank_metrics([1, 2, nan, 4, 3], [1, 2, 9, nan, 3])
  assert found['num_measured'] == 3
  assert found['spearman'] == pytest.approx(1)
  assert found['auc_labels'] == 'above the median'
  assert found['auc'] == 1


def test_labels_of_the_table_are_used_for_the_auc():
  found = ranking.rank_metrics([1, 2, 3], [1, 2, 3], [1, 0, math.nan])
  assert (found['auc'], found['auc_labels']) == (0, 'DMS_score_bin')


@pytest.mark.parametrize('scores', [[], [1], [1, 1]])
def test_too_little_to_rank_is_nan(scores):
  found = ranking.rank_metrics(scores, [1.0] * len(scores))
  assert all(math.isnan(found[name]) for name in ('spearman', 'ndcg', 'auc'))
