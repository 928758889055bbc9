"""Exact attention by blocks against its definition."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm.blockwise_attention import blockwise_attention
from protein_lm.exact_attention import exact_attention

plain = exact_attention(implementation='plain')


def _inputs(rng, length, batch=2, heads=3, depth=8):
  return jax.random.normal(rng, (3, batch, length, heads, depth))


def _packed(length):
  """Rows of several runs, whose ends differ and end blocks or do not."""
  ids = np.zeros((2, length), np.int32)
  for row, mean in enumerate((0.2, 0.45)):
    edge = max(1, int(mean * length))
    ids[row] = 1 + np.arange(length) // edge
    ids[row, length - length // 8 :] = 0
  return jnp.array(ids)


def _value_and_grads(fn, inputs):
  """The output, and gradients of a function that weighs every entry apart."""

  def loss(inputs):
    out = fn(*inputs)
    weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32))
    return jnp.sum(out * weights.reshape(out.shape)), out

  (_, out), grads = jax.value_and_grad(loss, has_aux=True)(inputs)
  return out, grads


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize(
  'length, block_length', [(1, 8), (63, 16), (257, 64), (257, 256)]
)
def test_output_and_gradients_are_those_of_the_plain_form(
  rng, length, block_length, packed, causal
):
  inputs = _inputs(rng, length)
  segment_ids = _packed(length) if packed else None

  @jax.jit
  def found(inputs):
    return _value_and_grads(
      lambda *x: blockwise_attention(
        *x, causal=causal, segment_ids=segment_ids, block_length=block_length
      ),
      inputs,
    )

  expected = _value_and_grads(
    lambda *x: plain(*x, is_causal=causal, segment_ids=segment_ids), inputs
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5),
    found(inputs),
    expected,
  )


@pytest.mark.slow
@pytest.mark.parametrize('causal', [False, True])
def test_a_long_packed_row_is_as_in_the_plain_form(rng, causal):
  inputs, segment_ids = _inputs(rng, 1025), _packed(1025)
  found, expected = (
    _value_and_grads(
      lambda *x, fn=fn: fn(*x, is_causal=causal, segment_ids=segment_ids),
      inputs,
    )
    for fn in (exact_attention(implementation='blockwise'), plain)
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5), found, expected
  )


def test_no_array_of_a_gradient_is_as_large_as_length_squared(rng):
  inputs = _inputs(rng, 256, batch=1, heads=1)
  compiled = jax.jit(
    jax.grad(
      lambda x: jnp.sum(blockwise_attention(*x, causal=True, block_length=32))
    )
  ).lower(inputs)
  shapes = re.findall(r'tensor<([\dx]+)xf32>', compiled.as_text())
  sizes = [np.prod([int(n) for n in shape.split('x')]) for shape in shapes]
  assert max(sizes) < 256 * 256


def test_later_keys_leave_earlier_outputs_bit_equal(rng):
  query, key, value = _inputs(rng, 96)
  late = jnp.arange(96)[None, :, None, None] >= 50

  @jax.jit
  def attend(query, key, value):
    return blockwise_attention(query, key, value, causal=True, block_length=32)[
      :, :50
    ]

  changed = (jnp.where(late, x * 1e4, x) for x in (key, value))
  np.testing.assert_array_equal(
    attend(query, key, value), attend(query, *changed)
  )


def test_other_runs_leave_outputs_bit_equal(rng):
  query, key, value = _inputs(rng, 96)
  segment_ids = jnp.broadcast_to((jnp.arange(96) >= 50) + 1, (2, 96))
  late = (segment_ids == 2)[:, :, None, None]

  @jax.jit
  def attend(query, key, value):
    return blockwise_attention(
      query,
      key,
      value,
      causal=False,
      segment_ids=segment_ids,
      block_length=32,
    )[:, :50]

  changed = (jnp.where(late, x * 1e4, x) for x in (key, value))
  np.testing.assert_array_equal(
    attend(query, key, value), attend(query, *changed)
  )


def test_blocks_of_other_runs_are_not_visited(rng):
  # 0 weight x NaN value is NaN: only what is not visited leaves no trace.
  query, key, value = _inputs(rng, 128)
  segment_ids = jnp.broadcast_to((jnp.arange(128) >= 64) + 1, (2, 128))
  value = value.at[:, 64:].set(jnp.nan)
  out = blockwise_attention(
    query, key, value, causal=False, segment_ids=segment_ids, block_length=32
  )
  assert jnp.all(jnp.isfinite(out[:, :64]))
  assert jnp.all(jnp.isnan(out[:, 64:]))


def test_bfloat16_is_near_float32_and_stays_bfloat16(rng):
  inputs = _inputs(rng, 96)

  def attend(*x):
    return blockwise_attention(*x, causal=True, block_length=32)

  expected, expected_grads = _value_and_grads(attend, inputs)
  found, grads = _value_and_grads(attend, inputs.astype(jnp.bfloat16))
  assert found.dtype == grads.dtype == jnp.bfloat16
  np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)
  np.testing.assert_allclose(
    grads.astype(jnp.float32), expected_grads, atol=0.1
  )
