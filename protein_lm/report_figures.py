"""Figures of a report, as matplotlib objects of their own.

Nothing here uses pyplot, keeps global state or opens a window.

Axes: A the 20 standard amino acids, N layers, H heads, L length.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from protein_lm import vocab
from protein_lm.calibration import Reliability
from protein_lm.report_facts import Curve

_INK, _GREY, _LIGHT = '#222222', '#666666', '#d8d8d8'
_BLUE, _ORANGE = '#1f5fa8', '#c4551d'
_OTHERS = ('#666666', '#2f7d4f', '#a23b72', '#e0912f')
# Letters by chemistry, so that what is alike stands side by side.
ORDER = 'GAVLIMCFYWPSTNQHKRDE'
MAX_PANELS = 48  # of single heads; of more, each layer's mean is drawn


def perplexity_by_bin(curve: Curve, x_label: str, y_label: str) -> Figure:
  """Perplexity in bins, the model as a line with points, baselines dashed."""
  figure = Figure(figsize=(7, 4), layout='constrained')
  axes, below = figure.subplots(
    2, sharex=True, gridspec_kw={'height_ratios': (4, 1)}
  )
  places = np.arange(len(curve.labels))
  names = list(curve.values)
  for index, name in enumerate(names):
    is_model = index == 0
    axes.plot(
      places,
      curve.values[name],
      color=_BLUE if is_model else _OTHERS[(index - 1) % len(_OTHERS)],
      lw=2 if is_model else 1,
      ls='-' if is_model else '--',
      marker='o' if is_model else None,
      ms=4,
      label=name,
    )
  axes.set_ylabel(y_label)
  axes.legend(frameon=False, fontsize=9)
  below.bar(places, curve.counts, 0.7, color=_LIGHT)
  below.set_ylabel('residues')
  below.yaxis.set_major_formatter(lambda x, _: f'{x:,.0f}')
  below.set_xticks(places, curve.labels, rotation=40, ha='right', fontsize=8)
  below.set_xlabel(x_label)
  for each in (axes, below):
    _plain(each)
  return figure


def perplexity_by_residue(perplexity_A, count_A, y_label: str) -> Figure:
  """Bars of perplexity on each letter, most frequent first.

  A tick is what guessing by frequency gets: one over the letter's frequency.
  """
  figure = Figure(figsize=(7, 3.4), layout='constrained')
  axes = figure.subplots()
  order = [a for a in np.argsort(-count_A, kind='stable') if count_A[a]]
  places = np.arange(len(order))
  axes.bar(places, perplexity_A[order], 0.7, color=_BLUE, label='model')
  axes.hlines(
    count_A.sum() / count_A[order],
    places - 0.42,
    places + 0.42,
    color=_ORANGE,
    lw=2,
    label='guessing by frequency',
  )
  axes.set_xticks(places, [vocab.STANDARD_RESIDUES[a] for a in order])
  axes.set_xlabel('residue, by frequency')
  axes.set_ylabel(y_label)
  axes.legend(frameon=False, fontsize=9, loc='upper left')
  _plain(axes)
  return figure


def confusion(share_AA: np.ndarray) -> Figure:
  """Truth in rows, prediction in columns, shares of a row."""
  figure = Figure(figsize=(6.4, 5.4), layout='constrained')
  axes = figure.subplots()
  image = _letters(axes, share_AA, cmap='Blues', vmin=0)
  axes.set_xlabel('predicted')
  axes.set_ylabel('true')
  _bar(figure, image, axes, 'share of the true letter')
  return figure


def similarities(matrices: Mapping[str, np.ndarray]) -> Figure:
  """Matrices of letters side by side, each on its own scale, no diagonal."""
  figure = Figure(figsize=(4 * len(matrices), 4.2), layout='constrained')
  panels = figure.subplots(1, len(matrices), squeeze=False)[0]
  for axes, (title, matrix_AA) in zip(panels, matrices.items(), strict=True):
    shown_AA = np.array(matrix_AA, float)
    np.fill_diagonal(shown_AA, np.nan)
    limit = np.nanmax(np.abs(shown_AA), initial=1e-9)
    image = _letters(axes, shown_AA, cmap='RdBu_r', vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=10)
    _bar(figure, image, axes, '')
  return figure


def attention_maps(weights_NHLL: np.ndarray) -> Figure:
  """A panel for each head (rows are layers), or for each layer's mean."""
  N, H, L, _ = weights_NHLL.shape
  if N * H > MAX_PANELS:
    weights_NHLL, H = weights_NHLL.mean(1, keepdims=True), 1
    columns = min(N, 6)
  else:
    columns = H
  panels_GLL = weights_NHLL.reshape(-1, L, L)
  rows = -(-len(panels_GLL) // columns)
  size = 7 / columns
  figure = Figure(figsize=(7, rows * (size + 0.15) + 0.4), layout='constrained')
  grid = figure.subplots(rows, columns, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for index, (axes, weights_LL) in enumerate(
    zip(grid.flat, panels_GLL, strict=False)
  ):
    axes.set_axis_on()
    # Of one number a row, the largest would leave all else white.
    top = max(float(np.quantile(weights_LL, 0.995)), 1e-6)
    axes.imshow(
      weights_LL, cmap='magma_r', norm=PowerNorm(0.5, 0, top), aspect='equal'
    )
    axes.set_xticks([])
    axes.set_yticks([])
    layer, head = divmod(index, H)
    title = f'layer {layer + 1}' + (f', head {head + 1}' if H > 1 else '')
    axes.set_title(title, fontsize=7, pad=2)
  return figure


def reliability(bins: Reliability) -> Figure:
  """Accuracy against confidence; the diagonal is perfect.

  Bins of fewer than 20 predictions are left out.
  """
  figure = Figure(figsize=(5.2, 4.4), layout='constrained')
  axes, below = figure.subplots(
    2, sharex=True, gridspec_kw={'height_ratios': (4, 1)}
  )
  known = bins.count >= 20
  confidence, count = bins.confidence[known], bins.count[known]
  axes.plot((0, 1), (0, 1), color=_GREY, lw=1, ls='--', label='calibrated')
  axes.plot(confidence, bins.accuracy[known], 'o-', color=_BLUE, label='model')
  axes.set_ylabel('accuracy')
  axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  axes.legend(frameon=False, fontsize=9, loc='upper left')
  below.bar(confidence, count, 0.03, color=_LIGHT)
  below.set_yscale('log')
  below.set_ylabel('residues')
  below.set_xlabel('confidence: probability of the prediction')
  below.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  for each in (axes, below):
    _plain(each)
  return figure


def kernel_error(error_NH, uniform_NH, labels: Sequence[str]) -> Figure:
  """Each head's error by layer, beside that of equal weights."""
  figure = Figure(figsize=(7, 3.4), layout='constrained')
  axes = figure.subplots()
  places_N = np.arange(len(error_NH))
  for values_NH, color, label, shift in (
    (error_NH, _BLUE, 'random features', -0.1),
    (uniform_NH, _ORANGE, 'equal weights', 0.1),
  ):
    axes.scatter(
      np.repeat(places_N + shift, values_NH.shape[1]),
      values_NH.ravel(),
      s=14,
      color=color,
      alpha=0.5,
      lw=0,
    )
    axes.plot(
      places_N + shift, values_NH.mean(1), color=color, marker='_', label=label
    )
  axes.set_xticks(places_N, labels)
  axes.set_xlabel('layer')
  axes.set_ylabel('L1 distance to exact rows')
  axes.set_ylim(0, None)
  axes.legend(frameon=False, fontsize=9)
  _plain(axes)
  return figure


def _letters(axes, matrix_AA, **kwargs):
  order = [vocab.STANDARD_RESIDUES.index(letter) for letter in ORDER]
  image = axes.imshow(matrix_AA[np.ix_(order, order)], **kwargs)
  axes.set_xticks(range(len(ORDER)), list(ORDER), fontsize=8)
  axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize=8)
  axes.tick_params(length=0, colors=_INK)
  return image


def _bar(figure, image, axes, label):
  bar = figure.colorbar(image, ax=axes, shrink=0.8, label=label)
  bar.outline.set_visible(False)
  bar.ax.tick_params(labelsize=8)


def _plain(axes):
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(_GREY)
  axes.tick_params(colors=_INK)
  axes.grid(axis='y', color=_LIGHT, lw=0.5)
  axes.set_axisbelow(True)
