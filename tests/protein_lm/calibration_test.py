"""The expected calibration error of predictions that are known."""

import numpy as np

from protein_lm import calibration


def test_a_calibrated_model_has_next_to_no_error():
  generator = np.random.default_rng(0)
  confidence = generator.random(200_000)
  correct = generator.random(200_000) < confidence
  assert calibration.expected_calibration_error(confidence, correct) < 0.01


def test_error_is_the_weighted_gap_of_the_bins():
  # Bins of 1/15: two predictions in (0.2, 0.267], one in (0.933, 1].
  confidence, correct = np.array([0.21, 0.25, 1.0]), np.array([1, 0, 0], bool)
  expected = 2 / 3 * abs(0.5 - 0.23) + 1 / 3 * 1
  found = calibration.expected_calibration_error(confidence, correct)
  np.testing.assert_allclose(found, expected)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
  bins = calibration.reliability(np.array([0.0, 1 / 3, 1.0]), np.ones(3), 3)
  np.testing.assert_array_equal(bins.count, [2, 0, 1])
  assert np.isnan(bins.accuracy[1])


def test_no_prediction_has_no_error():
  assert calibration.expected_calibration_error([], []) is None
