"""Figures of a prepared data set, as matplotlib objects of their own.

Nothing here uses pyplot, keeps global state or opens a window.
"""

import collections
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from protein_lm import vocab
from protein_lm.data_facts import LEAK_SHARE, Fill, SplitFacts

NUM_ORGANISMS = 15  # drawn, of those that are known
_QUANTILES = (0.05, 0.5, 0.95)  # of the lengths, marked in their histogram
_INK, _GREY, _LIGHT = '#222222', '#666666', '#d8d8d8'
_COLORS = ('#1f5fa8', '#e0912f', '#2f7d4f', '#a23b72', '#6b6b6b')


def _new_figure(num_axes: int, height: float, **kwargs):
  """A figure with axes one below another; height in inches of each."""
  figure = Figure(figsize=(7, 0.6 + height * num_axes), layout='constrained')
  axes = figure.subplots(num_axes, squeeze=False, **kwargs)[:, 0]
  for a in axes:
    a.spines[['top', 'right']].set_visible(False)
    a.spines[['left', 'bottom']].set_color(_GREY)
    a.tick_params(colors=_INK, labelsize=10)
    a.set_axisbelow(True)
  return figure, axes


def _color(index: int) -> str:
  return _COLORS[index % len(_COLORS)]


def _percent_axis(axis) -> None:
  axis.set_major_formatter(lambda x, _: f'{round(100 * x, 6):g} %')


def plot_lengths(facts: Sequence[SplitFacts]) -> Figure:
  """A histogram of lengths for each split, on one logarithmic axis."""
  figure, axes = _new_figure(len(facts), 1.5, sharex=True)
  longest = max(split.proteins.lengths.max() for split in facts)
  shortest = min(split.proteins.lengths.min() for split in facts)
  edges = np.geomspace(max(shortest, 1) * 0.9, max(longest, 2) * 1.1, 60)
  for index, (a, split) in enumerate(zip(axes, facts, strict=True)):
    lengths = split.proteins.lengths
    weights = np.full(len(lengths), 1 / len(lengths))
    a.hist(lengths, edges, weights=weights, color=_color(index), alpha=0.75)
    a.set_xscale('log')
    marked = {q: np.quantile(lengths, q) for q in _QUANTILES}
    for x in marked.values():
      a.axvline(x, color=_INK, lw=1, ls=(0, (4, 2)))
    words = [f'{q:.0%} below {x:,.0f}' for q, x in marked.items()]
    a.set_title(split.name, loc='left', fontsize=11)
    a.set_title(',  '.join(words), loc='right', fontsize=9, color=_GREY)
    _percent_axis(a.yaxis)
  axes[-1].set_xlabel('residues of a protein')
  axes[-1].xaxis.set_major_formatter(lambda x, _: f'{x:,.0f}')
  axes[-1].xaxis.set_minor_locator(NullLocator())
  figure.supylabel('share of the proteins', fontsize=10)
  return figure


def plot_letters(facts: Sequence[SplitFacts]) -> Figure:
  """Bars of letter frequencies, the splits side by side."""
  figure, (a,) = _new_figure(1, 3.4)
  order = np.argsort(-facts[0].letter_shares[:20], kind='stable').tolist()
  order += range(20, len(vocab.RESIDUES))
  width = 0.84 / len(facts)
  places = np.arange(len(order))
  for index, split in enumerate(facts):
    a.bar(
      places + (index - (len(facts) - 1) / 2) * width,
      split.letter_shares[order],
      width,
      color=_color(index),
      label=split.name,
    )
  a.set_xticks(places, [vocab.RESIDUES[i] for i in order])
  a.set_xlim(-0.7, len(order) - 0.3)
  a.axvline(19.5, color=_GREY, lw=0.8, ls=(0, (2, 2)))
  a.grid(axis='y', color=_LIGHT, lw=0.5)
  _percent_axis(a.yaxis)
  a.set_xlabel('letter: the 20 by frequency, then B O U X Z')
  a.set_ylabel('share of the residues')
  a.legend(frameon=False, fontsize=10)
  return figure


def plot_sizes(facts: Sequence[SplitFacts]) -> Figure:
  """Bars of proteins and of residues, each with its number and share."""
  figure, axes = _new_figure(2, 0.5 + 0.3 * len(facts))
  for a, what, sizes in (
    (axes[0], 'proteins', [split.num_proteins for split in facts]),
    (axes[1], 'residues', [split.num_residues for split in facts]),
  ):
    colors = [_color(index) for index in range(len(facts))]
    bars = a.barh([split.name for split in facts], sizes, color=colors)
    total = max(sum(sizes), 1)
    labels = [f'{size:,} ({size / total:.1%})' for size in sizes]
    a.bar_label(bars, labels, padding=4, fontsize=10)
    a.set_xlim(0, max(sizes) * 1.32)  # room for the numbers
    a.xaxis.set_major_locator(NullLocator())
    a.spines['bottom'].set_visible(False)
    a.invert_yaxis()
    a.set_title(what, loc='left', fontsize=11)
  return figure


def plot_fill(fills: Sequence[Fill]) -> Figure:
  """How full rows are against their length."""
  figure, (a,) = _new_figure(1, 3.2)
  places = np.arange(len(fills))
  for index, (field, label) in enumerate(
    (
      ('packed', 'tokens that are not padding, packed'),
      ('padded', 'tokens that are not padding, one protein a row'),
      ('whole', 'residues in proteins that fit a row'),
    )
  ):
    values = [getattr(fill, field) for fill in fills]
    style = '--' if field == 'whole' else '-'
    a.plot(places, values, style, marker='o', color=_color(index), label=label)
  a.set_xticks(places, [str(fill.max_len) for fill in fills])
  a.set_ylim(0, 1.05)
  a.grid(axis='y', color=_LIGHT, lw=0.5)
  _percent_axis(a.yaxis)
  a.set_xlabel('tokens of a row')
  figure.legend(loc='outside upper left', frameon=False, fontsize=10)
  return figure


def plot_leakage(measured: Sequence[SplitFacts]) -> Figure:
  """A histogram of what proteins share with train, for each split."""
  figure, axes = _new_figure(len(measured), 1.5, sharex=True)
  for index, (a, split) in enumerate(zip(axes, measured, strict=True)):
    a.hist(
      split.train_shares,
      np.linspace(0, 1, 41),
      color=_color(index + 1),
      alpha=0.75,
    )
    a.set_yscale('log')
    a.set_ylim(bottom=0.7)
    a.yaxis.set_major_formatter(lambda y, _: f'{y:,.0f}')
    a.yaxis.set_minor_locator(NullLocator())
    a.axvline(LEAK_SHARE, color=_INK, lw=1, ls=(0, (4, 2)))
    words = f'{split.leaked:.1%} of {len(split.train_shares):,} at or above'
    words += f' {LEAK_SHARE:.0%}'
    a.set_title(split.name, loc='left', fontsize=11)
    a.set_title(words, loc='right', fontsize=9, color=_GREY)
    a.set_xlim(0, 1)
  axes[-1].set_xlabel(
    'share of the 8-mers found in the nearest protein of train'
  )
  _percent_axis(axes[-1].xaxis)
  figure.supylabel('proteins', fontsize=10)
  return figure


def plot_organisms(organisms: collections.Counter) -> Figure:
  """Bars of the most frequent organisms."""
  top = organisms.most_common(NUM_ORGANISMS)
  figure, (a,) = _new_figure(1, 0.4 + 0.26 * len(top))
  shares = [number / organisms.total() for _, number in top]
  bars = a.barh(range(len(top)), shares, color=_color(0))
  labels = [f'{share:.1%}' for share in shares]
  a.bar_label(bars, labels, padding=4, fontsize=10)
  a.set_yticks(range(len(top)), [_drawable(name) for name, _ in top])
  for label in a.get_yticklabels():
    label.set_parse_math(False)  # a $ in a name is no formula
  a.set_xlim(0, max(shares) * 1.15)
  a.xaxis.set_major_locator(NullLocator())
  a.spines['bottom'].set_visible(False)
  a.invert_yaxis()
  return figure


def _drawable(name: str) -> str:
  """A name cut short, in letters that the font has."""
  name = ''.join(c if c.isprintable() else ' ' for c in name)
  name = name.encode('latin-1', 'replace').decode('latin-1')
  return shortened(name, 36)


def shortened(text: str, length: int) -> str:
  """A text of at most `length` letters, with an ellipsis where it was cut."""
  if len(text) <= length:
    return text
  return text[: length - 1].rstrip() + '\N{HORIZONTAL ELLIPSIS}'
