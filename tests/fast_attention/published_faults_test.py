"""What published implementations get wrong, one test each.

6, 8 and 9 are in projections_test (QR signs), attention_test (narrow types)
and attention_test (a single query against cached keys).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)

ATTENTION = make_fast_softmax_attention(nb_features=16)


@pytest.fixture
def qkv(normal):
  return tuple(normal(3, 2, 40, 2, 8))


def test_1_bias_and_dropout_are_not_ignored(qkv):
  """1. Masks, bias, dropout accepted and ignored."""
  with pytest.raises(ValueError, match='bias'):
    ATTENTION(*qkv, bias=jnp.zeros(()))
  with pytest.raises(ValueError, match='dropout'):
    ATTENTION(*qkv, dropout_rate=0.5, dropout_rng=jax.random.key(0))


@pytest.mark.parametrize(
  'attention', [ATTENTION, make_fast_generalized_attention()]
)
def test_1_padding_leaves_numerator_and_denominator(attention, qkv):
  """1. Padding stays in the denominator."""
  q, k, v = qkv
  mask = (jnp.arange(40) < 25)[None, None, None]
  out = attention(q, k, v, mask=mask)
  np.testing.assert_allclose(out, attention(q, k[:, :25], v[:, :25]), atol=1e-6)


def test_2_matrices_do_not_depend_on_the_data(qkv):
  """2. Redraw seeded by the queries: not batch independent, not causal."""
  q, k, v = qkv
  out = ATTENTION(q, k, v, is_causal=True)
  other = ATTENTION(q.at[1].multiply(3), k, v, is_causal=True)
  np.testing.assert_array_equal(out[0], other[0])
  np.testing.assert_array_equal(ATTENTION(q, k, v, is_causal=True), out)


def test_2_evaluation_does_not_redraw():
  """2. Redraw fires at evaluation."""
  step_rng = jax.random.key(5)
  training = ATTENTION.projection_rng(2, step_rng)
  evaluation = ATTENTION.projection_rng(2)
  assert training != evaluation
  assert evaluation == ATTENTION.projection_rng(2)


def test_3_layers_and_heads_have_their_own_matrices():
  """3. Every layer and head shares one matrix."""
  matrices = jnp.concatenate(
    [ATTENTION.projection(ATTENTION.projection_rng(n), 2, 8) for n in range(2)]
  )
  for i in range(4):
    for j in range(i):
      assert not np.allclose(matrices[i], matrices[j])


def test_4_last_key_leaves_earlier_outputs(qkv):
  """4. Key stabiliser over the whole length."""
  q, k, v = qkv
  out = ATTENTION(q, k, v, is_causal=True)
  other = ATTENTION(q, k.at[:, -1].multiply(1e4), v, is_causal=True)
  np.testing.assert_array_equal(out[:, :-1], other[:, :-1])


@pytest.mark.parametrize('std', [1.5, 3.0, 10.0])
def test_5_rows_sum_to_one_at_every_norm(std, qkv):
  """5. An absolute guard: rows sum to 0.006 at a deviation of 1.5."""
  q, k, v = qkv
  out = ATTENTION(std * q, std * k, jnp.ones_like(v))
  np.testing.assert_allclose(out, 1, atol=1e-5)


def test_7_uneven_keys_leave_gradients_exact(
  qkvg, run_with_gradients, run_reference, assert_close
):
  """7. Backward states by subtraction lose what large keys covered."""
  q, k, v, g = qkvg(1, 600, 1, 8)
  sizes = jnp.where(jnp.arange(600) % 256 < 32, 3.0, 0.1)
  inputs = (q, k * sizes[None, :, None, None], v, g)
  actual = run_with_gradients(ATTENTION, inputs, is_causal=True)
  assert_close(actual, run_reference(ATTENTION, inputs, is_causal=True))
