"""Metrics of labels, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from protein_lm.label_evaluation import summarize

NUMBERS = {'per': 'protein', 'mean': 10.0, 'std': 2.0}
CLASSES = {'per': 'protein', 'classes': ['a', 'b']}


def test_numbers_have_errors_and_correlations():
  outputs = np.array([[0.0], [1.0], [2.0], [9.0], [np.nan]])
  labels = np.array([10.0, 14.0, 12.0, np.nan, 3.0])
  metrics = summarize(outputs, labels, NUMBERS)
  assert metrics['num_labels'] == 3
  assert metrics['mse'] == pytest.approx((0 + 4 + 4) / 3)
  assert metrics['loss'] == pytest.approx(metrics['mse'] / 4)
  assert metrics['pearson'] == pytest.approx(0.5)
  assert metrics['spearman'] == pytest.approx(0.5)


def test_a_correlation_with_a_constant_is_not_defined():
  metrics = summarize(np.ones((3, 1)), np.array([1.0, 2.0, 3.0]), NUMBERS)
  assert math.isnan(metrics['pearson']) and math.isnan(metrics['spearman'])


def test_classes_have_nats_and_accuracy():
  outputs = np.array([[0.0, math.log(3)], [0.0, 0.0], [5.0, 1.0]])
  metrics = summarize(outputs, np.array([1.0, 1.0, np.nan]), CLASSES)
  assert metrics['num_labels'] == 2
  assert metrics['loss'] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
  assert metrics['accuracy'] == 0.5


def test_no_label_at_all_is_an_error():
  with pytest.raises(ValueError, match='no protein that is evaluated has a'):
    summarize(np.ones((1, 1)), np.array([np.nan]), NUMBERS)
