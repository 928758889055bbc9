"""Exact softmax attention, the reference every fast attention stands beside.

Axes: B batch, L query length, S key length, H heads, K head width.
"""

import dataclasses

import gin
import jax
import jax.numpy as jnp

from fast_attention.reference import run_ids


@dataclasses.dataclass(frozen=True)
class ExactAttention:
  """softmax(q k^T / sqrt(K)) v over the visible keys; see exact_attention."""

  unidirectional: bool | None = None
  supports_dropout = True

  def __call__(
    self,
    query,
    key,
    value,
    *,
    segment_ids=None,
    mask=None,
    is_causal=False,
    rng=None,
    deterministic=True,
    dropout_rate=0.0,
    dropout_rng=None,
    dtype=None,
    precision=None,
    stats=None,
  ):
    """Attends within segments, and to the past alone if causal.

    Args:
      query: [B, L, H, K].
      key: [B, S, H, K].
      value: [B, S, H, K].
      segment_ids: [B, L] int; a segment is a maximal run of equal ids.
      mask: boolean, broadcastable to [B, H, L, S]; False hides a key.
      is_causal: position t sees s <= t.
      rng: ignored, there is no projection to draw.
      deterministic: no dropout.
      dropout_rate: share of attention weights dropped in training.
      dropout_rng: key of that dropout.
      dtype: dtype of the result; the value's if None.
      precision: of the two products.
      stats: ignored, there are no feature statistics.

    Returns:
      [B, L, H, K]. A query that sees no key gives zeros.
    """
    del rng, stats
    causal = is_causal if self.unidirectional is None else self.unidirectional
    visible = visible_keys(query.shape[1], key.shape[1], causal, segment_ids)
    if mask is not None:
      visible = mask if visible is None else visible & mask
    compute_dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits_BHLS = jnp.einsum(
      'blhk,bshk->bhls',
      query,
      key,
      precision=precision,
      preferred_element_type=compute_dtype,
    )
    logits_BHLS *= query.shape[-1] ** -0.5
    if visible is not None:
      visible = jnp.broadcast_to(visible, logits_BHLS.shape)
      logits_BHLS = jnp.where(
        visible, logits_BHLS, jnp.finfo(compute_dtype).min
      )
    weights_BHLS = jax.nn.softmax(logits_BHLS, axis=-1)
    if visible is not None:
      weights_BHLS = jnp.where(visible, weights_BHLS, 0)
    if dropout_rate > 0 and not deterministic:
      keep = jax.random.bernoulli(
        dropout_rng, 1 - dropout_rate, weights_BHLS.shape
      )
      weights_BHLS = jnp.where(keep, weights_BHLS / (1 - dropout_rate), 0)
    out_BLHK = jnp.einsum(
      'bhls,bshk->blhk',
      weights_BHLS.astype(value.dtype),
      value,
      precision=precision,
    )
    return out_BLHK.astype(value.dtype if dtype is None else dtype)


@gin.configurable
def exact_attention(unidirectional: bool | None = None):
  """Exact softmax attention, O(L^2) in time and memory.

  Args:
    unidirectional: True causal, False not, None as the model says.

  Returns:
    A callable for `FlaxModel.attention_fn`.
  """
  return ExactAttention(unidirectional=unidirectional)


def visible_keys(query_len, key_len, causal, segment_ids=None):
  """Which keys a query sees: [1 or B, 1, L, S] bool, or None for all."""
  visible = None
  if causal:
    visible = jnp.tri(query_len, key_len, key_len - query_len, dtype=bool)
    visible = visible[None, None]
  if segment_ids is not None:
    run_BL = run_ids(segment_ids)
    same = (run_BL[:, :, None] == run_BL[:, None, :])[:, None]
    visible = same if visible is None else same & visible
  return visible
