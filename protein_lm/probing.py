"""Ridge and logistic regression on features of proteins, cross-validated.

Clusters of proteins are never on both sides of a split. In each fold the
features are standardised and the penalty is chosen on its training part alone,
by another cross-validation. The penalty is per protein: scikit-learn's alpha is
penalty x proteins, C its inverse.

Axes: P proteins, F features, C classes.
"""

import contextlib
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PENALTIES = tuple(10.0**k for k in range(-4, 3))
_INNER_FOLDS = 3
_MAX_ITERATIONS = 200  # of a logistic regression


class Labels(NamedTuple):
  """What is predicted.

  Attributes:
    values: [P], numbers, or indices of classes.
    classes: their names, or None for numbers.
  """

  values: np.ndarray
  classes: tuple[str, ...] | None = None

  @property
  def task(self) -> str:
    """'regression' or 'classification'."""
    return 'classification' if self.classes else 'regression'


class Result(NamedTuple):
  """Of one kind of features.

  Attributes:
    outputs: [P] predicted numbers, or [P, C] probabilities; out of fold.
    penalties: that each fold has chosen.
  """

  outputs: np.ndarray
  penalties: list[float]


def parse_labels(rows, task: str = 'auto') -> tuple[list[str], Labels]:
  """Labels of proteins, without those that are missing.

  Args:
    rows: id -> id_table.Row. A value that is empty, '.', NA or NaN is missing.
    task: 'regression', 'classification', or 'auto': regression if most labels
      are numbers, and more than two different ones.

  Returns:
    The ids that have a label, and these.

  Raises:
    ValueError: a label is no number in a regression, all are alike, or all
      classes are different.
  """
  rows = {
    id_: row
    for id_, row in rows.items()
    if row.value.lower() not in ('', '.', 'na', 'nan')
  }
  if not rows:
    raise ValueError('no protein of the table has a label.')
  texts = [row.value for row in rows.values()]
  numbers = [_number(text) for text in texts]
  num_numbers = len(numbers) - numbers.count(None)
  distinct = set(numbers) if num_numbers == len(texts) else set(texts)
  if len(distinct) == 1:
    raise ValueError(
      f'all {len(texts):,} labels are {texts[0][:20]!r}: there is nothing to '
      'predict.'
    )
  if task == 'auto':
    are_numbers = 2 * num_numbers > len(texts) and len(distinct) > 2
    task = 'regression' if are_numbers else 'classification'
  if task == 'classification':
    classes = tuple(sorted(set(texts)))
    if len(classes) == len(texts) > 2:
      raise ValueError(
        f'all {len(texts):,} labels are different, so they are no classes; for '
        'numbers set --task=regression.'
      )
    return list(rows), Labels(np.searchsorted(classes, texts), classes)
  for row, number in zip(rows.values(), numbers, strict=True):
    if number is None:
      raise ValueError(
        f'{row.where} has the label {row.value[:20]!r}, not a number; for '
        'names set --task=classification.'
      )
  return list(rows), Labels(np.array(numbers))


def _number(text):
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def make_folds(clusters: Sequence[str], labels: Labels, num_folds: int):
  """The fold of each protein, [P]; whole clusters, and classes spread evenly.

  Raises:
    ValueError: there are fewer clusters than folds, or a fold would be trained
      on one class.
  """
  from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

  if num_folds < 2:
    raise ValueError(f'--folds must be at least 2, got {num_folds}.')
  num_clusters = len(set(clusters))
  if num_clusters < num_folds:
    way_out = f'--folds={num_clusters}, or ' if num_clusters > 1 else ''
    raise ValueError(
      f'the {len(clusters):,} labelled proteins are in {num_clusters} '
      f'clusters, fewer than --folds={num_folds}: set {way_out}'
      '--clusters=none, which lets similar proteins be on both sides.'
    )
  splitters = [GroupKFold(num_folds)]
  if labels.classes:
    splitters.insert(0, StratifiedGroupKFold(num_folds))
  for splitter in splitters:
    fold_P = np.full(len(clusters), -1)
    with _quiet():
      splits = splitter.split(fold_P, labels.values, clusters)
      for fold, (_, test) in enumerate(splits):
        fold_P[test] = fold
    if all(_is_usable(fold_P, fold, labels) for fold in range(num_folds)):
      return fold_P
  raise ValueError(
    f'with --folds={num_folds} all training proteins of a fold are of one '
    'class; label more proteins, of more clusters.'
  )


def _is_usable(fold_P, fold, labels):
  known = labels.values[fold_P != fold]
  return (fold_P == fold).any() and (
    labels.classes is None or len(set(known)) > 1
  )


def cross_validate(
  features_PF, labels, clusters, fold_P, after_fold=lambda: None
) -> Result:
  """Predicts each protein by what was fitted on the other folds."""
  clusters = np.asarray(clusters)
  shape = (len(fold_P), len(labels.classes)) if labels.classes else len(fold_P)
  outputs, penalties = np.zeros(shape), []
  for fold in range(fold_P.max() + 1):
    test = fold_P == fold
    its_labels = labels._replace(values=labels.values[~test])
    penalty = _choose(features_PF[~test], its_labels, clusters[~test])
    penalties.append(penalty)
    (outputs[test],) = fit_predict(
      features_PF[~test], its_labels, features_PF[test], [penalty]
    )
    after_fold()
  return Result(outputs, penalties)


def _choose(features_PF, labels, clusters):
  """The penalty of least loss in an inner cross-validation."""
  from sklearn.model_selection import GroupKFold

  num_folds = min(_INNER_FOLDS, len(set(clusters)))
  losses = np.zeros(len(PENALTIES))
  if num_folds > 1:
    splits = GroupKFold(num_folds).split(features_PF, groups=clusters)
    for train, test in splits:
      its_labels = labels._replace(values=labels.values[train])
      if labels.classes and len(set(its_labels.values)) == 1:
        continue
      outputs = fit_predict(
        features_PF[train], its_labels, features_PF[test], PENALTIES
      )
      wanted = labels.values[test]
      losses += [_loss(x, wanted, labels.classes) for x in outputs]
  if not losses.any():  # nothing to choose by
    return PENALTIES[len(PENALTIES) // 2]
  return PENALTIES[int(np.argmin(losses))]


def _loss(outputs, wanted, classes):
  if classes is None:
    return np.square(outputs - wanted).sum()
  chosen = outputs[np.arange(len(wanted)), wanted]
  return -np.log(np.maximum(chosen, 1e-9)).sum()


def fit_predict(train_PF, labels, test_PF, penalties) -> list[np.ndarray]:
  """Predictions of test proteins for each penalty, as Result.outputs."""
  train_PF, test_PF = train_PF.astype(np.float64), test_PF.astype(np.float64)
  mean_F, scale_F = train_PF.mean(axis=0), train_PF.std(axis=0)
  is_used_F = scale_F > 1e-8 * np.maximum(np.abs(mean_F), 1e-8)
  train_PF, test_PF = (
    ((x - mean_F) / np.where(is_used_F, scale_F, 1))[:, is_used_F]
    for x in (train_PF, test_PF)
  )
  if not is_used_F.any():  # a feature that is always 0
    train_PF, test_PF = (np.zeros((len(x), 1)) for x in (train_PF, test_PF))
  if train_PF.shape[1] > len(train_PF):
    # An L2 penalty sees lengths alone: the axes may be those of the rows.
    _, _, axes_PF = np.linalg.svd(train_PF, full_matrices=False)
    train_PF, test_PF = train_PF @ axes_PF.T, test_PF @ axes_PF.T
  fit = _fit_ridge if labels.classes is None else _fit_logistic
  with _quiet():
    return fit(train_PF, labels, test_PF, penalties)


def _fit_ridge(train_PF, labels, test_PF, penalties):
  from sklearn.linear_model import Ridge

  return [
    Ridge(alpha=penalty * len(train_PF))
    .fit(train_PF, labels.values)
    .predict(test_PF)
    for penalty in penalties
  ]


def _fit_logistic(train_PF, labels, test_PF, penalties):
  from sklearn.linear_model import LogisticRegression

  found = {}
  model = LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)
  # From the largest on, each starting where the one before it has ended.
  for penalty in sorted(penalties, reverse=True):
    model.set_params(C=1 / (penalty * len(train_PF)))
    model.fit(train_PF, labels.values)
    found[penalty] = np.zeros((len(test_PF), len(labels.classes)))
    found[penalty][:, model.classes_] = model.predict_proba(test_PF)
  return [found[penalty] for penalty in penalties]


@contextlib.contextmanager
def _quiet():
  """Without warnings of slow convergence, rare classes, near-singular sums."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield
