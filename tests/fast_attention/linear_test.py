"""Linear-time sums against the float64 quadratic reference, and causality."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import (
  linear,
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)

CHUNK = 64  # longest chunk on CPU


def softmax(**kwargs):
  return make_fast_softmax_attention(nb_features=24, **kwargs)


def packed(B, L):
  """Segment ids with runs of many lengths (1 too), and a padding mask."""
  lengths = [1, 5, 40, 2, 150, 17, 30, 400]
  ids = np.repeat([3, 7, 3, 9, 1, 4, 1, 8], lengths)[:L]
  mask = np.arange(L) < max(1, L - 9)
  return dict(
    segment_ids=jnp.tile(ids, (B, 1)),
    mask=jnp.tile(mask, (B, 1))[:, None, None, :],
  )


@pytest.mark.parametrize('L', [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 257])
def test_causal_packed_matches_reference(
  L, qkvg, run_with_gradients, run_reference, assert_close
):
  inputs = qkvg(2, L, 2, 16, std=2.0)
  kwargs = dict(is_causal=True, **packed(2, L))
  actual = run_with_gradients(softmax(), inputs, **kwargs)
  assert_close(actual, run_reference(softmax(), inputs, **kwargs))


@pytest.mark.parametrize('L', [1, 63, 257])
def test_bidirectional_packed_matches_reference(
  L, qkvg, run_with_gradients, run_reference, assert_close
):
  inputs = qkvg(2, L, 2, 16, std=2.0)
  actual = run_with_gradients(softmax(), inputs, **packed(2, L))
  assert_close(actual, run_reference(softmax(), inputs, **packed(2, L)))


@pytest.mark.parametrize('is_causal', [True, False])
def test_one_sequence_matches_reference(
  is_causal, qkvg, run_with_gradients, run_reference, assert_close
):
  inputs = qkvg(1, 257, 2, 16, std=2.0)
  actual = run_with_gradients(softmax(), inputs, is_causal=is_causal)
  assert_close(actual, run_reference(softmax(), inputs, is_causal=is_causal))


def test_token_scan_packed_matches_reference(
  qkvg, run_with_gradients, run_reference, assert_close
):
  inputs = qkvg(2, 63, 2, 16, std=2.0)
  kwargs = dict(is_causal=True, **packed(2, 63))
  attention = softmax(implementation='scan', lax_scan_unroll=4)
  actual = run_with_gradients(attention, inputs, **kwargs)
  assert_close(actual, run_reference(attention, inputs, **kwargs))


RELU = make_fast_generalized_attention()
REQU = make_fast_generalized_attention(
  kernel_fn='jrequ', features_type='ortho', nb_features=24
)
EXP = make_fast_generalized_attention(kernel_fn='jexp')


@pytest.mark.parametrize(
  'attention, is_causal',
  [
    (RELU, True),
    (RELU, False),
    (REQU, True),
    (EXP, True),
    (softmax(renormalize_attention=False), True),
    (softmax(renormalize_attention=False), False),
  ],
)
def test_other_features_match_reference(
  attention, is_causal, qkvg, run_with_gradients, run_reference, assert_close
):
  inputs = qkvg(2, 150, 2, 16)
  kwargs = dict(is_causal=is_causal, **packed(2, 150))
  actual = run_with_gradients(attention, inputs, **kwargs)
  assert_close(actual, run_reference(attention, inputs, **kwargs))


def test_trigonometric_matches_reference(
  qkvg, run_with_gradients, run_reference, assert_close
):
  # At small norms: where denominators vanish no precision suffices.
  inputs = qkvg(2, 150, 2, 16, std=0.3)
  attention = softmax(nonnegative_features=False)
  kwargs = dict(is_causal=True, **packed(2, 150))
  actual = run_with_gradients(attention, inputs, **kwargs)
  assert_close(actual, run_reference(attention, inputs, **kwargs))


def test_cross_attention_matches_reference(normal, assert_close):
  q = normal(2, 5, 2, 16)
  k, v = normal(2, 2, 300, 2, 16)
  out = softmax()(q, k, v)
  assert_close([out], [softmax(implementation='reference')(q, k, v)])


def test_gradients_of_values_wider_than_heads(
  normal, run_with_gradients, run_reference, assert_close
):
  q, k = normal(2, 1, 130, 2, 8)
  v, g = normal(2, 1, 130, 2, 5)
  inputs = (q, k, v, g)
  actual = run_with_gradients(softmax(), inputs, is_causal=True)
  assert_close(actual, run_reference(softmax(), inputs, is_causal=True))


@pytest.mark.parametrize(
  'is_causal', [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_heads_in_streams_match_reference(
  is_causal, qkvg, run_with_gradients, run_reference, assert_close, monkeypatch
):
  """Three heads in two streams, two of five chunks a turn: none divides."""
  monkeypatch.setattr(
    linear.tables, 'concurrency', lambda work, num_chunks: (2, 2)
  )
  inputs = qkvg(2, 300, 3, 8)
  kwargs = dict(is_causal=is_causal, **packed(2, 300))
  actual = run_with_gradients(softmax(), inputs, **kwargs)
  assert_close(actual, run_reference(softmax(), inputs, **kwargs))


@pytest.mark.slow
@pytest.mark.parametrize('is_uneven', [True, False])
def test_error_hardly_grows_with_length(
  is_uneven, qkvg, run_with_gradients, run_reference
):
  """Relative L2 of out, dq, dk, dv: 5e-6, and at most twice that at 257."""
  attention = make_fast_softmax_attention(nb_features=256)
  errors = {}
  for L in (257, 5 * CHUNK + 3, 8192):
    q, k, v, g = qkvg(1, L, 1, 64, std=2.0)
    if is_uneven:  # norms of keys of a standard deviation of a half
      norms = np.random.default_rng(1).normal(size=(1, L, 1, 1))
      k = k * jnp.exp(0.5 * jnp.asarray(norms, jnp.float32)) / 1.3
    actual = run_with_gradients(attention, (q, k, v, g), is_causal=True)
    expected = run_reference(attention, (q, k, v, g), is_causal=True)
    errors[L] = np.array(
      [
        np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        for a, b in zip(actual, expected, strict=True)
      ]
    )
    assert errors[L].max() < 5e-6
  assert np.all(errors[8192] < 2 * errors[257])


@pytest.mark.parametrize(
  'attention',
  [
    softmax(),
    softmax(implementation='scan'),
    RELU,
  ],
  ids=['softmax', 'scan', 'relu'],
)
@pytest.mark.parametrize('is_packed', [True, False])
def test_later_tokens_leave_earlier_outputs_bit_equal(
  attention, is_packed, qkvg
):
  q, k, v, _ = qkvg(2, 300, 2, 16)
  kwargs = packed(2, 300) if is_packed else {}
  call = jax.jit(lambda q, k, v: attention(q, k, v, is_causal=True, **kwargs))
  before = call(q, k, v)
  for cut in (1, 130, 299):
    for factor in (1e3, -1e4):
      scale = jnp.where(jnp.arange(300) < cut, 1, factor)[None, :, None, None]
      after = call(q * scale, k * scale, v * scale)
      np.testing.assert_array_equal(before[:, :cut], after[:, :cut])


def test_gradients_of_earlier_outputs_ignore_later_tokens(
  qkvg, run_with_gradients
):
  q, k, v, g = qkvg(1, 300, 1, 16)
  g = jnp.where(jnp.arange(300)[None, :, None, None] < 200, g, 0)
  _, dq, dk, dv = run_with_gradients(softmax(), (q, k, v, g), is_causal=True)
  for grad in (dq, dk, dv):
    np.testing.assert_array_equal(grad[:, 200:], 0)
    assert np.all(np.any(grad[:, 1:200] != 0, axis=-1))


@pytest.mark.parametrize('is_causal', [True, False])
def test_alone_padded_and_packed_agree(is_causal, qkvg):
  q, k, v, _ = qkvg(1, 300, 2, 16)
  part = slice(100, 180)

  @jax.jit
  def call(*x, **kwargs):
    return softmax()(*x, is_causal=is_causal, **kwargs)

  alone = call(q[:, part], k[:, part], v[:, part])
  ids = jnp.digitize(jnp.arange(300), jnp.array([100, 180]))[None]
  in_pack = call(q, k, v, segment_ids=ids)[:, part]
  # Padding is at the right, with values that would be noticed.
  q, k, v = (
    jnp.concatenate([x[:, part], 50 * x[:, :100]], axis=1) for x in (q, k, v)
  )
  mask = (jnp.arange(180) < 80)[None, None, None]
  padded = call(q, k, v, mask=mask)[:, :80]
  np.testing.assert_allclose(in_pack, alone, atol=1e-5)
  np.testing.assert_allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize('is_causal', [True, False])
def test_rows_sum_to_one(is_causal, qkvg):
  q, k, v, _ = qkvg(2, 300, 2, 64)
  call = jax.jit(lambda *x: softmax()(*x, is_causal=is_causal))
  for std in (0.1, 1.5, 5.0, 20.0):
    out = call(std * q, std * k, jnp.ones_like(v))
    np.testing.assert_allclose(out, 1, atol=1e-5)


@pytest.mark.parametrize('is_causal', [True, False])
@pytest.mark.parametrize(
  'attention', [softmax(), RELU], ids=['softmax', 'relu']
)
def test_extreme_inputs_are_finite(attention, is_causal, qkvg, with_gradients):
  q, k, v, g = qkvg(2, 140, 2, 16)
  run = with_gradients(attention, is_causal=is_causal, **packed(2, 140))
  equal_keys = jnp.broadcast_to(k[:, :1], k.shape)
  for inputs in [(1000 * q, 1000 * k), (q, equal_keys), (0 * q, 0 * k)]:
    results = run(*inputs, v, g)
    assert all(np.all(np.isfinite(x)) for x in results)


@pytest.mark.parametrize('segments', [True, False])
@pytest.mark.parametrize('is_causal', [True, False])
def test_masked_rows_are_zeros_and_pads_have_no_gradient(
  segments, is_causal, qkvg, run_with_gradients
):
  q, k, v, g = qkvg(2, 140, 2, 16, std=2.0)
  # The first row sees nothing, the second all but the last ten keys.
  mask = jnp.stack([jnp.zeros(140, bool), jnp.arange(140) < 130])
  kwargs = dict(mask=mask[:, None, None, :], is_causal=is_causal)
  if segments:
    kwargs['segment_ids'] = jnp.tile(jnp.arange(140) // 50, (2, 1))
  out, dq, dk, dv = run_with_gradients(softmax(), (q, k, v, g), **kwargs)
  np.testing.assert_array_equal(out[0], 0)
  assert all(np.all(np.isfinite(x)) for x in (dq, dk, dv))
  for grad in (dk, dv):
    np.testing.assert_array_equal(grad[0], 0)
    np.testing.assert_array_equal(grad[1, 130:], 0)
    assert np.any(grad[1, 129] != 0)


def test_zero_query_with_no_epsilon_gives_zeros(qkvg, run_with_gradients):
  q, k, v, g = qkvg(1, 9, 1, 8)
  attention = make_fast_generalized_attention(kernel_epsilon=0.0)
  q = q.at[:, 4].set(-1.0)  # relu: no feature is left
  out, *grads = run_with_gradients(attention, (q, k, v, g))
  np.testing.assert_array_equal(out[:, 4], 0)
  assert all(np.all(np.isfinite(x)) for x in grads)


@pytest.mark.parametrize(
  'name', ['jcos', 'jsin', 'jtanh', 'jgelu', 'jidentity']
)
def test_signed_kernels_are_finite(name, qkvg, run_with_gradients):
  q, k, v, g = qkvg(1, 20, 1, 4)
  k = k.at[:, 1].set(-k[:, 0])  # a denominator of odd kernels vanishes
  q = q.at[:, 1].set(0)
  attention = make_fast_generalized_attention(
    kernel_fn=name, kernel_epsilon=0.0
  )
  results = run_with_gradients(attention, (q, k, v, g), is_causal=True)
  assert all(np.all(np.isfinite(x)) for x in results)


def test_residuals_are_smaller_than_the_features(qkvg):
  """Nothing of size L x L or L x M waits for the backward pass."""
  attention = make_fast_softmax_attention(nb_features=256)
  assert largest_residual(attention, qkvg) < 2048 * 256 / 4
  with_states = dataclasses.replace(attention, keep_states=True)
  states = 2048 / CHUNK * 16 * 256
  assert largest_residual(with_states, qkvg) == states


def largest_residual(attention, qkvg):
  q, k, v, _ = qkvg(1, 2048, 1, 16)
  _, vjp = jax.vjp(lambda *x: attention(*x, is_causal=True), q, k, v)
  return max(x.size for x in jax.tree.leaves(vjp))


@pytest.mark.parametrize('L', [CHUNK - 1, 257])
@pytest.mark.parametrize('is_causal', [True, False])
def test_states_that_are_kept_give_the_same_gradients(
  L, is_causal, qkvg, with_gradients
):
  kwargs = dict(is_causal=is_causal, **packed(2, L))
  inputs = qkvg(2, L, 2, 16, std=2.0)
  expected = with_gradients(softmax(), **kwargs)(*inputs)
  with_states = dataclasses.replace(softmax(), keep_states=True)
  actual = with_gradients(with_states, **kwargs)(*inputs)
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('keep_states', [True, False])
def test_states_that_are_kept_are_not_computed_again(keep_states, qkvg):
  attention = dataclasses.replace(softmax(), keep_states=keep_states)
  q, k, v, g = qkvg(1, 257, 2, 16)

  def gradients(*qkv):
    return jax.vjp(lambda *x: attention(*x, is_causal=True), *qkv)[1](g)

  sweeps = str(jax.make_jaxpr(gradients)(q, k, v)).count('= scan[')
  assert sweeps == (2 if keep_states else 3)


@pytest.mark.parametrize('length', [1, 7, 128, 129, 257, 1000])
def test_chunks_cover_the_length_with_little_padding(length):
  num_chunks, chunk_length = linear._chunks(length, 128)
  assert chunk_length <= 128
  assert length <= num_chunks * chunk_length < length + 8 * num_chunks
