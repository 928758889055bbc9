"""Figures of an evaluation: learning curve, accuracy, similarity to train.

Figures are matplotlib objects of their own (no pyplot, no global state), and
nothing here opens a window.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from protein_lm import bootstrap, per_sequence, vocab
from protein_lm.evaluation import Scores
from protein_lm.proteins import Proteins

_INK, _GREY, _LIGHT = '#222222', '#666666', '#c8c8c8'
_COLORS = ('#9ab8d8', '#1f5fa8', '#c4551d', '#2f7d4f')
_DPI = 150
# Groups of proteins by the share of their 8-mers in the most similar train
# protein; most have few.
_SHARES = (0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


def learning_curve(
  records: Sequence[Mapping],
  baselines: Mapping[str, float],
  y_label: str = 'perplexity per residue',
  title: str = 'Learning curve',
) -> Figure:
  """Perplexity per residue against step, the baselines as labelled lines.

  Args:
    records: of metrics.jsonl: dicts with 'step' and '<split>/<metric>'.
    baselines: name -> residue perplexity.
    y_label: says so where the residues are masked ones.
    title: of the figure.

  Returns:
    The figure. Each split's residue_perplexity is drawn (or its
    masked_residue_perplexity); a split that records only perplexity with EOS
    is labelled so.
  """
  figure, axes = _new_figure(title, 'training step', y_label)
  curves = _curves(records)
  for color, (label, (steps, values)) in zip(
    _cycle(_COLORS), curves.items(), strict=False
  ):
    few = len(steps) <= 30
    axes.plot(
      steps, values, color=color, lw=1.8, label=label, marker='o' * few, ms=3.5
    )
  for value in baselines.values():
    axes.axhline(value, color=_GREY, lw=0.9, ls=(0, (4, 3)), zorder=1)
  shown = [v for _, values in curves.values() for v in values]
  _label_lines(axes, baselines, shown)
  if curves:
    axes.legend(frameon=False, loc='best', fontsize=9)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.xaxis.set_major_formatter(lambda step, _: f'{step:,.0f}')
  return figure


def accuracy_by_letter(
  scores: Scores, proteins: Proteins
) -> tuple[np.ndarray, np.ndarray]:
  """Accuracy on each of the 25 letters, NaN where it never came, and counts."""
  letters = proteins.residues[scores.scored]
  count = np.bincount(letters, minlength=len(vocab.RESIDUES))
  correct = np.bincount(
    letters, scores.correct[scores.scored], len(vocab.RESIDUES)
  )
  return np.where(count, correct / np.maximum(count, 1), np.nan), count


def accuracy_per_residue(
  accuracy: np.ndarray, count: np.ndarray, title: str
) -> Figure:
  """Bars of accuracy per letter, most frequent letter first.

  Args:
    accuracy: [25], share of each letter's residues predicted right.
    count: [25], how many residues of each letter were scored.
    title: names the model, split and objective.

  Returns:
    The figure; a tick marks each letter's share of the residues, which is what
    guessing by frequency gets right.
  """
  figure, axes = _new_figure(title, 'residue, by frequency', 'accuracy')
  order = [i for i in np.argsort(-count, kind='stable') if count[i] > 0]
  places = np.arange(len(order))
  share = count[order] / max(1, count.sum())
  axes.bar(places, accuracy[order], 0.72, color=_COLORS[1], label='model')
  axes.hlines(
    share,
    places - 0.42,
    places + 0.42,
    color=_COLORS[2],
    lw=2,
    label='share of the residues (guessing by frequency)',
  )
  axes.set_xticks(places, [vocab.RESIDUES[i] for i in order])
  axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  axes.set_xlim(-0.7, len(order) - 0.3)
  axes.legend(frameon=False, loc='upper right', fontsize=9)
  return figure


def perplexity_by_share(
  scores: Sequence[Scores], proteins: Proteins, title: str
) -> Figure | None:
  """Perplexity of proteins against the share of 8-mers their nearest one in
  train has.

  Args:
    scores: of the split, of a masked model one for each mask.
    proteins: the split.
    title: names model and split.

  Returns:
    The figure: a dot for each protein, and for each group the perplexity of all
    its residues with the 95 % interval over clusters. None if no share is
    known.
  """
  parts = [per_sequence.sums(one, proteins) for one in scores]
  count_P, nats_P = (sum(part[i] for part in parts) for i in (0, 1))
  share_P = np.asarray(proteins.nearest_train_share, np.float64)
  known = np.flatnonzero((count_P > 0) & ~np.isnan(share_P))
  if not len(known):
    return None
  figure, axes = _new_figure(
    title, '% of 8-mers in the most similar train protein', 'perplexity'
  )
  with np.errstate(over='ignore'):
    value_P = np.exp(nats_P[known] / count_P[known])
  axes.plot(share_P[known], value_P, '.', color=_COLORS[0], ms=3, alpha=0.6)
  group_P = np.digitize(share_P, _SHARES, right=True)  # 0 shares nothing
  for group in np.unique(group_P[known]):
    its = known[group_P[known] == group]
    names = [proteins.clusters[p] for p in its]
    low_high = bootstrap.ratio_intervals([nats_P[its]], count_P[its], names)
    middle = np.exp(nats_P[its].sum() / count_P[its].sum())
    bars = None
    if low_high:
      low, high = np.exp(low_high[0])
      bars = [[middle - low], [high - middle]]
    axes.errorbar(
      [share_P[its].mean()],
      [middle],
      yerr=bars,
      fmt='o',
      color=_COLORS[2],
      capsize=3,
      ms=5,
    )
  finite = value_P[np.isfinite(value_P)]
  if len(finite):
    low, high = np.quantile(finite, [0.005, 0.995])
    axes.set_ylim(
      low - 0.3 * (high - low) - 0.5, high + 0.1 * (high - low) + 0.5
    )
  # A square root spreads the small shares, 0 included.
  axes.set_xscale(
    'function', functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square)
  )
  top = share_P[known].max()
  ticks = [x for x in _SHARES if x <= max(top, _SHARES[1])]
  axes.set_xlim(0, 1.05 * max(top, _SHARES[1]))
  axes.set_xticks(ticks, [f'{x:.4g}' for x in 100 * np.array(ticks)])
  axes.legend(
    [axes.lines[0], axes.containers[0]],
    ['a protein', 'all residues of a group of proteins, 95 % interval'],
    frameon=False,
    loc='lower right',
    fontsize=9,
  )
  return figure


def save(figure: Figure, path: os.PathLike | str) -> None:
  """Writes a PNG, whole or not at all."""
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.partial')
  figure.savefig(partial, format='png', dpi=_DPI, facecolor='white')
  os.replace(partial, path)


def _new_figure(title, x_label, y_label):
  figure = Figure(figsize=(7.2, 4.6), layout='constrained')
  axes = figure.add_subplot()
  axes.set_title(title, loc='left', fontsize=11, color=_INK)
  axes.set_xlabel(x_label, color=_INK)
  axes.set_ylabel(y_label, color=_INK)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(_GREY)
  axes.tick_params(colors=_INK)
  axes.grid(axis='y', color=_LIGHT, lw=0.5)
  axes.set_axisbelow(True)
  return figure, axes


def _cycle(colors):
  while True:
    yield from colors


def _curves(records):
  """label -> (steps, values), the best-named perplexity of each split."""
  names = {name for record in records for name in record if '/' in name}
  curves = {}
  for split in sorted({name.rsplit('/', 1)[0] for name in names}):
    for metric, note in (
      ('residue_perplexity', ''),
      ('masked_residue_perplexity', ' (masked residues)'),
      ('perplexity', ' (EOS included)'),
    ):
      points = {
        record['step']: record[f'{split}/{metric}']
        for record in records
        if record.get(f'{split}/{metric}') is not None
      }
      if points:
        steps = sorted(points)  # a step logged twice keeps its last value
        curves[split + note] = steps, [points[step] for step in steps]
        break
  return curves


def _label_lines(axes, lines, shown):
  """Names each line right of the axes, labels pushed apart if they touch."""
  values = [*lines.values(), *shown]
  finite = [value for value in values if np.isfinite(value)]
  if not finite:
    return
  # A first step far above all baselines would flatten what matters.
  top = min(max(finite), 1.25 * max([*lines.values(), min(finite)]))
  margin = 0.05 * (top - min(finite)) or 0.5
  axes.set_ylim(min(finite) - margin, top + margin)
  low, high = axes.get_ylim()
  names = sorted(lines, key=lines.get)
  places = _spread([lines[name] for name in names], 0.045 * (high - low))
  transform = axes.get_yaxis_transform()  # x in widths of the axes, y in data
  for name, place in zip(names, places, strict=True):
    axes.plot(
      (1.005, 1.075),
      (lines[name], place),
      color=_GREY,
      lw=0.6,
      transform=transform,
      clip_on=False,
    )
    axes.text(
      1.085,
      place,
      f'{name} {lines[name]:.2f}',
      va='center',
      fontsize=9,
      color=_GREY,
      transform=transform,
    )


def _spread(values, gap):
  """Places of labels: at least a gap apart, moved as little as can be.

  Ascending values. Least squares under the constraint: labels that would touch
  form a block, centred on the mean of what they name.
  """
  blocks = []  # [sum of value - index * gap, number of labels]
  for index, value in enumerate(values):
    blocks.append([value - index * gap, 1])
    while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
      total, number = blocks.pop()
      blocks[-1][0] += total
      blocks[-1][1] += number
  starts = [_mean(block) for block in blocks for _ in range(block[1])]
  return [start + index * gap for index, start in enumerate(starts)]


def _mean(block):
  return block[0] / block[1]
