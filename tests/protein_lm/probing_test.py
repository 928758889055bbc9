"""Cross-validated probes against scikit-learn, and what labels may be."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from protein_lm import probing
from protein_lm.id_table import Row
from protein_lm.probing import Labels

P, F = 60, 5
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(3, 2, (P, F)).astype(np.float32)
NUMBERS = Labels(FEATURES @ np.arange(F) + RANDOM.normal(size=P))
CLASSES = Labels(
  (NUMBERS.values > NUMBERS.values.mean()).astype(int), ('a', 'b')
)
CLUSTERS = [f'c{i // 3}' for i in range(P)]


def rows(*texts):
  return {f'P{i}': Row(text, f'x.csv:{i + 2}') for i, text in enumerate(texts)}


@pytest.mark.parametrize('labels', [NUMBERS, CLASSES])
def test_no_cluster_is_on_both_sides(labels):
  fold_P = probing.make_folds(CLUSTERS, labels, 4)
  assert set(fold_P) == set(range(4))
  assert len(set(zip(CLUSTERS, fold_P.tolist(), strict=True))) == P // 3


def test_a_fold_is_predicted_by_ridge_on_the_others():
  fold_P = probing.make_folds(CLUSTERS, NUMBERS, 4)
  result = probing.cross_validate(FEATURES, NUMBERS, CLUSTERS, fold_P)
  train, test = fold_P != 1, fold_P == 1
  scaler = StandardScaler().fit(FEATURES[train])
  model = Ridge(alpha=result.penalties[1] * train.sum())
  model.fit(scaler.transform(FEATURES[train]), NUMBERS.values[train])
  expected = model.predict(scaler.transform(FEATURES[test]))
  np.testing.assert_allclose(result.outputs[test], expected, rtol=1e-4)


def test_classes_are_predicted_by_logistic_regression():
  fold_P = probing.make_folds(CLUSTERS, CLASSES, 4)
  result = probing.cross_validate(FEATURES, CLASSES, CLUSTERS, fold_P)
  train, test = fold_P != 2, fold_P == 2
  scaler = StandardScaler().fit(FEATURES[train])
  model = LogisticRegression(C=1 / (result.penalties[2] * train.sum()))
  model.fit(scaler.transform(FEATURES[train]), CLASSES.values[train])
  expected = model.predict_proba(scaler.transform(FEATURES[test]))
  np.testing.assert_allclose(result.outputs[test], expected, atol=2e-3)


def test_noise_takes_a_large_penalty_and_a_rule_a_small_one():
  noise = Labels(np.random.default_rng(1).normal(size=P))
  rule = Labels(FEATURES[:, 0].astype(np.float64))
  fold_P = probing.make_folds(CLUSTERS, noise, 4)
  high, low = (
    probing.cross_validate(FEATURES, labels, CLUSTERS, fold_P).penalties
    for labels in (noise, rule)
  )
  assert np.median(high) > 1 > np.median(low)


def test_a_class_of_the_test_fold_alone_has_no_probability():
  labels = Labels(np.array([0, 1, 0, 1, 2]), ('a', 'b', 'c'))
  fold_P = np.array([0, 0, 1, 1, 1])
  result = probing.cross_validate(FEATURES[:5], labels, list('pqrst'), fold_P)
  assert result.outputs[4, 2] == 0


@pytest.mark.parametrize(
  'texts, task',
  [
    (('1', '2', '3.5'), 'regression'),
    (('1', '0', '1'), 'classification'),
    (('yes', 'no', 'no'), 'classification'),
  ],
)
def test_the_task_follows_from_the_labels(texts, task):
  assert probing.parse_labels(rows(*texts))[1].task == task


def test_missing_labels_are_left_out():
  ids, labels = probing.parse_labels(rows('1', '', 'NA', '2', '.', '5', 'nan'))
  assert ids == ['P0', 'P3', 'P5']
  assert labels.values.tolist() == [1, 2, 5]


@pytest.mark.parametrize(
  'texts, task, message',
  [
    (('7', '7.0', '7'), 'auto', "all 3 labels are '7'"),
    (('a', 'a', ''), 'auto', "all 2 labels are 'a'"),
    (('', 'NA'), 'auto', 'no protein of the table has a label'),
    (('1', '2', '3', 'x'), 'auto', "x.csv:5 has the label 'x', not a number"),
    (('1', 'inf', '3'), 'regression', "x.csv:3 has the label 'inf'"),
    (('a', 'b', 'c'), 'auto', 'all 3 labels are different'),
  ],
)
def test_labels_without_sense_are_refused(texts, task, message):
  with pytest.raises(ValueError, match=message):
    probing.parse_labels(rows(*texts), task)


@pytest.mark.parametrize(
  'clusters, num_folds, message',
  [
    (
      ['a', 'a', 'b', 'b'],
      3,
      'in 2 clusters, fewer than --folds=3: set --folds=2',
    ),
    (['a'] * 4, 2, 'in 1 clusters, fewer than --folds=2: set --clusters=none'),
    (list('abcd'), 1, '--folds must be at least 2'),
  ],
)
def test_too_few_clusters_are_refused(clusters, num_folds, message):
  with pytest.raises(ValueError, match=message):
    probing.make_folds(clusters, Labels(np.arange(4.0)), num_folds)


def test_a_class_in_one_cluster_alone_cannot_be_learned():
  labels = Labels(np.array([0, 0, 1, 1]), ('a', 'b'))
  with pytest.raises(ValueError, match='are of one class'):
    probing.make_folds(['a', 'a', 'b', 'b'], labels, 2)
