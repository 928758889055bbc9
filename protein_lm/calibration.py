"""Whether a model's confidence is worth its word.

Predictions are put into 15 bins of equal width by their confidence, the
probability of the most probable token. In a calibrated model the accuracy of
each bin is its mean confidence.

Axes: T predictions, G bins.

Source: Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities
using Bayesian binning, 2015; Guo et al., On calibration of modern neural
networks, 2017 (arXiv:1706.04599), equation 3.
"""

from typing import NamedTuple

import numpy as np

NUM_BINS = 15


class Reliability(NamedTuple):
  """The bins, [G] each; means are NaN in an empty bin.

  Attributes:
    count: predictions in the bin.
    confidence: their mean confidence.
    accuracy: the share of them that was right.
  """

  count: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray


def reliability(
  confidence_T: np.ndarray, correct_T: np.ndarray, num_bins: int = NUM_BINS
) -> Reliability:
  """Predictions by confidence, in bins (0, 1/G], (1/G, 2/G] ... of one width.

  Args:
    confidence_T: probability of the most probable token.
    correct_T: whether that token was right.
    num_bins: G.
  """
  confidence_T = np.asarray(confidence_T, np.float64)
  bin_T = np.ceil(confidence_T * num_bins).astype(int) - 1
  bin_T = np.clip(bin_T, 0, num_bins - 1)
  count_G = np.bincount(bin_T, minlength=num_bins)
  with np.errstate(invalid='ignore'):
    return Reliability(
      count_G,
      np.bincount(bin_T, confidence_T, num_bins) / count_G,
      np.bincount(bin_T, correct_T, num_bins) / count_G,
    )


def expected_calibration_error(
  confidence_T: np.ndarray, correct_T: np.ndarray, num_bins: int = NUM_BINS
) -> float | None:
  """ECE = sum over bins of (share of predictions) |accuracy - confidence|.

  Args:
    confidence_T: probability of the most probable token.
    correct_T: whether that token was right.
    num_bins: of equal width.

  Returns:
    From 0 to 1; None without a prediction.

  Example:
    scored = scores.scored
    ece = expected_calibration_error(
      scores.confidence[scored], scores.correct[scored]
    )
  """
  bins = reliability(confidence_T, correct_T, num_bins)
  filled = bins.count > 0
  if not filled.any():
    return None
  gap_G = np.abs(bins.accuracy - bins.confidence)[filled]
  return float(np.average(gap_G, weights=bins.count[filled]))
