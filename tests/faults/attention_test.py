"""Attention under inputs that break it: for every kind, with gradients.

More of the same: extreme inputs, masked rows, causality by chunk and packing,
and errors against a float64 reference at L up to 8192 in
tests/fast_attention/linear_test.py; alone, padded and packed through a whole
model in tests/protein_lm/models_test.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm.exact_attention import exact_attention

ATTENTIONS = {
  'exact': exact_attention(),
  'softmax': make_fast_softmax_attention(nb_features=16),
  'relu': make_fast_generalized_attention(nb_features=16),
}
LENGTH = 70
SEGMENT_IDS = np.repeat([[1, 2, 0]], [30, 33, 7], axis=1)


def inputs(length=LENGTH):
  return np.random.default_rng(0).normal(size=(3, 1, length, 2, 8))


@functools.cache
def with_gradients(name, is_causal):
  """q, k, v -> output and gradients, packed, features drawn by the step."""

  def run(q, k, v):
    def loss(*qkv):
      out = ATTENTIONS[name](
        *qkv,
        segment_ids=jnp.asarray(SEGMENT_IDS[:, : q.shape[1]]),
        is_causal=is_causal,
        rng=jax.random.key(1),
        deterministic=False,
      )
      return jnp.sum(jnp.cos(jnp.arange(out.size)) * out.ravel()), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads

  return jax.jit(run)


@pytest.mark.parametrize('is_causal', [True, False])
@pytest.mark.parametrize('name', ATTENTIONS)
def test_norms_of_1000_and_equal_keys_are_finite(name, is_causal):
  q, k, v = np.float32(inputs())
  equal = np.broadcast_to(k[:, :1], k.shape)
  for case in ((1000 * q, 1000 * k, v), (q, equal, v), (0 * q, 0 * k, v)):
    for result in with_gradients(name, is_causal)(*case):
      assert np.all(np.isfinite(result))


@pytest.mark.parametrize('name', ATTENTIONS)
def test_a_single_token_gives_its_value(name):
  q, k, v = np.float32(np.abs(inputs(1)))
  out, *grads = with_gradients(name, True)(q, k, v)
  np.testing.assert_allclose(out, v, rtol=1e-3)
  assert all(np.all(np.isfinite(x)) for x in grads)


@pytest.mark.parametrize('name', ATTENTIONS)
def test_later_tokens_of_any_size_leave_earlier_outputs_bit_equal(name):
  """In a packed row, with the features of a training step."""
  q, k, v = np.float32(inputs())
  run = with_gradients(name, True)
  before = run(q, k, v)[0]
  for cut in (1, 29, 30, 50, 69):
    for factor in (1e4, -1e4):
      scale = np.where(np.arange(LENGTH) < cut, 1, factor)
      scale = np.float32(scale)[None, :, None, None]
      after = run(q * scale, k * scale, v * scale)[0]
      np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
