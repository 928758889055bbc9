"""The distance of fast from exact attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import make_fast_softmax_attention
from fast_attention.kernel_error import kernel_error


def test_exact_attention_has_none_and_equal_keys_leave_uniform_none(qkvg):
  q, k, _, _ = qkvg(2, 9, 2, 8)
  error, uniform = kernel_error(None, q, k)
  np.testing.assert_array_equal(error, 0)
  assert np.all(uniform > 0.1)
  _, uniform = kernel_error(None, q, jnp.broadcast_to(k[:, :1], k.shape))
  np.testing.assert_allclose(uniform, 0, atol=1e-6)


def test_more_features_have_less_error(qkvg):
  q, k, _, _ = qkvg(2, 20, 2, 8, std=0.7)
  errors = [
    kernel_error(
      make_fast_softmax_attention(nb_features=M), q, k
    ).error_H.mean()
    for M in (8, 256, 4096)
  ]
  assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


@pytest.mark.parametrize(
  'is_causal', [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_equals_the_distance_written_out(is_causal, normal):
  """Packed, padded, and with queries that share a key head."""
  q, k = normal(2, 9, 4, 8), normal(2, 9, 2, 8)
  ids = jnp.array([[1] * 4 + [2] * 5, [1] * 9])
  mask = jnp.stack([jnp.arange(9) < 9, jnp.arange(9) < 6])[:, None, None]
  attention = make_fast_softmax_attention(nb_features=16)
  kwargs = dict(is_causal=is_causal, mask=mask, segment_ids=ids)
  error, _ = kernel_error(attention, q, k, **kwargs)
  rows = []
  for b, (start, stop) in [(0, (0, 4)), (0, (4, 9)), (1, (0, 6))]:
    for t in range(start, stop):
      end = t + 1 if is_causal else stop
      keys = jnp.repeat(k[b, start:end], 2, axis=1)
      logits = jnp.einsum('hk,shk->hs', q[b, t], keys) / 8**0.5
      weights = [
        attention(
          q[b : b + 1, t : t + 1],
          k[b : b + 1, start:end],
          jnp.eye(end - start)[None, :, None].repeat(2, 2),
        )[0, 0]
      ]
      rows.append(jnp.abs(weights[0] - jax.nn.softmax(logits)).sum(-1))
  np.testing.assert_allclose(error, jnp.mean(jnp.stack(rows), 0), rtol=1e-4)
