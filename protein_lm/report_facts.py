"""What a report shows of a model: numbers only, no drawing.

Axes: T residues of a split, A the 20 standard amino acids.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from protein_lm import vocab
from protein_lm.baselines import Baseline
from protein_lm.proteins import Proteins
from protein_lm.scores import Scores, baseline_scores

NUM_LETTERS = len(vocab.STANDARD_RESIDUES)
LENGTH_EDGES = (1, 50, 100, 200, 300, 400, 600, 800, 1200, 2000, 4000, 10**9)
# Without the first residue, nearly always M: it would flatten the others.
POSITION_EDGES = (2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000, 10**9)
MIN_RESIDUES = 200  # of a bin: fewer are drawn as noise


@dataclasses.dataclass(frozen=True)
class Curve:
  """Perplexity by bins.

  Attributes:
    labels: of the bins.
    counts: residues scored in each.
    values: name -> perplexity in each bin; the model's name comes first.
  """

  labels: list[str]
  counts: np.ndarray
  values: dict[str, np.ndarray]


def by_length(
  scores: Scores, proteins: Proteins, fitted: Sequence[Baseline]
) -> Curve:
  """Perplexity by the length of the protein that a residue is of."""
  length_T = np.repeat(proteins.lengths, proteins.lengths)
  return _curve(length_T, LENGTH_EDGES, scores, proteins, fitted)


def by_position(
  scores: Scores, proteins: Proteins, fitted: Sequence[Baseline]
) -> Curve:
  """Perplexity by the residue's number from the N-terminus, from the second."""
  start_T = np.repeat(proteins.offsets[:-1], proteins.lengths)
  position_T = np.arange(len(proteins.residues)) - start_T + 1
  return _curve(position_T, POSITION_EDGES, scores, proteins, fitted)


def _curve(value_T, edges, scores, proteins, fitted):
  bin_T = np.searchsorted(edges, value_T, side='right') - 1
  labels = [
    f'{low:,}' if high == low + 1 else f'{low:,}-{high - 1:,}'
    for low, high in zip(edges[:-2], edges[1:-1], strict=True)
  ] + [f'{edges[-2]:,} and more']
  scored_T = scores.scored & (bin_T >= 0)
  bin_T = bin_T[scored_T]
  counts = np.bincount(bin_T, minlength=len(labels))
  is_shown = counts >= min(MIN_RESIDUES, max(counts.max(initial=1), 1))

  def perplexities(nll_T):
    sums = np.bincount(bin_T, nll_T[scored_T].astype(np.float64), len(labels))
    return np.exp(sums[is_shown] / counts[is_shown])

  values = {'model': perplexities(scores.nll)}
  for baseline in fitted:
    its = baseline_scores(baseline, proteins, scores)
    values[baseline.name] = perplexities(its.nll)
  shown = [label for label, x in zip(labels, is_shown, strict=True) if x]
  return Curve(shown, counts[is_shown], values)


def by_residue(
  scores: Scores, proteins: Proteins
) -> tuple[np.ndarray, np.ndarray]:
  """Perplexity on each amino acid (NaN if it never came), and counts."""
  letter_T = proteins.residues[scores.scored]
  is_standard_T = letter_T < NUM_LETTERS
  letter_T = letter_T[is_standard_T]
  nll_T = scores.nll[scores.scored][is_standard_T].astype(np.float64)
  count_A = np.bincount(letter_T, minlength=NUM_LETTERS)
  total_A = np.bincount(letter_T, nll_T, NUM_LETTERS)
  with np.errstate(invalid='ignore'):
    return np.exp(total_A / np.where(count_A, count_A, np.nan)), count_A


def confusion(scores: Scores, proteins: Proteins) -> np.ndarray:
  """How often each amino acid (row) was predicted as each (column).

  Returns:
    [A, A] float64, shares of the row; NaN where it never came. A row sums to
    less than 1 by the share that was predicted as another token.
  """
  truth_T = proteins.residues[scores.scored]
  predicted_T = scores.predicted[scores.scored]
  total_A = np.bincount(truth_T, minlength=NUM_LETTERS)[:NUM_LETTERS]
  is_in_T = (truth_T < NUM_LETTERS) & (predicted_T < NUM_LETTERS)
  pair_T = truth_T[is_in_T].astype(int) * NUM_LETTERS + predicted_T[is_in_T]
  count_AA = np.bincount(pair_T, minlength=NUM_LETTERS**2)
  count_AA = count_AA.reshape(NUM_LETTERS, NUM_LETTERS)
  return count_AA / np.where(total_A, total_A, np.nan)[:, None]


def choose_proteins(
  proteins: Proteins, num_proteins: int, max_residues: int, row_residues: int
) -> list[int]:
  """Proteins for attention: the longest that fit, cluster by cluster.

  Args:
    proteins: a split.
    num_proteins: how many at most, one of a cluster.
    max_residues: no longer than this; where all are, the shortest is taken.
    row_residues: that fit into a row; longer ones are never taken.

  Returns:
    Their numbers, longest first.
  """
  order = np.argsort(-proteins.lengths, kind='stable')
  chosen = {}
  for p in order:
    if 0 < proteins.lengths[p] <= min(max_residues, row_residues):
      chosen.setdefault(proteins.clusters[p], int(p))
    if len(chosen) == num_proteins:
      break
  shortest = int(order[-1])
  if not chosen and 0 < proteins.lengths[shortest] <= row_residues:
    return [shortest]
  return list(chosen.values())


def letters_of(proteins: Proteins, p: int) -> str:
  """The sequence of the p-th protein."""
  return vocab.decode(
    proteins.residues[proteins.offsets[p] : proteins.offsets[p + 1]]
  )


def headline(rows: Sequence[dict]) -> list[tuple[str, ...]]:
  """The rows of an evaluation for a table: who, where, how well."""
  table = []
  for row in rows:
    prefix = 'masked_' if row['objective'] == 'masked' else ''
    name = row['name']
    if row['step'] is not None:
      name += f', step {row["step"]:,}, {row["attention"]} attention'
    cells = [
      (row.get(prefix + 'residue_perplexity'), '.3f'),
      (row.get(prefix + 'bits_per_residue'), '.3f'),
      (row.get(prefix + 'accuracy'), '.2%'),
      (row.get('num_residues'), ',d'),
    ]
    part = '' if row['slice'] == 'all' else f' ({row["slice"]})'
    table.append(
      (
        row['split'] + part,
        row['objective'],
        name,
        *('' if x is None else f'{x:{form}}' for x, form in cells),
      )
    )
  return table
