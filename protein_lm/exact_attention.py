"""Exact softmax attention, the reference every fast attention stands beside.

Axes: B batch, L query length, S key length, H heads, K head width.
"""

import dataclasses
from typing import Literal, NamedTuple, get_args

import gin
import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import residuals
from fast_attention.reference import run_ids
from protein_lm import blockwise_attention

Implementation = Literal['auto', 'plain', 'blockwise', 'cudnn']

_LEAST_BLOCKWISE = 128  # below, L x L is smaller than what blocks carry


class KeyValueCache(NamedTuple):
  """The past of a causal exact attention, with room for S tokens."""

  key_BHSK: jax.Array
  value_BHSK: jax.Array


@dataclasses.dataclass(frozen=True)
class ExactAttention:
  """softmax(q k^T / sqrt(K)) v over the visible keys; see exact_attention."""

  unidirectional: bool | None = None
  implementation: Implementation = 'auto'
  supports_dropout = True

  def __post_init__(self):
    if self.implementation not in get_args(Implementation):
      raise ValueError(
        'exact_attention.implementation must be one of '
        f'{", ".join(get_args(Implementation))}, got {self.implementation!r}.'
      )

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

    Raises:
      ValueError: the implementation that was asked for cannot do this.
    """
    del rng, stats
    causal = is_causal if self.unidirectional is None else self.unidirectional
    if deterministic:
      dropout_rate = 0.0
    form = self._form(query, key, segment_ids, mask, dropout_rate)
    if form == 'cudnn':
      try:
        out_BLHK = jax.nn.dot_product_attention(
          query, key, value, is_causal=causal, implementation='cudnn'
        )
      except (RuntimeError, ValueError):
        if self.implementation == 'cudnn':
          raise
        form = 'blockwise'  # This GPU or this cuDNN has no such kernel.
    if form == 'blockwise':
      out_BLHK = blockwise_attention.blockwise_attention(
        query,
        key,
        value,
        causal=causal,
        segment_ids=segment_ids,
        precision=precision,
      )
    elif form == 'plain':
      visible = visible_keys(query.shape[1], key.shape[1], causal, segment_ids)
      if mask is not None:
        visible = mask if visible is None else visible & mask
      out_BLHK = plain_attention(
        query, key, value, visible, dropout_rate, dropout_rng, precision
      )
    return out_BLHK.astype(value.dtype if dtype is None else dtype)

  def init_state(self, batch_size, heads, depth, room, dtype=jnp.float32):
    """The cache before the first token.

    Args:
      batch_size: B.
      heads: H.
      depth: K.
      room: tokens that it can hold, S.
      dtype: of keys and values.

    Returns:
      KeyValueCache.
    """
    shape = (batch_size, heads, room, depth)
    return KeyValueCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def prefill(self, query, key, value, room):
    """Causal attention over a prompt, and the cache that holds it.

    Args:
      query: [B, L, H, K]; what is padding must stand on the right.
      key: [B, L, H, K].
      value: [B, L, H, K].
      room: tokens that the cache can hold, at least L.

    Returns:
      [B, L, H, K] and the KeyValueCache. Padding is in it too; `step` writes
      over it before it is read.
    """
    widths = ((0, 0), (0, 0), (0, room - key.shape[1]), (0, 0))
    cache = KeyValueCache(
      *(jnp.pad(x.swapaxes(1, 2), widths) for x in (key, value))
    )
    return self(query, key, value, is_causal=True), cache

  def step(self, query, key, value, state, position):
    """One token: its key enters the cache, its query reads what is there.

    Args:
      query: [B, 1, H, K].
      key: [B, 1, H, K].
      value: [B, 1, H, K].
      state: the KeyValueCache of the tokens before.
      position: [] int, how many these are.

    Returns:
      [B, 1, H, K] and the next cache.
    """
    state = KeyValueCache(
      *(
        lax.dynamic_update_slice_in_dim(
          old_BHSK, new_B1HK.swapaxes(1, 2), position, axis=2
        )
        for old_BHSK, new_B1HK in zip(state, (key, value), strict=True)
      )
    )
    compute_dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits_BHS = jnp.einsum(
      'bhk,bhsk->bhs',
      query[:, 0],
      state.key_BHSK,
      preferred_element_type=compute_dtype,
    )
    logits_BHS *= query.shape[-1] ** -0.5
    is_past_S = jnp.arange(logits_BHS.shape[-1]) <= position
    logits_BHS = jnp.where(
      is_past_S[None, None], logits_BHS, jnp.finfo(compute_dtype).min
    )
    weights_BHS = jax.nn.softmax(logits_BHS, axis=-1).astype(value.dtype)
    out_BHK = jnp.einsum('bhs,bhsk->bhk', weights_BHS, state.value_BHSK)
    return out_BHK[:, None], state

  def _form(self, query, key, segment_ids, mask, dropout_rate):
    """What computes it: 'plain', 'blockwise' or 'cudnn'."""
    special = None
    if mask is not None:
      special = 'a mask'
    elif dropout_rate > 0:
      special = f'attention dropout ({dropout_rate})'
    elif query.shape[1] != key.shape[1]:
      special = f'{query.shape[1]} queries and {key.shape[1]} keys'
    elif self.implementation == 'cudnn' and segment_ids is not None:
      special = 'segments'
    if self.implementation == 'auto':
      if special or query.shape[1] < _LEAST_BLOCKWISE:
        return 'plain'
      return 'cudnn' if _suits_cudnn(query, segment_ids) else 'blockwise'
    if special and self.implementation != 'plain':
      raise ValueError(
        f'exact_attention.implementation={self.implementation!r} does not do '
        f"{special}; leave it at 'auto'."
      )
    return self.implementation


def _suits_cudnn(query, segment_ids):
  """Whether cuDNN's kernel is to be had: half precision, and no segments."""
  return (
    segment_ids is None
    and jax.default_backend() == 'gpu'
    and 'NVIDIA' in jax.devices()[0].device_kind
    and query.dtype in (jnp.bfloat16, jnp.float16)
    and query.shape[-1] % 8 == 0
    and query.shape[-1] <= 128
  )


def plain_attention(
  query_BLHK,
  key_BSHK,
  value_BSHK,
  visible,
  dropout_rate,
  dropout_rng,
  precision,
):
  """The definition: L x S weights are formed, masked, dropped.

  Args:
    query_BLHK: queries.
    key_BSHK: keys.
    value_BSHK: values.
    visible: bool, broadcastable to [B, H, L, S]; None is all.
    dropout_rate: share of the weights dropped.
    dropout_rng: key of that dropout.
    precision: of the two products.

  Returns:
    [B, L, H, K]; zeros for a query that sees no key.
  """
  compute_dtype = jnp.promote_types(query_BLHK.dtype, jnp.float32)
  logits_BHLS = jnp.einsum(
    'blhk,bshk->bhls',
    query_BLHK,
    key_BSHK,
    precision=precision,
    preferred_element_type=compute_dtype,
  )
  logits_BHLS *= query_BLHK.shape[-1] ** -0.5
  if visible is not None:
    visible = jnp.broadcast_to(visible, logits_BHLS.shape)
    logits_BHLS = jnp.where(visible, logits_BHLS, jnp.finfo(compute_dtype).min)
  weights_BHLS = jax.nn.softmax(logits_BHLS, axis=-1)
  if visible is not None:
    weights_BHLS = jnp.where(visible, weights_BHLS, 0)
  if dropout_rate > 0:
    keep = jax.random.bernoulli(
      dropout_rng, 1 - dropout_rate, weights_BHLS.shape
    )
    weights_BHLS = jnp.where(keep, weights_BHLS / (1 - dropout_rate), 0)
  out_BLHK = jnp.einsum(
    'bhls,bshk->blhk',
    weights_BHLS.astype(value_BSHK.dtype),
    value_BSHK,
    precision=precision,
  )
  return residuals.named(out_BLHK)


@gin.configurable
def exact_attention(
  unidirectional: bool | None = None, implementation: Implementation = 'auto'
):
  """Exact softmax attention: O(L^2) in time, O(L) in memory.

  Args:
    unidirectional: True causal, False not, None as the model says.
    implementation: 'auto' picks; 'plain' forms all weights at once; 'blockwise'
      never does (no masks, no attention dropout); 'cudnn' is the kernel of an
      NVIDIA GPU, for bfloat16 without segments.

  Returns:
    A callable for `FlaxModel.attention_fn`.

  Raises:
    ValueError: an unknown implementation.
  """
  return ExactAttention(unidirectional, implementation)


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
