"""Random matrices: distribution, orthogonality, one per head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import projections


def haar_matrices(rng, num_matrices, depth):
  shape = (num_matrices, depth, depth)
  return projections.haar_matrices(jax.random.normal(rng, shape))


def test_haar_matrices_are_orthogonal(rng):
  matrices = haar_matrices(rng, 5, 7)
  gram = jnp.einsum('rij,rkj->rik', matrices, matrices)
  np.testing.assert_allclose(gram, np.tile(np.eye(7), (5, 1, 1)), atol=2e-6)


def test_qr_signs_are_fixed(rng):
  """6. Without the sign fix the mean diagonal is biased."""
  matrices = np.asarray(haar_matrices(rng, 20_000, 4))
  # Entries of a Haar matrix have mean 0 and variance 1 / 4.
  assert np.abs(matrices.mean(axis=0)).max() < 5 * 0.5 / np.sqrt(20_000)


def test_large_haar_matrices_are_orthogonal_to_rounding(rng):
  matrices = haar_matrices(rng, 2, 128)
  gram = jnp.einsum('rij,rkj->rik', matrices, matrices)
  np.testing.assert_allclose(gram, np.tile(np.eye(128), (2, 1, 1)), atol=5e-6)


def test_a_draw_calls_no_routine_that_waits_for_the_thread_pool(rng):
  draw = jax.jit(
    lambda rng: projections.head_projections(rng, 2, 16, 8, orthogonal=True)
  )
  assert 'lapack' not in draw.lower(rng).compile().as_text()


@pytest.mark.parametrize('nb_features', [1, 8, 20])
def test_rows_are_orthogonal_in_blocks(nb_features, rng):
  (matrix,) = projections.head_projections(
    rng, 1, nb_features, 8, orthogonal=True
  )
  assert matrix.shape == (nb_features, 8)
  for start in range(0, nb_features, 8):
    block = matrix[start : start + 8]
    gram = np.asarray(block @ block.T)
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=2e-5)


def test_norms_are_those_of_gaussian_vectors(rng):
  matrix = projections.head_projections(rng, 1, 40_000, 4, orthogonal=True)
  squares = np.sum(np.square(matrix), axis=-1)  # chi^2 with 4 degrees
  assert abs(squares.mean() - 4) < 5 * np.sqrt(8 / 40_000)
  assert abs(squares.var() - 8) < 0.6


def test_regular_norms_are_the_root_of_the_width(rng):
  matrix = projections.head_projections(
    rng, 1, 20, 8, orthogonal=True, ortho_scaling=1
  )
  np.testing.assert_allclose(np.linalg.norm(matrix, axis=-1), 8**0.5, rtol=1e-5)


@pytest.mark.parametrize('orthogonal', [True, False])
def test_heads_draw_independent_matrices(orthogonal, rng):
  matrices = projections.head_projections(rng, 64, 16, 8, orthogonal=orthogonal)
  rows = np.asarray(matrices).reshape(64, -1)
  correlation = np.corrcoef(rows) - np.eye(64)
  assert np.abs(correlation).max() < 5 / np.sqrt(rows.shape[1])


def test_draw_does_not_depend_on_precision(rng):
  def draw():
    return projections.head_projections(rng, 1, 8, 4, orthogonal=True)

  narrow = draw()
  with jax.enable_x64(True):
    np.testing.assert_array_equal(narrow, draw())


def test_fixed_matrices_are_those_of_seed_and_layer():
  fixed = projections.fixed_head_projections(3, 1, 2, 8, 4, orthogonal=True)
  rng = jax.random.fold_in(jax.random.key(3), 1)
  drawn = projections.head_projections(rng, 2, 8, 4, orthogonal=True)
  np.testing.assert_allclose(fixed, drawn, rtol=1e-6)
