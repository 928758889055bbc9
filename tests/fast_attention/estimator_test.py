"""Lower-variance features in the attention: exactness, decoding, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import lower_variance, make_fast_softmax_attention

TYPES = [t for t in lower_variance.FEATURES_TYPES if t != 'positive']
# Those that between them use every part of the map.
QUICK = ('hyperbolic', 'favor_plus_plus', 'centred_hyperbolic_aderf')
TYPES = [
  t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in TYPES
]


def attention_of(features_type, nb_features=24, **kwargs):
  return make_fast_softmax_attention(
    nb_features=nb_features, features_type=features_type, **kwargs
  )


def stats_of(attention, q, k):
  return attention.measure_stats(q, k) if attention.needs_stats else None


@pytest.mark.parametrize('features_type', TYPES)
def test_outputs_and_gradients_match_reference(
  features_type, qkvg, run_with_gradients, run_reference, assert_close
):
  inputs = qkvg(2, 70, 2, 16, std=0.7)
  attention = attention_of(features_type)
  # Of another batch, with means and unequal variances.
  scale = jnp.linspace(0.1, 1.5, 16)[None, None, None]
  stats = stats_of(attention, 0.3 + inputs[1] * scale, inputs[0] / scale)
  kwargs = dict(is_causal=True, stats=stats)
  actual = run_with_gradients(attention, inputs, **kwargs)
  expected = run_reference(attention, inputs, **kwargs)
  # The change of q and k is another product; its rounding comes on top.
  assert_close(actual, expected, tolerance=2e-5)


@pytest.mark.parametrize('features_type', TYPES)
def test_unnormalised_is_an_unbiased_estimate(features_type, normal):
  """Of sum_s exp(q.k_s / sqrt(K)) v_s: mean over 3000 matrices."""
  q, k, v = 0.5 * normal(3, 1, 3, 1, 8)
  q += 0.3
  attention = attention_of(
    features_type,
    nb_features=8,
    renormalize_attention=False,
    numerical_stabilizer=0.0,
  )
  stats = stats_of(attention, 0.1 + 2 * k, q)
  rngs = jax.random.split(jax.random.key(0), 3000)
  draws = jax.lax.map(
    lambda rng: attention(q, k, v, rng=rng, stats=stats), rngs, batch_size=500
  )
  weights = jnp.exp(jnp.einsum('blhk,bshk->bhls', q, k) / 8**0.5)
  expected = jnp.einsum('bhls,bshk->blhk', weights, v)
  error = jnp.mean(draws, axis=0) - expected
  standard_error = jnp.std(draws, axis=0) / 3000**0.5
  assert np.all(np.abs(error) < 5 * standard_error)


@pytest.mark.parametrize(
  'features_type',
  ['hyperbolic', pytest.param('centred_aderf', marks=pytest.mark.slow)],
)
def test_step_by_step_equals_the_full_pass(features_type, qkvg, assert_close):
  q, k, v, _ = qkvg(1, 9, 2, 8)
  attention = attention_of(features_type, unidirectional=True)
  stats = stats_of(attention, q, k)
  expected = attention(q, k, v, stats=stats)
  _, state = attention.prefill(q[:, :5], k[:, :5], v[:, :5], stats=stats)
  shapes = jax.tree.map(jnp.shape, attention.init_state((1,), 2, 8))
  assert jax.tree.map(jnp.shape, state) == shapes
  for t in range(5, 9):
    x = (y[:, t : t + 1] for y in (q, k, v))
    out, state = attention.step(*x, state, stats=stats)
    assert_close([out], [expected[:, t : t + 1]])


@pytest.mark.parametrize('features_type', ['favor_plus_plus', 'centred_aderf'])
def test_a_change_made_once_serves_every_step(features_type, qkvg):
  q, k, v, _ = qkvg(1, 9, 2, 8)
  attention = attention_of(features_type)
  stats = stats_of(attention, q, k)
  change = lower_variance.reshaping(features_type, stats, 8)
  for call in (
    attention,
    lambda *x, stats: attention.prefill(*x, stats=stats)[0],
  ):
    np.testing.assert_allclose(
      call(q, k, v, stats=change), call(q, k, v, stats=stats), atol=1e-6
    )


@pytest.mark.parametrize('features_type', ['favor_plus_plus', 'centred_aderf'])
def test_queries_that_share_a_key_head(features_type, normal, assert_close):
  q = normal(1, 7, 4, 8)
  k, v = normal(2, 1, 7, 2, 8)
  attention = attention_of(features_type)
  stats = stats_of(attention, q, k)
  out = attention(q, k, v, stats=stats)
  projection = jnp.repeat(attention.projection(None, 2, 8), 2, axis=0)
  k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
  stats = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), stats)
  expected, _ = make_fast_softmax_attention(
    nb_features=24, features_type=features_type, unidirectional=None
  ).prefill(q, k, v, projection=projection, stats=stats)
  # The last position sees all keys in both.
  assert_close([out[:, -1]], [expected[:, -1]])


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_give_narrow_outputs_and_gradients(
  dtype, qkvg, run_with_gradients
):
  inputs = [x.astype(dtype) for x in qkvg(1, 9, 2, 8)]
  attention = attention_of('centred_aderf')
  stats = stats_of(attention, *inputs[:2])
  results = run_with_gradients(attention, inputs, stats=stats)
  assert all(x.dtype == dtype for x in results)


def test_statistics_have_no_gradient(qkvg):
  q, k, v, _ = qkvg(1, 9, 2, 8)
  attention = attention_of('centred_aderf')

  def total(q, k):
    stats = attention.measure_stats(q, k)
    return jnp.sum(attention(q[:, :3], k[:, :3], v[:, :3], stats=stats))

  dq, dk = jax.grad(total, argnums=(0, 1))(q, k)
  for grad in (dq, dk):
    assert np.any(grad[:, :3] != 0)
    np.testing.assert_array_equal(grad[:, 3:], 0)


def test_missing_statistics_name_the_way_out(qkvg):
  q, k, v, _ = qkvg(1, 9, 2, 8)
  with pytest.raises(ValueError, match='needs stats.*measure_stats'):
    attention_of('aderf')(q, k, v)


def test_masked_positions_do_not_count(qkvg):
  q, k, _, _ = qkvg(1, 9, 2, 8)
  mask = (jnp.arange(9) < 5)[None, None, None]
  attention = attention_of('aderf')
  actual = attention.measure_stats(q, k, mask=mask)
  expected = attention.measure_stats(q[:, :5], k[:, :5])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    actual,
    expected,
  )
