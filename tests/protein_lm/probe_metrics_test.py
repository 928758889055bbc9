"""Metrics of predictions, over the folds in which they are defined."""

import numpy as np
import pytest

from protein_lm import probe_metrics
from protein_lm.probing import Labels

NUMBERS = Labels(np.random.default_rng(0).normal(size=30))
CLASSES = Labels((NUMBERS.values > 0).astype(int), ('a', 'b'))


def test_perfect_predictions_have_perfect_metrics():
  fold_P = np.arange(30) % 3
  metrics = probe_metrics.summarize(NUMBERS.values, NUMBERS, fold_P)
  means = {name: metrics[name]['mean'] for name in metrics}
  assert means == {
    'spearman': pytest.approx(1),
    'r2': pytest.approx(1),
    'rmse': pytest.approx(0),
  }
  outputs = np.eye(2)[CLASSES.values]
  metrics = probe_metrics.summarize(outputs, CLASSES, fold_P)
  assert all(
    metrics[name]['pooled'] == 1 for name in ('accuracy', 'auc', 'mcc')
  )


def test_a_metric_that_a_fold_lacks_is_left_out_of_the_mean():
  labels = Labels(np.array([0, 0, 0, 1]), ('a', 'b'))
  outputs = np.eye(2)[[0, 0, 1, 1]]
  metrics = probe_metrics.summarize(outputs, labels, np.array([0, 0, 1, 1]))
  assert metrics['auc']['folds'] == [None, 0.5]
  assert metrics['auc']['mean'] == 0.5
  assert metrics['auc']['sd'] is None


def test_auc_of_several_classes_is_the_mean_against_the_rest():
  from sklearn.metrics import roc_auc_score

  values = np.arange(30) % 3
  outputs = np.random.default_rng(1).dirichlet(np.ones(3), 30)
  labels = Labels(values, ('a', 'b', 'c'))
  metrics = probe_metrics.summarize(outputs, labels, np.zeros(30, int))
  expected = roc_auc_score(values, outputs, multi_class='ovr')
  assert metrics['auc']['pooled'] == pytest.approx(expected)
