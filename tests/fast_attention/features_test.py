"""Feature maps: definitions, unbiasedness, variance, range."""

import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import features, kernels, projections

NUM_DRAWS = 8_000


def full(result):
  """Features with their scale undone."""
  return result.features_HBCM * jnp.exp(result.log_scale_HBC)[..., None]


def estimates(kind, x, y, rng, *, num_rows, orthogonal):
  """Many estimates of exp(x.y / sqrt(K)), each of its own random matrix."""
  feature_map = features.FeatureMap(kind, renormalize=False)
  # Draws are heads: each has its own matrix.
  rows = features.Rows(
    projections.head_projections(
      rng, NUM_DRAWS, num_rows, x.size, orthogonal=orthogonal
    )
  )
  x, y = (jnp.tile(z, (NUM_DRAWS, 1, 1, 1)) for z in (x, y))
  phi_x = full(feature_map.query_features(x, rows))
  phi_y = full(feature_map.key_features(y, rows))
  return np.asarray(jnp.sum(phi_x * phi_y, axis=-1)).ravel()


@pytest.fixture
def xy(normal):
  return 0.8 * normal(2, 4)


@pytest.mark.parametrize('kind', ['positive', 'trigonometric'])
@pytest.mark.parametrize('orthogonal', [True, False])
def test_softmax_features_are_unbiased(kind, orthogonal, xy, rng):
  x, y = xy
  draws = estimates(kind, x, y, rng, num_rows=8, orthogonal=orthogonal)
  error = draws.mean() - np.exp(x @ y / 2)
  assert abs(error) < 4 * draws.std() / np.sqrt(NUM_DRAWS)


def test_variance_of_positive_features(xy, rng):
  """(exp(|x + y|^2) - 1) / M, relative to the square of the mean."""
  x, y = xy / 2
  draws = estimates('positive', x, y, rng, num_rows=8, orthogonal=False)
  expected = (np.exp(np.sum((x + y) ** 2) / 2) - 1) / 8
  relative = draws.var() / np.exp(x @ y / 2) ** 2
  assert relative == pytest.approx(expected, rel=0.1)


def test_orthogonal_rows_have_less_variance(rng):
  x = jnp.full(4, 0.5)
  draws = [
    estimates('positive', x, x, rng, num_rows=4, orthogonal=orthogonal)
    for orthogonal in (True, False)
  ]
  assert draws[0].var() < 0.9 * draws[1].var()


@pytest.mark.parametrize('is_query', [True, False])
def test_positive_features_are_the_textbook_ones(is_query, normal):
  x = normal(2, 3, 5, 16)
  projection = normal(2, 7, 16)
  feature_map = features.FeatureMap('positive', renormalize=False)
  name = 'query_features' if is_query else 'key_features'
  actual = full(getattr(feature_map, name)(x, features.Rows(projection)))
  x = x / 16**0.25
  logits = jnp.einsum('hbck,hmk->hbcm', x, projection)
  expected = jnp.exp(logits - jnp.sum(x**2, -1, keepdims=True) / 2)
  # M^-1/2 of both sides is with the query.
  expected = expected / 7 if is_query else expected
  np.testing.assert_allclose(actual, expected, rtol=2e-5)


def test_largest_query_feature_is_one(normal):
  x = 30 * normal(1, 1, 9, 8)
  feature_map = features.FeatureMap('positive')
  phi = feature_map.query_features(x, features.Rows(normal(1, 6, 8)))
  np.testing.assert_array_equal(jnp.max(phi.features_HBCM, axis=-1), 1)


@pytest.mark.parametrize('scale', [1.0, -1.0])
def test_stabilizer_is_added_after_scaling(scale, normal):
  x = scale * normal(1, 1, 9, 8)
  rows = features.Rows(normal(1, 6, 8))
  plain, stabilised = (
    features.FeatureMap('positive', numerical_stabilizer=s).key_features(
      x, rows
    )
    for s in (0.0, 0.5)
  )
  np.testing.assert_allclose(
    stabilised.features_HBCM, plain.features_HBCM + 0.5, rtol=1e-6
  )


def test_exponential_kernel_agrees_with_its_definition(normal):
  x = normal(1, 1, 9, 8)
  feature_map = features.FeatureMap(
    'kernel', kernel_fn=kernels.jexp, kernel_epsilon=0.1
  )
  actual = full(feature_map.key_features(x, None))
  np.testing.assert_allclose(actual, jnp.exp(x) + 0.1, rtol=1e-5)


def test_exponential_kernel_does_not_overflow():
  x = jnp.array([[[[1e4, -1e4], [-1e4, -1e4]]]])
  feature_map = features.FeatureMap(
    'kernel', kernel_fn=kernels.jexp, kernel_epsilon=0.1
  )
  phi = feature_map.key_features(x, None)
  assert np.all(np.isfinite(phi.features_HBCM))
  np.testing.assert_allclose(phi.features_HBCM, [[[[1, 0], [1, 1]]]])


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_features_of_narrow_inputs_are_float32(dtype, normal):
  x = normal(1, 1, 2, 8).astype(dtype)
  phi = features.FeatureMap('positive').key_features(
    x, features.Rows(normal(1, 6, 8))
  )
  assert phi.features_HBCM.dtype == phi.log_scale_HBC.dtype == jnp.float32
