"""Similarity of amino acids against hand-made attention and embeddings."""

import numpy as np
import pytest

from protein_lm import similarity, vocab
from protein_lm.similarity import BLOSUM62_AB


def index(letters):
  return [vocab.STANDARD_RESIDUES.index(letter) for letter in letters]


def test_blosum62_is_symmetric_and_has_its_known_entries():
  assert np.array_equal(BLOSUM62_AB, BLOSUM62_AB.T)
  assert BLOSUM62_AB[*index('WW')] == 11 and BLOSUM62_AB[*index('DE')] == 2
  assert BLOSUM62_AB[*index('WC')] == -2 and BLOSUM62_AB[*index('IV')] == 3
  assert BLOSUM62_AB.trace() == 116


@pytest.mark.parametrize('causal', [False, True])
def test_letters_that_heads_attend_to_together_are_alike(causal):
  rng = np.random.default_rng(0)
  residues_L = rng.integers(0, 20, 300)
  # Head g likes letters of one of two groups, each to its own degree.
  liking_GA = np.ones((6, 20))
  liking_GA[:, :10] = rng.uniform(0.5, 2, (6, 1))
  liking_GA[:, 10:] = rng.uniform(0.5, 2, (6, 1))
  weights_GLL = np.repeat(liking_GA[:, residues_L][:, None], 300, axis=1)
  if causal:
    weights_GLL = weights_GLL * np.tri(300)
  weights_GLL /= weights_GLL.sum(2, keepdims=True)
  maps = [(residues_L, weights_GLL.reshape(2, 3, 300, 300))]
  similarity_AB = similarity.from_attention(maps, causal)
  assert similarity_AB[:10, :10].min() > 0.95
  assert similarity_AB[10:, 10:].min() > 0.95
  assert similarity_AB[:10, 10:].max() < 0.95


def test_a_letter_that_never_came_is_unknown():
  weights = np.random.default_rng(0).uniform(size=(1, 4, 40, 40))
  maps = [(np.arange(40) % 19, weights)]
  similarity_AB = similarity.from_attention(maps, False)
  assert np.isnan(similarity_AB[19]).all()
  assert np.isfinite(similarity_AB[:19, :19]).all()
  assert np.isfinite(similarity.correlations(similarity_AB)).all()


def test_blosum62_correlates_with_itself():
  assert similarity.correlations(BLOSUM62_AB * 2.0) == pytest.approx((1, 1))


def test_what_is_constant_correlates_with_nothing():
  assert np.isnan(similarity.correlations(np.ones((20, 20)))).all()
