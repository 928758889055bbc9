"""What bench_attention.py shows: table, CSV, figure, summary."""

import csv
import math
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from bench_attention_case import FAST, SCORES, Result
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

_STYLES = {  # color, dashes
  'softmax': ('#1f5fa8', '-'),
  'softmax_scan_1': ('#1f5fa8', '--'),
  'softmax_scan_16': ('#1f5fa8', ':'),
  'relu': ('#2f7d4f', '-'),
  'relu_scan_1': ('#2f7d4f', '--'),
  'relu_scan_16': ('#2f7d4f', ':'),
  'exact': ('#222222', '-'),
  'torch_sdpa': ('#c4551d', '-'),
  'performer_pytorch': ('#a0529c', '-'),
  'performer_pytorch_relu': ('#a0529c', '--'),
}


_TABLE = {  # column: head, format
  'kind': ('kind', '{:<22}'),
  'causal': ('causal', '{!s:<6}'),
  'pass': ('pass', '{:<16}'),
  'length': ('L', '{:>6}'),
  'median_ms': ('median ms', '{:>10}'),
  'min_ms': ('min ms', '{:>10}'),
  'repeats': ('runs', '{:>4}'),
  'gflops': ('GFLOP/s', '{:>8}'),
  'gemm_fraction': ('of GEMM', '{:>7}'),
  'temp_over_qkv': ('temp/qkv', '{:>8}'),
  'note': ('note', '{}'),
}


def table_head() -> str:
  return _table_line({name: head for name, (head, _) in _TABLE.items()})


def table_line(result: Result, gemm_gflops: float) -> str:
  return _table_line(result.row(gemm_gflops))


def _table_line(row):
  cells = (form.format(row[name]) for name, (_, form) in _TABLE.items())
  return '  '.join(cells).rstrip()


def write_results(
  out_dir: pathlib.Path, results: Sequence[Result], gemm_gflops: float
) -> None:
  """Writes attention.csv, whole or not at all."""
  rows = [result.row(gemm_gflops) for result in results]

  def write(partial):
    with partial.open('w', newline='') as file:
      writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
      writer.writeheader()
      writer.writerows(rows)

  _write_whole(out_dir / 'attention.csv', write)


def write_figure(
  out_dir: pathlib.Path, results: Sequence[Result], title: str
) -> None:
  """Writes attention.png, whole or not at all."""
  drawn = figure(results, title)
  _write_whole(
    out_dir / 'attention.png',
    lambda partial: drawn.savefig(partial, format='png', dpi=150),
  )


def _write_whole(path, write):
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.partial')
  write(partial)
  os.replace(partial, path)


def group_name(group: tuple[bool, str]) -> str:
  causal, pass_name = group
  what = 'causal' if causal else 'bidirectional'
  return f'{what} {pass_name.replace("_", " and ")}'


def curves(
  results: Sequence[Result], causal: bool, pass_name: str
) -> dict[str, dict[int, float]]:
  """kind -> length -> median seconds, of the rows that were run."""
  found = {}
  for result in results:
    case = result.case
    if result.seconds and case.group == (causal, pass_name):
      curve = found.setdefault(case.kind, {})
      curve[case.length] = statistics.median(result.seconds)
  return found


def crossover(
  fast: Mapping[int, float], other: Mapping[int, float]
) -> float | None:
  """The length from which `fast` takes less time, to the longest in common.

  Args:
    fast: length -> seconds.
    other: length -> seconds, of what it is compared with.

  Returns:
    Where the curves, interpolated between logarithms, cross last; None if
    `fast` is the faster one at every length, or the slower one at the longest.
  """
  lengths = sorted(set(fast) & set(other))
  gaps = [math.log(fast[length] / other[length]) for length in lengths]
  if not gaps or gaps[-1] >= 0:
    return None
  for i in reversed(range(len(gaps) - 1)):
    if gaps[i] >= 0:
      part = gaps[i] / (gaps[i] - gaps[i + 1])
      return lengths[i] * (lengths[i + 1] / lengths[i]) ** part
  return None


def figure(results: Sequence[Result], title: str) -> Figure:
  """Milliseconds against length, a panel for causal and one for the other.

  A vertical line marks where the softmax row becomes faster than exact
  attention, of JAX and of PyTorch.
  """
  passes = {result.case.pass_name for result in results if result.seconds}
  pass_name = max(passes, default='forward')  # with backward, if measured
  panels = [
    (causal, found)
    for causal in (True, False)
    if (found := curves(results, causal, pass_name))
  ]
  figure = Figure(figsize=(1.6 + 5.6 * len(panels), 5.2), layout='constrained')
  figure.suptitle(title, x=0.01, ha='left', fontsize=11)
  if not panels:
    return figure
  all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axes, (causal, found) in zip(all_axes, panels, strict=True):
    _panel(axes, found)
    axes.set_title(group_name((causal, pass_name)), loc='left', fontsize=10)
  all_axes[0].set_ylabel('milliseconds')
  low, high = all_axes[0].get_ylim()
  all_axes[0].set_ylim(low * (low / high) ** 0.25, high)  # for the texts
  lines = {}
  for axes in all_axes:
    for line, kind in zip(*axes.get_legend_handles_labels(), strict=True):
      lines.setdefault(kind, line)
  figure.legend(
    lines.values(),
    lines.keys(),
    loc='outside right upper',
    frameon=False,
    fontsize=9,
  )
  return figure


def _panel(axes, found):
  lengths = sorted({length for curve in found.values() for length in curve})
  for kind, curve in found.items():
    color, dashes = _STYLES[kind]
    axes.plot(
      list(curve),
      [seconds * 1e3 for seconds in curve.values()],
      color=color,
      ls=dashes,
      lw=2.2 if kind in FAST else 1.4,
      marker='o',
      ms=3.5,
      label=kind,
    )
  axes.set_xscale('log', base=2)
  axes.set_yscale('log')
  axes.set_xlabel('length L')
  axes.set_xticks(lengths, [f'{length:,}' for length in lengths], fontsize=8)
  axes.tick_params(axis='x', rotation=30)
  axes.xaxis.set_minor_locator(NullLocator())
  axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:,g}'))
  axes.grid(which='major', color='#e4e4e4', lw=0.7)
  axes.spines[['top', 'right']].set_visible(False)
  middle = math.sqrt(lengths[0] * lengths[-1])
  for i, other in enumerate(SCORES):
    length = crossover(found.get('softmax', {}), found.get(other, {}))
    if length is None:
      continue
    color = _STYLES[other][0]
    axes.axvline(length, color=color, lw=1, ls=(0, (2, 2)), zorder=1)
    is_left = length < middle  # the text goes where there is room
    axes.annotate(
      f'softmax = {other}\nat L = {length:,.0f}',
      (length, 0.02 + 0.1 * i),
      xycoords=('data', 'axes fraction'),
      xytext=(4 if is_left else -4, 0),
      textcoords='offset points',
      ha='left' if is_left else 'right',
      fontsize=8,
      color=color,
    )


def summary(results: Sequence[Result], gemm_gflops: float) -> list[str]:
  """How the softmax and relu rows compare with the others, and grow.

  "5.47 at 1024, from 496": that many times as fast at the largest length of
  both, and the faster one from there on; "from" is left out where it was the
  faster one at every length, or is the slower one at the largest.
  """
  groups = dict.fromkeys(
    result.case.group for result in results if result.seconds
  )
  lines = []
  for group in groups:
    found = curves(results, *group)
    fast = [kind for kind in FAST if kind in found]
    if not fast:
      continue
    cells = [f'{kind} is faster, times' for kind in fast]
    lines += ['', _summary_line(group_name(group), cells)]
    for other in (other for other in found if other not in FAST):
      cells = [_speed_up(found[kind], found[other]) for kind in fast]
      lines.append(_summary_line(f'  than {other}', cells))
    cells = [_growth(found[kind]) for kind in fast]
    lines.append(_summary_line('  time, growth from 8192', cells))
    last = {
      result.case.kind: f'{result.row(gemm_gflops)["gemm_fraction"]:.2f} at '
      f'{result.case.length}'
      for result in results
      if result.case.group == group and result.seconds
    }
    cells = [last[kind] for kind in fast]
    lines.append(_summary_line('  GFLOP/s, of GEMM', cells))
  return lines


def _summary_line(head, cells):
  return f'{head:<36}' + ''.join(f'{cell:<28}' for cell in cells).rstrip()


def _speed_up(fast, slow):
  common = set(fast) & set(slow)
  if not common:
    return '-'
  length = max(common)
  cross = crossover(fast, slow)
  start = '' if cross is None else f', from {cross:.0f}'
  return f'{slow[length] / fast[length]:.2f} at {length}{start}'


def _growth(curve):
  last = max(curve)
  if 8192 not in curve or last == 8192:
    return '-'
  return f'{curve[last] / curve[8192]:.2f} at {last} ({last / 8192:g} = linear)'
