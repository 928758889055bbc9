"""Exact attention against its definition, one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm.exact_attention import exact_attention


def _inputs(rng, batch=2, length=7):
  return jax.random.normal(rng, (3, batch, length, 2, 4))


def _by_hand(query, key, value, visible):
  """visible(b, t, s) says whether query t of row b sees key s."""
  out = np.zeros(value.shape)
  for b, t, h in np.ndindex(query.shape[:3]):
    seen = [s for s in range(key.shape[1]) if visible(b, t, s)]
    if seen:
      logits = np.array(key)[b, seen, h] @ np.array(query)[b, t, h] / 2.0
      weights = np.exp(logits - logits.max())
      out[b, t, h] = weights / weights.sum() @ np.array(value)[b, seen, h]
  return out


@pytest.mark.parametrize('causal', [False, True])
def test_attends_within_runs_of_equal_ids(rng, causal):
  query, key, value = _inputs(rng)
  ids = np.array([[1, 1, 2, 2, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
  runs = np.array([[0, 0, 1, 1, 2, 2, 3], [0] * 7])
  found = exact_attention()(
    query, key, value, segment_ids=jnp.array(ids), is_causal=causal
  )
  expected = _by_hand(
    query,
    key,
    value,
    lambda b, t, s: runs[b, t] == runs[b, s] and (s <= t or not causal),
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_query_that_sees_no_key_gives_zeros_and_finite_gradients(rng):
  inputs = _inputs(rng)
  mask = jnp.zeros((2, 1, 1, 7), bool)

  def loss(inputs):
    return jnp.sum(exact_attention()(*inputs, mask=mask) ** 2)

  value, grads = jax.value_and_grad(loss)(inputs)
  assert value == 0
  np.testing.assert_array_equal(grads, 0)


def test_bfloat16_in_bfloat16_out(rng):
  query, key, value = _inputs(rng).astype(jnp.bfloat16)
  assert exact_attention()(query, key, value).dtype == jnp.bfloat16


def test_dropout_keeps_the_expected_sum_of_weights(rng):
  query, key, _ = _inputs(rng, batch=64)
  out = exact_attention()(
    query,
    key,
    jnp.ones_like(key),
    deterministic=False,
    dropout_rate=0.5,
    dropout_rng=rng,
  )
  np.testing.assert_allclose(out.mean(), 1.0, atol=0.05)
  assert out.std() > 0.1


def test_equal_arguments_make_equal_hashable_values():
  assert exact_attention() == exact_attention()
  assert hash(exact_attention()) == hash(exact_attention())


def test_long_rows_form_no_weights_unless_they_are_dropped(rng):
  def forms_weights(**options):
    lowered = jax.jit(
      lambda x: exact_attention()(*x, is_causal=True, **options)
    ).lower(_inputs(rng, length=300))
    return 'x300x300xf32' in lowered.as_text()

  assert not forms_weights()
  assert forms_weights(dropout_rate=0.5, dropout_rng=rng, deterministic=False)


@pytest.mark.parametrize(
  'options, said',
  [
    ({'mask': np.ones((2, 1, 1, 7), bool)}, 'does not do a mask'),
    (
      {'dropout_rate': 0.5, 'deterministic': False},
      r'does not do attention dropout \(0.5\)',
    ),
  ],
)
def test_blocks_refuse_what_they_cannot_do(rng, options, said):
  with pytest.raises(ValueError, match=said):
    exact_attention(implementation='blockwise')(*_inputs(rng), **options)


def test_cudnn_refuses_segments(rng):
  with pytest.raises(ValueError, match='does not do segments'):
    exact_attention(implementation='cudnn')(
      *_inputs(rng), segment_ids=jnp.ones((2, 7), int)
    )


def test_an_unknown_implementation_is_refused():
  with pytest.raises(ValueError, match="blockwise, cudnn, got 'flash'"):
    exact_attention(implementation='flash')


def test_without_the_kernel_the_choice_falls_to_blocks(rng, monkeypatch):
  monkeypatch.setattr(
    'protein_lm.exact_attention._suits_cudnn', lambda *_: True
  )
  inputs = _inputs(rng, length=130)
  found = exact_attention()(*inputs, is_causal=True)  # no cuDNN on CPU
  expected = exact_attention(implementation='plain')(*inputs, is_causal=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)
