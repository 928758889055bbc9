"""Figures of a report draw what a model may give, NaN included."""

import numpy as np
import pytest

from protein_lm import calibration, html_page, report_figures
from protein_lm.report_facts import Curve

UNKNOWN_AA = np.full((20, 20), np.nan)
MAPS_NHLL = np.random.default_rng(0).uniform(size=(13, 4, 9, 9))


@pytest.mark.parametrize(
  'draw',
  [
    lambda: report_figures.perplexity_by_bin(
      Curve(['1-9'], np.array([3]), {'model': np.array([17.0])}), 'x', 'y'
    ),
    lambda: report_figures.perplexity_by_residue(
      np.where(np.arange(20) % 2, 10.0, np.nan), np.arange(20) % 2, 'y'
    ),
    lambda: report_figures.confusion(UNKNOWN_AA),
    lambda: report_figures.similarities({'a': UNKNOWN_AA, 'b': np.eye(20)}),
    lambda: report_figures.reliability(
      calibration.reliability(np.full(30, 0.1), np.zeros(30, bool))
    ),
    lambda: report_figures.kernel_error(np.ones((2, 4)), np.ones((2, 4)), '12'),
  ],
)
def test_it_is_drawn(draw):
  assert html_page.data_url(draw()).startswith('data:image/svg+xml;base64,')


def test_of_many_heads_the_mean_of_a_layer_is_drawn():
  shown = report_figures.attention_maps(MAPS_NHLL).axes
  titles = [axes.get_title() for axes in shown if axes.get_title()]
  assert titles == [f'layer {n}' for n in range(1, 14)]
  drawn = shown[12].images[0].get_array()
  np.testing.assert_allclose(drawn, MAPS_NHLL[12].mean(0))


def test_of_few_heads_each_is_drawn():
  shown = report_figures.attention_maps(MAPS_NHLL[:2]).axes
  assert [axes.get_title() for axes in shown][5] == 'layer 2, head 2'
