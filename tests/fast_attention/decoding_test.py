"""Decoding: step by step equals the full causal pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)

ATTENTIONS = [
  make_fast_softmax_attention(nb_features=16),
  make_fast_softmax_attention(nb_features=16, renormalize_attention=False),
  make_fast_generalized_attention(),
]


@pytest.fixture
def qkv(normal):
  """Four query heads to two key heads, two batch axes."""
  q = normal(2, 1, 12, 4, 8)
  k, v = normal(2, 2, 1, 12, 2, 8)
  return q, k, v


def at(qkv, index):
  return [x[..., index, :, :] for x in qkv]


def decode(attention, qkv, state, positions, **kwargs):
  step = jax.jit(lambda q, k, v, s: attention.step(q, k, v, s, **kwargs))
  outs = []
  for i in positions:
    out, state = step(*at(qkv, slice(i, i + 1)), state)
    outs.append(out)
  return jnp.concatenate(outs, axis=-3), state


@pytest.mark.parametrize('attention', ATTENTIONS, ids=repr)
def test_steps_equal_the_full_pass(attention, qkv):
  full = attention(*qkv, is_causal=True)
  state = attention.init_state((2, 1), heads=2, depth=8)
  out, _ = decode(attention, qkv, state, range(12))
  np.testing.assert_allclose(out, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('attention', ATTENTIONS, ids=repr)
def test_prefill_then_steps_equal_the_full_pass(attention, qkv, rng):
  full = attention(*qkv, is_causal=True, rng=rng)
  projection = attention.projection(rng, 2, 8)
  prompt, state = attention.prefill(*at(qkv, slice(0, 7)), rng=rng)
  out, _ = decode(attention, qkv, state, range(7, 12), projection=projection)
  out = jnp.concatenate([prompt, out], axis=-3)
  np.testing.assert_allclose(out, full, atol=1e-5, rtol=1e-5)


def test_padded_keys_do_not_enter_the_state(qkv):
  attention = ATTENTIONS[0]
  mask = (jnp.arange(12) < 7)[None, None, None, None]
  _, expected = attention.prefill(*at(qkv, slice(0, 7)))
  _, state = attention.prefill(*qkv, mask=mask)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, expected
  )


@pytest.mark.parametrize('is_padded', [True, False])
def test_state_holds_the_last_segment(is_padded, qkv):
  attention = ATTENTIONS[0]
  ids = jnp.array(
    [1] * 4 + [2] * 6 + [0] * 2 if is_padded else [1] * 4 + [2] * 8
  )
  end = 10 if is_padded else 12
  _, expected = attention.prefill(*at(qkv, slice(4, end)))
  _, state = attention.prefill(
    *qkv,
    segment_ids=jnp.broadcast_to(ids, (2, 1, 12)),
    mask=(jnp.arange(12) < end)[None, None, None, None],
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state,
    expected,
  )


def test_state_does_not_grow_with_the_prompt(qkv):
  attention = ATTENTIONS[0]
  _, short = attention.prefill(*at(qkv, slice(0, 3)))
  _, long = attention.prefill(*qkv)
  empty = attention.init_state((2, 1), heads=2, depth=8)
  assert jax.tree.map(jnp.shape, short) == jax.tree.map(jnp.shape, long)
  assert jax.tree.map(jnp.shape, short) == jax.tree.map(jnp.shape, empty)


def test_steps_scan_over_tokens(qkv):
  attention = ATTENTIONS[0]
  tokens = [jnp.moveaxis(x, -3, 0)[..., None, :, :] for x in qkv]

  def body(state, token):
    out, state = attention.step(*token, state)
    return state, out

  state = attention.init_state((2, 1), heads=2, depth=8)
  _, outs = jax.lax.scan(body, state, tokens)
  full = attention(*qkv, is_causal=True)
  out = jnp.moveaxis(outs[..., 0, :, :], 0, -3)
  np.testing.assert_allclose(out, full, atol=1e-5, rtol=1e-5)


def test_narrow_tokens_keep_a_float32_state(qkv):
  attention = ATTENTIONS[0]
  out, state = attention.prefill(*(x.astype(jnp.bfloat16) for x in qkv))
  assert out.dtype == jnp.bfloat16
  assert all(x.dtype == jnp.float32 for x in state)
  token = [x.astype(jnp.bfloat16) for x in at(qkv, slice(0, 1))]
  out, state = attention.step(*token, state)
  assert out.dtype == jnp.bfloat16
  assert all(x.dtype == jnp.float32 for x in state)


def test_bidirectional_attention_has_no_state(qkv):
  attention = make_fast_softmax_attention(unidirectional=False)
  with pytest.raises(ValueError, match='has no decode state'):
    attention.prefill(*qkv)


def test_step_takes_one_token(qkv):
  attention = ATTENTIONS[0]
  state = attention.init_state((2, 1), heads=2, depth=8)
  with pytest.raises(ValueError, match='step takes one token'):
    attention.step(*qkv, state)


def test_state_of_another_batch_is_refused(qkv):
  attention = ATTENTIONS[0]
  state = attention.init_state((3, 1), heads=2, depth=8)
  with pytest.raises(ValueError, match='the state is of'):
    attention.step(*at(qkv, slice(0, 1)), state)
