"""Feature maps of smaller variance: unbiased, their variance, their error.

Axes: R draws of the matrix, P pairs, N positions, J heads, K width, M features.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import lower_variance, projections

ALL = lower_variance.FEATURES_TYPES
WITH_STATISTICS = [n for n in ALL if lower_variance.needs_statistics(n)]
ADERF = [n for n in ALL if n.endswith('aderf')]
WITH_COEFFICIENT = [*ADERF, 'favor_plus_plus', 'centred_favor_plus_plus']

measure = jax.jit(lower_variance.measure)
reshaping = jax.jit(lower_variance.reshaping, static_argnums=(0, 2))


def draw_qk(
  num_positions, num_heads, depth, *, std, decay=0.01, mean=0.25, seed=0
):
  """Anisotropic q and k, `[1, N, J, K]`, of the same norm on average.

  Eigenvalues of each covariance are geometric from 1 to `decay`, its basis is
  random, and `mean` is the part of |x|^2 that is the mean's.
  """
  generator = np.random.default_rng(seed)
  scale_K = np.geomspace(1, decay, depth) ** 0.5
  scale_K *= std * np.sqrt((1 - mean) / np.mean(scale_K**2))
  results = []
  for _ in 'qk':
    gaussian_JKK = generator.normal(size=(num_heads, depth, depth))
    x_JNK = generator.normal(size=(num_heads, num_positions, depth)) * scale_K
    x_JNK = x_JNK @ np.linalg.qr(gaussian_JKK)[0]
    mean_J1K = generator.normal(size=(num_heads, 1, depth))
    mean_J1K /= np.linalg.norm(mean_J1K, axis=-1, keepdims=True)
    x_JNK += std * np.sqrt(mean * depth) * mean_J1K
    results.append(np.moveaxis(x_JNK, 0, 1)[None])
  return results


def transpose(x):
  return np.swapaxes(x, -1, -2)


def one_head(features_type, query, key):
  """The change for the only head, in float64, None left as it is."""
  result = reshaping(features_type, measure(query, key), query.shape[-1])
  return jax.tree.map(lambda x: np.asarray(x, np.float64)[0], result)


def reshaped(change, query_NK, key_NK):
  """q~ and k~."""
  x, y = (z * z.shape[-1] ** -0.25 for z in (query_NK, key_NK))
  if change.query_centre_JK is not None:
    x, y = x - change.query_centre_JK, y - change.key_centre_JK
  if change.query_matrix_JKK is not None:
    x, y = x @ change.query_matrix_JKK.T, y @ change.key_matrix_JKK.T
  return x, y


def features(change, query_NK, key_NK, rows_RMK):
  """phi_q and phi_k, `[R, M, N]`: the definition, and its log-constant."""
  a = change.row_norm_coefficient_J
  a, b = (0, 1) if a is None else (a, change.row_scale_J)
  norm_RM1 = np.sum(rows_RMK**2, axis=-1, keepdims=True)

  def phi(x_NK, tilt_K):
    tilt_K = 0 * x_NK[0] if tilt_K is None else tilt_K
    offset_N = x_NK @ tilt_K - np.sum(x_NK**2, axis=-1) / 2
    return np.exp(b * rows_RMK @ x_NK.T + a * norm_RM1 + offset_N)

  x, y = reshaped(change, query_NK, key_NK)
  return (
    phi(x, change.query_tilt_JK),
    phi(y, change.key_tilt_JK),
    change.log_constant_J or 0,
  )


def draw_rows(features_type, rng, num_draws, num_rows, depth, orthogonal):
  """`[R, M, K]`, or 2M rows for hyperbolic features."""
  rows = projections.head_projections(
    rng, num_draws, num_rows, depth, orthogonal=orthogonal
  )
  if lower_variance.is_hyperbolic(features_type):
    rows = lower_variance.antithetic(rows)
  return np.asarray(rows, np.float64)


def relative_estimates(features_type, rng, *, orthogonal, num_draws, std=0.5):
  """Estimates of exp(q.k / sqrt(K)) over the truth, `[R, P]`, and |q~ + k~|^2.

  Of the first four pairs of the 256 that are measured, of width 8.
  """
  query, key = draw_qk(256, 1, 8, std=std)
  change = one_head(features_type, query, key)
  query, key = query[0, :4, 0], key[0, :4, 0]
  rows = draw_rows(features_type, rng, num_draws, 8, 8, orthogonal)
  phi_q, phi_k, log_constant = features(change, query, key, rows)
  truth = np.exp(np.sum(query * key, axis=-1) / 8**0.5)
  estimates = np.exp(log_constant) * np.mean(phi_q * phi_k, axis=1) / truth
  x, y = reshaped(change, query, key)
  return estimates, np.sum((x + y) ** 2, axis=-1), change


def expected_variance(features_type, norm, change):
  """M times the relative variance for iid rows, of the module's docstring."""
  a = change.row_norm_coefficient_J or 0
  factor = ((1 - 4 * a) ** 2 / (1 - 8 * a)) ** 4  # K / 2 = 4
  square = np.exp(norm / (1 - 8 * a))
  if lower_variance.is_hyperbolic(features_type):  # half is w times -w
    square = (square + np.exp(-norm)) / 2
  return factor * square - 1


@pytest.mark.parametrize('features_type', ALL)
@pytest.mark.parametrize('orthogonal', [True, False])
def test_estimates_are_unbiased(features_type, orthogonal, rng):
  estimates, _, _ = relative_estimates(
    features_type, rng, orthogonal=orthogonal, num_draws=3000
  )
  standard_error = estimates.std(axis=0) / 3000**0.5
  assert np.all(standard_error < 0.03)
  assert np.all(np.abs(estimates.mean(axis=0) - 1) < 4.5 * standard_error)


@pytest.mark.parametrize('features_type', ALL)
@pytest.mark.parametrize('std', [0.5, 3.0])
def test_expected_log_score_is_that_of_q_and_k(features_type, std):
  """As E exp(2a |w|^2 + b w.z) = (1 - 4a)^(-K / 2) exp(|z|^2 / 2)."""
  query, key = draw_qk(300, 1, 64, std=std)
  change = one_head(features_type, query, key)
  query, key = query[0, :, 0], key[0, :, 0]
  x, y = reshaped(change, query, key)
  score_P = np.sum(x * y, axis=-1) + (change.log_constant_J or 0)
  score_P -= 32 * np.log1p(-4 * (change.row_norm_coefficient_J or 0))
  if change.query_tilt_JK is not None:
    score_P += x @ change.query_tilt_JK + y @ change.key_tilt_JK
  expected_P = np.sum(query * key, axis=-1) / 8
  np.testing.assert_allclose(score_P, expected_P, atol=2e-6 * 8 * std**2)


@pytest.mark.parametrize('features_type', ALL)
def test_variance_of_iid_rows(features_type, rng):
  estimates, norm, change = relative_estimates(
    features_type, rng, orthogonal=False, num_draws=20_000, std=0.4
  )
  expected = expected_variance(features_type, norm, change) / 8
  np.testing.assert_allclose(estimates.var(axis=0), expected, rtol=0.15)


@pytest.mark.parametrize('features_type', ALL)
def test_orthogonal_rows_have_less_variance(features_type, rng):
  orthogonal, iid = (
    relative_estimates(
      features_type, rng, orthogonal=orthogonal, num_draws=6000
    )[0].var(axis=0)
    for orthogonal in (True, False)
  )
  assert np.mean(np.log(orthogonal / iid)) < -0.05


def test_favor_plus_plus_has_less_variance_than_positive(rng):
  means = [
    relative_estimates(name, rng, orthogonal=False, num_draws=3000)[0]
    .var(axis=0)
    .mean()
    for name in ('favor_plus_plus', 'positive')
  ]
  assert means[0] < 0.9 * means[1]


@pytest.mark.parametrize('features_type', WITH_COEFFICIENT)
def test_coefficient_minimises_the_mean_log_variance(features_type):
  """r is the mean of |q~ + k~|^2 / K over all pairs, and A(r) the best a."""
  query, key = draw_qk(300, 1, 16, std=1.0)
  change = one_head(features_type, query, key)
  x, y = reshaped(change, query[0, :, 0], key[0, :, 0])
  r = np.mean(np.sum((x[:, None] + y[None]) ** 2, axis=-1)) / 16
  a = np.linspace(-1, 0, 20_001)
  log_moment = np.log((1 - 4 * a) ** 2 / (1 - 8 * a)) / 2 + r / (1 - 8 * a)
  best = a[np.argmin(log_moment)]
  assert change.row_norm_coefficient_J == pytest.approx(best, abs=2e-4)


# ADERF: the matrices.


def balanced(features_type, query, key):
  """T_q, T_k, and the moments they balance, ridge included; float64."""
  statistics = measure(query, key)
  depth = query.shape[-1]
  change = reshaping(features_type, statistics, depth)
  q_mean, k_mean, q_moment, k_moment = (
    np.asarray(x, np.float64) for x in statistics[:4]
  )
  trace_J = np.trace(q_moment + k_moment, axis1=-2, axis2=-1)
  ridge = lower_variance._RIDGE * trace_J / (2 * depth)
  if features_type.startswith('centred_'):
    q_moment = q_moment - q_mean[:, :, None] * q_mean[:, None]
    k_moment = k_moment - k_mean[:, :, None] * k_mean[:, None]
  ridge = ridge[:, None, None] * np.eye(depth)
  matrices = change.query_matrix_JKK, change.key_matrix_JKK
  matrices = (np.asarray(x, np.float64) for x in matrices)
  return *matrices, q_moment + ridge, k_moment + ridge


def assert_relative(actual, expected, tolerance):
  error, norm = (
    np.linalg.norm(x, axis=(-2, -1)) for x in (actual - expected, expected)
  )
  assert np.all(error <= tolerance * norm)


@pytest.mark.parametrize('features_type', ADERF)
def test_matrices_balance_the_moments(features_type):
  t_q, t_k, q_moment, k_moment = balanced(
    features_type, *draw_qk(2000, 8, 64, std=0.5)
  )
  g = transpose(t_q) @ t_q
  assert_relative(g @ q_moment @ g, k_moment, 1e-4)
  assert np.max(np.abs(transpose(t_q) @ t_k - np.eye(64))) < 1e-5


@pytest.mark.parametrize('features_type', ADERF)
def test_matrices_agree_with_the_published_ones(features_type):
  """But for a rotation: T^T T of B_1 = b T_q = b S^1/2 U^T L^-1/2 Q^T."""
  t_q, _, q_moment, k_moment = balanced(
    features_type, *draw_qk(500, 1, 16, std=0.5)
  )
  (l1, q1), (l2, q2) = (np.linalg.eigh(x[0]) for x in (q_moment, k_moment))
  u, s, _ = np.linalg.svd(np.sqrt(l1)[:, None] * (q1.T @ q2) * np.sqrt(l2))
  t_published = np.sqrt(s)[:, None] * u.T / np.sqrt(l1) @ q1.T
  assert_relative(t_q[0].T @ t_q[0], t_published.T @ t_published, 1e-4)


DEGENERATE = {
  'zeros': lambda x: 0 * x,
  'constant': lambda x: 0 * x + 1,
  'one position': lambda x: x[:, :1],
  'three positions': lambda x: x[:, :3],
  'tiny': lambda x: 1e-15 * x,
  'large': lambda x: 1e8 * x,
  'far from zero': lambda x: 1000 + x,
  'half the width': lambda x: x * (np.arange(32) < 16),
}


@pytest.mark.parametrize('features_type', ADERF)
@pytest.mark.parametrize('query_case', DEGENERATE)
@pytest.mark.parametrize('key_case', ['same', 'plain'])
def test_degenerate_moments_give_inverse_matrices(
  features_type, query_case, key_case
):
  query, key = draw_qk(100, 2, 32, std=1.0)
  query = DEGENERATE[query_case](query)
  key = DEGENERATE[query_case](key) if key_case == 'same' else key
  t_q, t_k, *_ = balanced(features_type, query, key)
  error = transpose(t_q) @ t_k - np.eye(32)
  assert np.max(np.abs(error)) < 3e-5


def test_moments_that_are_not_numbers_leave_q_and_k_as_they_are():
  statistics = measure(*draw_qk(9, 2, 8, std=1.0))
  bad = statistics.query_moment_JKK.at[0].set(jnp.nan)
  statistics = statistics._replace(query_moment_JKK=bad)
  change = reshaping('aderf', statistics, 8)
  np.testing.assert_array_equal(change.query_matrix_JKK[0], np.eye(8))
  np.testing.assert_array_equal(change.key_matrix_JKK[0], np.eye(8))


@pytest.mark.parametrize('features_type', ADERF)
def test_float64_is_exact(features_type):
  with jax.enable_x64(True):
    t_q, t_k, q_moment, k_moment = balanced(
      features_type, *draw_qk(500, 2, 32, std=0.5)
    )
  assert np.max(np.abs(transpose(t_q) @ t_k - np.eye(32))) < 1e-13
  g = transpose(t_q) @ t_q
  assert_relative(g @ q_moment @ g, k_moment, 1e-12)


@pytest.mark.parametrize('features_type', WITH_STATISTICS)
def test_no_library_of_linear_algebra_is_called(features_type):
  """Its calls may wait for ever on CPU, see `projections.haar_matrices`."""
  lowered = reshaping.lower(features_type, lower_variance.init(8, 64), 64)
  compiled = lowered.compile()
  assert 'lapack' not in compiled.as_text().lower()


# Statistics.


def test_measure_pools_the_queries_of_a_key_head(normal):
  query, key = normal(2, 5, 6, 4), normal(2, 7, 3, 4)
  actual = measure(query, key)
  query_JNK = np.moveaxis(np.reshape(query, (2, 5, 3, 2, 4)), 2, 0)
  query_JNK = query_JNK.reshape(3, -1, 4)
  key_JNK = np.moveaxis(np.asarray(key), 2, 0).reshape(3, -1, 4)
  expected = (
    query_JNK.mean(axis=1),
    key_JNK.mean(axis=1),
    transpose(query_JNK) @ query_JNK / 20,
    transpose(key_JNK) @ key_JNK / 14,
    np.ones(3),
  )
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert a.dtype == jnp.float32


def test_positions_that_are_not_valid_do_not_count(normal):
  query, key = normal(2, 1, 9, 2, 4)
  valid = jnp.arange(9)[None] < 6
  expected = measure(query[:, :6], key[:, :6])
  query, key = (x.at[:, 6:].set(jnp.nan) for x in (query, key))
  actual = measure(query, key, valid, valid.astype(jnp.float32))
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('empty', ['valid_query_BL', 'valid_key_BS'])
def test_a_batch_without_valid_positions_has_no_weight(empty, normal):
  query, key = normal(2, 1, 9, 2, 4)
  none = {empty: jnp.zeros((1, 9), bool)}
  for x in measure(query, key, **none):
    np.testing.assert_array_equal(x, 0)


def test_corrected_average_starts_without_bias(normal):
  """After two updates the weights are (1 - decay) decay and 1 - decay."""
  first, second = (measure(*normal(2, 1, 9, 2, 4)) for _ in range(2))
  running = lower_variance.init(2, 4)
  for batch in (first, second):
    running = lower_variance.update(running, batch, 0.75)
  for actual, a, b in zip(
    lower_variance.corrected(running), first, second, strict=True
  ):
    np.testing.assert_allclose(actual, (0.75 * a + b) / 1.75, atol=1e-6)


@pytest.mark.parametrize('features_type', WITH_STATISTICS)
def test_statistics_of_nothing_give_positive_features(features_type):
  change = reshaping(features_type, lower_variance.init(2, 8), 8)
  one = np.broadcast_to(np.eye(8), (2, 8, 8))
  plain = lower_variance.Reshaping(one, one, 0, 0, 0, 0, 1, 0, 0)
  for a, b in zip(change, plain, strict=True):
    if a is not None:
      np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), atol=1e-6)


@pytest.mark.parametrize('features_type', ['centred_hyperbolic', *ADERF])
@pytest.mark.parametrize('batch', [jax.vmap, lambda function: function])
def test_layers_may_lead(features_type, batch):
  def change(statistics):
    running = lower_variance.init(2, 16)
    running = jax.tree.map(
      lambda x, y: jnp.broadcast_to(x, y.shape), running, statistics
    )
    running = lower_variance.update(running, statistics, 0.9)
    return reshaping(features_type, running, 16)

  layers = [measure(*draw_qk(50, 2, 16, std=1, seed=i)) for i in range(3)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
  actual = jax.jit(batch(change))(stacked)
  for i, layer in enumerate(layers):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
      jax.tree.map(lambda x: x[i], actual),  # noqa: B023
      change(layer),
    )


@pytest.mark.parametrize('features_type', WITH_STATISTICS)
def test_no_gradient_flows(features_type, normal):
  def total(query, key):
    statistics = measure(query, key)
    change = reshaping(features_type, statistics, 8)
    return sum(jnp.sum(x) for x in jax.tree.leaves(change))

  for gradient in jax.grad(total, (0, 1))(*normal(2, 1, 20, 2, 8)):
    np.testing.assert_array_equal(gradient, 0)


def test_the_result_has_the_width_of_the_inputs(normal):
  query, key = normal(2, 1, 9, 2, 4)
  narrow = measure(query.astype(jnp.bfloat16), key)
  assert {x.dtype for x in narrow} == {jnp.dtype('float32')}
  with jax.enable_x64(True):
    wide = measure(*(np.asarray(x, np.float64) for x in (query, key)))
    change = reshaping('centred_aderf', wide, 4)
    assert {x.dtype for x in (*wide, *change)} == {jnp.dtype('float64')}


def test_antithetic_rows(normal):
  projection = normal(2, 3, 4)
  rows = lower_variance.antithetic(projection)
  np.testing.assert_array_equal(rows[:, :3], projection)
  np.testing.assert_array_equal(rows[:, 3:], -projection)


@pytest.mark.parametrize('features_type', ['positive', 'hyperbolic'])
def test_plain_maps_change_nothing(features_type):
  change = lower_variance.reshaping(features_type, None, 8)
  assert all(x is None for x in change)


@pytest.mark.parametrize('features_type', WITH_STATISTICS)
def test_missing_statistics_are_refused(features_type):
  with pytest.raises(ValueError, match='measure them on training batches'):
    lower_variance.reshaping(features_type, None, 8)


def test_unknown_names_are_refused():
  with pytest.raises(
    ValueError, match='choose one of positive, favor_plus_plus'
  ):
    lower_variance.reshaping('favor', None, 8)


# The error of attention.


def softmax(logits):
  scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return scores / scores.sum(axis=-1, keepdims=True)


def row_error(features_type, query, key, rng, num_draws=3):
  """Mean over rows of sum_s |A_hat - A|, with 256 features in all."""
  change = one_head(features_type, query, key)
  query, key = query[0, :, 0], key[0, :, 0]
  num_rows = 256 >> lower_variance.is_hyperbolic(features_type)
  rows = draw_rows(features_type, rng, num_draws, num_rows, 64, True)
  phi_q, phi_k, _ = features(change, query, key, rows)
  scores = transpose(phi_q) @ phi_k
  scores /= scores.sum(axis=-1, keepdims=True)
  exact = softmax(query @ key.T / 8)
  return np.abs(scores - exact).sum(axis=-1).mean()


@pytest.mark.parametrize(
  'decay, mean',
  [
    pytest.param(0.01, 0.25, marks=pytest.mark.slow),
    (0.001, 0),
    (0.01, 0),
  ],
)
def test_error_on_anisotropic_qk_is_halved(decay, mean, rng):
  """Width 64, 256 features in all, W and -W among them."""
  query, key = draw_qk(512, 1, 64, std=0.5, decay=decay, mean=mean)
  positive = row_error('positive', query, key, rng)
  best = row_error('centred_hyperbolic_aderf', query, key, rng)
  assert 0.15 < positive < 0.25
  assert best <= positive / 2
