"""Which amino acids a model holds for alike, beside BLOSUM62.

Axes: A, B the 20 standard amino acids, in the order of vocab; N layers,
H heads, G the heads of all layers, L length, V vocabulary, D model width.
"""

from collections.abc import Iterable

import numpy as np

from protein_lm import vocab

NUM_LETTERS = len(vocab.STANDARD_RESIDUES)

# Henikoff and Henikoff 1992, half-bits: a row for each of ACDEFGHIKLMNPQRSTVWY.
_BLOSUM62 = """
 4  0 -2 -1 -2  0 -2 -1 -1 -1 -1 -2 -1 -1 -1  1  0  0 -3 -2
 0  9 -3 -4 -2 -3 -3 -1 -3 -1 -1 -3 -3 -3 -3 -1 -1 -1 -2 -2
-2 -3  6  2 -3 -1 -1 -3 -1 -4 -3  1 -1  0 -2  0 -1 -3 -4 -3
-1 -4  2  5 -3 -2  0 -3  1 -3 -2  0 -1  2  0  0 -1 -2 -3 -2
-2 -2 -3 -3  6 -3 -1  0 -3  0  0 -3 -4 -3 -3 -2 -2 -1  1  3
 0 -3 -1 -2 -3  6 -2 -4 -2 -4 -3  0 -2 -2 -2  0 -2 -3 -2 -3
-2 -3 -1  0 -1 -2  8 -3 -1 -3 -2  1 -2  0  0 -1 -2 -3 -2  2
-1 -1 -3 -3  0 -4 -3  4 -3  2  1 -3 -3 -3 -3 -2 -1  3 -3 -1
-1 -3 -1  1 -3 -2 -1 -3  5 -2 -1  0 -1  1  2  0 -1 -2 -3 -2
-1 -1 -4 -3  0 -4 -3  2 -2  4  2 -3 -3 -2 -2 -2 -1  1 -2 -1
-1 -1 -3 -2  0 -3 -2  1 -1  2  5 -2 -2  0 -1 -1 -1  1 -1 -1
-2 -3  1  0 -3  0  1 -3  0 -3 -2  6 -2  0  0  1  0 -3 -4 -2
-1 -3 -1 -1 -4 -2 -2 -3 -1 -3 -2 -2  7 -1 -2 -1 -1 -2 -4 -3
-1 -3  0  2 -3 -2  0 -3  1 -2  0  0 -1  5  1  0 -1 -2 -2 -1
-1 -3 -2  0 -3 -2  0 -3  2 -2 -1  0 -2  1  5 -1 -1 -3 -3 -2
 1 -1  0  0 -2  0 -1 -2  0 -2 -1  1 -1  0 -1  4  1 -2 -3 -2
 0 -1 -1 -1 -2 -2 -2 -1 -1 -1 -1  0 -1 -1 -1  1  5  0 -2 -2
 0 -1 -3 -2 -1 -3 -3  3 -2  1  1 -3 -2 -2 -3 -2  0  4 -3 -1
-3 -2 -4 -3  1 -2 -2 -3 -3 -2 -1 -4 -4 -2 -3 -3 -2 -3 11  2
-2 -2 -3 -2  3 -3  2 -1 -2 -1 -1 -2 -3 -1 -2 -2 -2 -1  2  7
"""
BLOSUM62_AB = np.array(_BLOSUM62.split(), int).reshape(NUM_LETTERS, NUM_LETTERS)


def from_attention(
  maps: Iterable[tuple[np.ndarray, np.ndarray]], causal: bool
) -> np.ndarray:
  """How alike the letters are to the heads that attend to them.

  For each head, its attention to residues of a letter over what attention
  spread evenly over all visible keys would give; two letters are as alike as
  these numbers correlate (Pearson) over the heads of all layers: arXiv
  2006.15222, 4.2, as in the figure of arXiv 2009.14794, appendix C.4. A
  position's attention to itself is left out.

  Args:
    maps: for each protein (residues [L] ids of letters, weights [N, H, L, L]),
      queries before keys, of the residues alone.
    causal: whether a query sees only what stands before it.

  Returns:
    [A, B] float64 from -1 to 1; NaN for letters that never came.
  """
  attended_GA, evenly_GA = 0.0, 0.0
  for residues_L, weights_NHLL in maps:
    L = len(residues_L)
    visible_LL = ~np.eye(L, dtype=bool)
    if causal:
      visible_LL &= np.tri(L, dtype=bool)
    is_letter_LA = np.asarray(residues_L)[:, None] == np.arange(NUM_LETTERS)
    weights_GLL = np.asarray(weights_NHLL).reshape(-1, L, L) * visible_LL
    total_GL = weights_GLL.sum(2)
    evenly_LL = visible_LL / np.maximum(visible_LL.sum(1, keepdims=True), 1)
    attended_GA = attended_GA + weights_GLL.sum(1) @ is_letter_LA
    evenly_GA = evenly_GA + total_GL @ evenly_LL @ is_letter_LA
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio_GA = attended_GA / evenly_GA
    ratio_GA = ratio_GA - ratio_GA.mean(0)
    ratio_GA /= np.linalg.norm(ratio_GA, axis=0)
  return ratio_GA.T @ ratio_GA


def from_output(model) -> np.ndarray:
  """Cosines between the output vectors of the letters, [A, B].

  The vectors are rows of the output layer (of the embedding where both are
  tied), less their mean over the letters.
  """
  if model.tie_embeddings:
    vectors_VD = np.asarray(model.embed.embedding[...], np.float64)
  else:
    linear = getattr(model.output, 'linear', model.output)  # of a dense head
    vectors_VD = np.asarray(linear.kernel[...], np.float64).T
  vectors_AD = vectors_VD[:NUM_LETTERS]
  vectors_AD = vectors_AD - vectors_AD.mean(0)
  vectors_AD /= np.linalg.norm(vectors_AD, axis=1, keepdims=True)
  return vectors_AD @ vectors_AD.T


def correlations(similarity_AB: np.ndarray) -> tuple[float, float]:
  """(Pearson's, Spearman's) correlation with BLOSUM62 over the 190 pairs.

  The diagonal is left out; so is a pair that is NaN.
  """
  from scipy import stats

  pairs = np.triu_indices(NUM_LETTERS, 1)
  ours, blosum = similarity_AB[pairs], BLOSUM62_AB[pairs]
  known = np.isfinite(ours)
  if known.sum() < 3 or np.ptp(ours[known]) == 0:
    return float('nan'), float('nan')
  return (
    float(stats.pearsonr(ours[known], blosum[known]).statistic),
    float(stats.spearmanr(ours[known], blosum[known]).statistic),
  )
