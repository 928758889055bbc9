"""How well scores rank variants: Spearman, NDCG, AUC.

Axes: R variants with a measurement.
"""

import math

import numpy as np

TOP_SHARE = 0.1


def spearman(measured_R, scores_R) -> float:
  """Spearman's rank correlation; NaN where either is constant."""
  from scipy import stats

  if len(scores_R) < 2 or np.ptp(measured_R) == 0 or np.ptp(scores_R) == 0:
    return math.nan
  return float(stats.spearmanr(measured_R, scores_R).statistic)


def ndcg(measured_R, scores_R) -> float:
  """Normalised discounted cumulative gain of the best tenth, as ProteinGym's.

  With gains g, the measurements scaled to 0..1, and the k = floor(R / 10)
  variants of highest score (1 at least),

    DCG = sum_{r=1..k} g_r / log2(r + 1),

  divided by the DCG of the k highest gains. Equal scores share their places.

  Returns:
    0 to 1; NaN for fewer than 2 variants or equal measurements.
  """
  from sklearn import metrics

  measured_R, scores_R = np.asarray(measured_R), np.asarray(scores_R)
  if len(scores_R) < 2 or np.ptp(measured_R) == 0:
    return math.nan
  gains_R = (measured_R - measured_R.min()) / np.ptp(measured_R)
  k = max(1, math.floor(TOP_SHARE * len(gains_R)))
  return float(metrics.ndcg_score(gains_R[None], scores_R[None], k=k))


def auc(is_fit_R, scores_R) -> float:
  """Area under the ROC curve; NaN unless there are variants of both kinds."""
  from sklearn import metrics

  is_fit_R = np.asarray(is_fit_R, bool)
  if is_fit_R.all() or not is_fit_R.any():
    return math.nan
  return float(metrics.roc_auc_score(is_fit_R, scores_R))


def rank_metrics(scores_R, measured_R, is_fit_R=None):
  """All three, of the variants that have a score and a measurement.

  Args:
    scores_R: of the model; NaN where there is none.
    measured_R: higher is fitter; NaN where there is none.
    is_fit_R: 1 fit, 0 not, NaN unknown; None to call those fit that lie above
      the median measurement.

  Returns:
    dict of num_measured, spearman, ndcg, auc, and auc_labels: where the two
    classes of the AUC come from.

  Example:
    >>> rank_metrics([1, 2, 3], [0.1, 0.2, 0.9])['spearman']
    1.0
  """
  scores_R = np.asarray(scores_R, np.float64)
  measured_R = np.asarray(measured_R, np.float64)
  known_R = np.isfinite(scores_R) & np.isfinite(measured_R)
  metrics = {
    'num_measured': int(known_R.sum()),
    'spearman': spearman(measured_R[known_R], scores_R[known_R]),
    'ndcg': ndcg(measured_R[known_R], scores_R[known_R]),
  }
  if is_fit_R is None:
    labels = 'above the median'
    measured_R = measured_R[known_R]
    scores_R = scores_R[known_R]
    is_fit_R = measured_R > (np.median(measured_R) if len(measured_R) else 0)
  else:
    labels = 'DMS_score_bin'
    is_fit_R = np.asarray(is_fit_R, np.float64)
    known_R = np.isfinite(scores_R) & np.isfinite(is_fit_R)
    scores_R, is_fit_R = scores_R[known_R], is_fit_R[known_R] > 0
  return metrics | {'auc': auc(is_fit_R, scores_R), 'auc_labels': labels}
