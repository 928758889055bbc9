"""95 % intervals by a bootstrap over clusters of proteins.

Proteins of a cluster resemble each other, so they are no independent draws:
whole clusters are drawn with replacement, and a ratio of sums is formed anew
from each draw. All draws come from one fixed seed.

Axes: P proteins, C clusters, Q sums, R draws.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993; Field and
Welsh, Bootstrapping clustered data, 2007.
"""

from collections.abc import Sequence

import numpy as np

NUM_DRAWS = 1_000
LEVEL = 0.95
_COUNTS_AT_ONCE = 2**24  # draws x clusters, to bound the memory


def draw_sums(
  sums_PQ: np.ndarray,
  clusters: Sequence[str],
  num_draws: int = NUM_DRAWS,
  seed: int = 0,
) -> np.ndarray:
  """Sums over proteins whose clusters are drawn with replacement.

  Args:
    sums_PQ: what is summed, of each protein.
    clusters: [P] names; '' is a cluster of its own.
    num_draws: R.
    seed: of the draws.

  Returns:
    [R, Q] float64.
  """
  _, cluster_P = np.unique(
    [name or f'\0{p}' for p, name in enumerate(clusters)], return_inverse=True
  )
  num_clusters = int(cluster_P.max(initial=-1)) + 1
  sums_CQ = np.stack(
    [
      np.bincount(cluster_P, sums_P, num_clusters)
      for sums_P in np.asarray(sums_PQ, np.float64).T
    ],
    axis=-1,
  )
  generator = np.random.default_rng(seed)
  even_C = np.full(num_clusters, 1 / max(num_clusters, 1))
  at_once = max(1, _COUNTS_AT_ONCE // max(num_clusters, 1))
  parts = [
    generator.multinomial(
      num_clusters, even_C, size=min(at_once, num_draws - start)
    )
    @ sums_CQ
    for start in range(0, num_draws, at_once)
  ]
  return np.concatenate(parts)


def ratio_intervals(
  numerators: Sequence[np.ndarray],
  denominator_P: np.ndarray,
  clusters: Sequence[str],
  num_draws: int = NUM_DRAWS,
  seed: int = 0,
) -> list[tuple[float, float]] | None:
  """95 % intervals of sum(numerator) / sum(denominator), by percentiles.

  Args:
    numerators: [P] each, such as the nats of each protein.
    denominator_P: such as its residues that were scored; proteins of 0 are
      left out.
    clusters: [P] names; '' is a cluster of its own.
    num_draws: of the bootstrap.
    seed: of the draws.

  Returns:
    (low, high) of each, or None with fewer than two clusters.

  Example:
    ((low, high),) = ratio_intervals([nats_P], residues_P, proteins.clusters)
  """
  kept_P = np.asarray(denominator_P) > 0
  names = [c for c, kept in zip(clusters, kept_P, strict=True) if kept]
  if len(set(names)) < 2 and names.count('') < 2:
    return None
  sums_PQ = np.stack([denominator_P, *numerators], axis=-1)[kept_P]
  denominator_R, *numerators_R = draw_sums(sums_PQ, names, num_draws, seed).T
  return [interval(x_R / denominator_R) for x_R in numerators_R]


def interval(values_R: np.ndarray) -> tuple[float, float]:
  """The middle 95 % of draws."""
  tail = (1 - LEVEL) / 2
  low, high = np.quantile(values_R, [tail, 1 - tail])
  return float(low), float(high)
