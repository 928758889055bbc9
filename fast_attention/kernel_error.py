"""How far the attention of random features is from exact softmax attention.

Axes: B batch, L queries, S keys, H heads, J key/value heads, K head width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fast_attention import arguments, reference


class KernelError(NamedTuple):
  """Mean over rows of the L1 distance to the exact row, from 0 to 2.

  Attributes:
    error_H: of the attention.
    uniform_H: of equal weights on all visible keys: what attention would be
      worth that ignores queries and keys. An error above it is no estimate.
  """

  error_H: jax.Array
  uniform_H: jax.Array


def kernel_error(
  attention: Any,
  query: jax.Array,
  key: jax.Array,
  *,
  is_causal: bool = False,
  mask: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  rng: jax.Array | None = None,
  stats: Any = None,
) -> KernelError:
  """Compares an attention with softmax(q.k / sqrt(K)), row by row.

  Quadratic: the attention is given unit vectors as values, so that its outputs
  are its weights.

  Args:
    attention: a FastAttention, or None for exact attention (error 0).
    query: `[batch..., L, H, K]`.
    key: `[batch..., L, J, K]`, J divides H.
    is_causal: as in a call of the attention, like all that follows.
    mask: `[batch..., 1, 1, L]`; rows of masked positions are left out.
    segment_ids: `[batch..., L]`.
    rng: the key of the projection.
    stats: of queries and keys, if the attention needs them.

  Returns:
    KernelError, float32 `[H]` each.

  Example:

    error, uniform = kernel_error(attention, query, key, is_causal=True)
  """
  *batch_shape, L, J, _ = key.shape
  valid_BL = arguments.key_padding(mask, batch_shape, L)
  run_BL = None
  if segment_ids is not None:
    run_BL = reference.run_ids(segment_ids.reshape(-1, L))
  visible_BLS = reference.visible_keys(
    L, L, causal=is_causal, valid_BS=valid_BL, run_BL=run_BL
  )
  exact_BLHS, uniform_BLHS = _exact(query, key, visible_BLS)
  approximate_BLHS = exact_BLHS
  if attention is not None:
    value_LS = jnp.eye(L, dtype=jnp.float32)
    value = jnp.broadcast_to(
      jnp.expand_dims(value_LS, (*range(len(batch_shape)), -2)),
      (*batch_shape, L, J, L),
    )
    approximate_BLHS = attention(
      query,
      key,
      value,
      mask=mask,
      is_causal=is_causal,
      segment_ids=segment_ids,
      rng=rng,
      stats=stats,
    ).reshape(exact_BLHS.shape)

  counted_BL = jnp.any(visible_BLS, axis=-1)
  if valid_BL is not None:
    counted_BL = counted_BL & valid_BL
  counted_BL1 = jnp.broadcast_to(counted_BL, exact_BLHS.shape[:2])[..., None]

  def mean_distance(x_BLHS):
    distance_BLH = jnp.sum(jnp.abs(x_BLHS - exact_BLHS), axis=-1)
    total_H = jnp.sum(jnp.where(counted_BL1, distance_BLH, 0), axis=(0, 1))
    return total_H / jnp.maximum(jnp.sum(counted_BL1), 1)

  return KernelError(
    mean_distance(approximate_BLHS), mean_distance(uniform_BLHS)
  )


def _exact(query, key, visible_BLS):
  """Softmax attention and equal weights, over the visible keys."""
  query_BLHK, key_BSJK = (
    x.reshape(-1, *x.shape[-3:]).astype(jnp.float32) for x in (query, key)
  )
  H, J = query_BLHK.shape[2], key_BSJK.shape[2]
  logits_BLHS = jnp.einsum(
    'blhk,bshk->blhs',
    query_BLHK,
    jnp.repeat(key_BSJK, H // J, axis=2),
    precision='highest',
  )
  visible_BLHS = jnp.broadcast_to(visible_BLS[:, :, None], logits_BLHS.shape)
  return (
    jax.nn.softmax(x, axis=-1, where=visible_BLHS)
    for x in (logits_BLHS * query.shape[-1] ** -0.5, 0 * logits_BLHS)
  )
