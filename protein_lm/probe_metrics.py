"""How good the predictions of a probe are, fold by fold.

Axes: P proteins, C classes.
"""

import math

import numpy as np

METRICS = {
  'regression': ('spearman', 'r2', 'rmse'),
  'classification': ('accuracy', 'auc', 'mcc'),
}


def summarize(outputs, labels, fold_P) -> dict[str, dict]:
  """Metrics of predictions: name -> mean, sd, folds and pooled.

  `mean` and `sd` are over the folds in which a metric is defined, `folds` are
  theirs (None where it is not), `pooled` is of all proteins at once.

  Args:
    outputs: [P] or [P, C], as probing.Result has them.
    labels: probing.Labels.
    fold_P: the fold of each protein.
  """
  metrics = {}
  its_folds = [fold_P == fold for fold in range(fold_P.max() + 1)]
  for name in METRICS[labels.task]:
    values = [
      _METRICS[name](outputs[where], labels.values[where])
      for where in its_folds
    ]
    known = [value for value in values if not math.isnan(value)]
    metrics[name] = {
      'mean': float(np.mean(known)) if known else None,
      'sd': float(np.std(known, ddof=1)) if len(known) > 1 else None,
      'folds': [None if math.isnan(value) else value for value in values],
      'pooled': _METRICS[name](outputs, labels.values),
    }
  return metrics


def _spearman(outputs, values):
  from scipy import stats

  if len(values) < 2 or np.ptp(outputs) == 0 or np.ptp(values) == 0:
    return math.nan
  return float(stats.spearmanr(outputs, values).statistic)


def _r2(outputs, values):
  variance = np.var(values)
  if variance == 0:
    return math.nan
  return float(1 - np.mean((outputs - values) ** 2) / variance)


def _rmse(outputs, values):
  return float(np.sqrt(np.mean((outputs - values) ** 2)))


def _accuracy(outputs, values):
  return float(np.mean(outputs.argmax(axis=1) == values))


def _auc(outputs, values):
  """Of two classes, or the mean over classes of each against the rest."""
  from sklearn.metrics import roc_auc_score

  num_classes = outputs.shape[1]
  found = [
    roc_auc_score(values == c, outputs[:, c])
    for c in range(num_classes if num_classes > 2 else 1)
    if 0 < np.count_nonzero(values == c) < len(values)
  ]
  return float(np.mean(found)) if found else math.nan


def _mcc(outputs, values):
  from sklearn.metrics import matthews_corrcoef

  if len(set(values)) < 2:
    return math.nan
  return float(matthews_corrcoef(values, outputs.argmax(axis=1)))


_METRICS = {
  'spearman': _spearman,
  'r2': _r2,
  'rmse': _rmse,
  'accuracy': _accuracy,
  'auc': _auc,
  'mcc': _mcc,
}
