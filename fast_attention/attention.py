"""FastAttention: the callable, what it honours and what it refuses.

Axes: B batch (all batch axes merged), L queries, S keys, H query heads,
J key/value heads, K head width, E value width, M features.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fast_attention import (
  arguments,
  decoding,
  estimator,
  kernels,
  linear,
  projections,
  residuals,
  sequence_parallel,
)
from fast_attention import features as features_lib
from fast_attention import lower_variance as lower_variance_lib


@dataclasses.dataclass(frozen=True, repr=False)
class FastAttention(decoding.Decoder):
  """Attention with a feature map, in linear time.

  out_t = sum_s phi(q_t).phi(k_s) v_s / sum_s phi(q_t).phi(k_s)

  A value: it holds no arrays, prints, compares and hashes, so that equal
  attentions share one compiled function. Make it with
  `make_fast_softmax_attention` or `make_fast_generalized_attention`, which
  document and check the attributes. One is set by `dataclasses.replace` alone:

  Attributes:
    keep_states: keeps the state before each chunk of C positions for the
      backward pass of a causal or segmented call, which computes it again
      otherwise. States are E / C times the features of all keys.

  Example:

    attention = make_fast_softmax_attention(nb_features=64)
    out = attention(query, key, value, is_causal=True)  # [B, L, H, K]
  """

  features_type: str
  qkv_dim: int | None = None
  nb_features: int = 256
  ortho_features: bool = True
  renormalize_attention: bool = True
  numerical_stabilizer: float = 0.0
  ortho_scaling: float = 0.0
  redraw_features: bool = False
  unidirectional: bool | None = None
  kernel_fn: kernels.KernelFn | None = None
  kernel_epsilon: float = 0.0
  lax_scan_unroll: int | None = None
  seed: int = 0
  implementation: str = 'auto'
  keep_states: bool = False

  def __post_init__(self):
    arguments.check_fields(self)

  def __repr__(self) -> str:
    """The fields that differ from their defaults."""
    parts = []
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value != field.default:
        text = (
          kernels.kernel_name(value)
          if field.name == 'kernel_fn'
          else repr(value)
        )
        parts.append(f'{field.name}={text}')
    return f'FastAttention({", ".join(parts)})'

  def __call__(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Any = None,
    is_causal: bool = False,
    *,
    segment_ids: jax.Array | None = None,
    rng: jax.Array | None = None,
    stats: Any = None,
    projection: jax.Array | None = None,
    axis_name: str | None = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Any = None,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
  ) -> jax.Array:
    """Attention of queries over keys.

    Every argument Flax may send is named: linen drops those that are not.

    Args:
      query: `[batch..., L, H, K]`, any number of batch axes.
      key: `[batch..., S, J, K]`; J divides H (multi-query attention).
      value: `[batch..., S, J, E]`.
      bias: refused.
      mask: key padding, `[batch..., 1, 1, S]`, bool or 0/1; True is seen.
      broadcast_dropout: without effect, as there is no dropout.
      dropout_rng: without effect.
      dropout_rate: refused if positive, unless deterministic.
      deterministic: whether dropout is off.
      dtype: of the output; default that of `value`.
      precision: of every product except the projection's, which is highest.
      module: refused: weights that are never formed cannot be sown.
      promote_dtype: applied to query, key and value first, if given.
      is_causal: whether query t sees keys up to t only. `unidirectional=True`
        makes every call causal. A causal query of length 1 with more keys is
        the last one: it sees all unmasked keys (cached decoding).
      segment_ids: `[batch..., L]` ints; a position sees its own maximal run
        of equal ids.
      rng: the key the projection is drawn from, see `projection_rng`; default
        the fixed one of `seed`.
      stats: what `measure_stats` gave, or running averages of it; needed by
        features that use statistics (`needs_stats`), refused by others.
      projection: `[J, M, K]`, the matrices of these heads, instead of those
        drawn from `rng`: what `projection` gave for all heads, of which this
        call has some.
      axis_name: mesh axis over which the length is split, inside
        `jax.shard_map`: the call is of one shard of consecutive positions, as
        many queries as keys.
      force_fp32_for_softmax: always so.
      einsum_dot_general: refused, like the next two: there are no such
        products.
      qk_attn_weights_einsum: refused.
      attn_weights_value_einsum: refused.

    Returns:
      `[batch..., L, H, E]`. Queries that see no key give zeros.

    Raises:
      ValueError: an argument cannot be honoured, or shapes do not fit.
    """
    del broadcast_dropout, dropout_rng, force_fp32_for_softmax
    arguments.refuse(
      bias=bias,
      dropout_rate=0.0 if deterministic else dropout_rate,
      module=module,
      einsums=(
        einsum_dot_general,
        qk_attn_weights_einsum,
        attn_weights_value_einsum,
      ),
    )
    arguments.check_stats(self, stats)
    if promote_dtype is not None:
      query, key, value = promote_dtype((query, key, value), dtype=dtype)
    return self._attend(
      query,
      key,
      value,
      mask=mask,
      segment_ids=segment_ids,
      causal=self._is_causal(is_causal),
      projection=projection,
      rng=rng,
      stats=stats,
      dtype=dtype,
      precision=precision,
      axis_name=axis_name,
    )

  def _is_causal(self, is_causal: bool) -> bool:
    if self.unidirectional is None:
      return is_causal
    if is_causal and not self.unidirectional:
      raise ValueError(
        'is_causal=True contradicts unidirectional=False: leave unidirectional '
        'unset (None) to follow the model.'
      )
    return self.unidirectional

  def _attend(
    self,
    query,
    key,
    value,
    *,
    mask,
    segment_ids,
    causal,
    projection,
    rng,
    stats,
    dtype=None,
    precision=None,
    axis_name=None,
  ):
    arguments.check_shapes(query, key, value, self.qkv_dim)
    arguments.check_segment_ids(segment_ids, query, key)
    num_queries, num_keys = query.shape[-3], key.shape[-3]
    if axis_name is not None:
      arguments.check_shards(num_queries, num_keys, axis_name)
    if causal and num_queries != num_keys:
      arguments.check_last_query(num_queries, num_keys)
      causal = False  # The last query sees all unmasked keys.

    *batch_shape, L, H, K = query.shape
    J = key.shape[-2]
    out_dtype = value.dtype if dtype is None else dtype
    if projection is None:
      projection = self.projection(rng, J, K)
    query, key, rows = estimator.prepare(
      self.features_type, query, key, projection, stats
    )
    if H > J:  # Each key head serves H / J query heads in a row.
      key, value = (jnp.repeat(x, H // J, axis=-2) for x in (key, value))
      rows = jax.tree.map(lambda x: jnp.repeat(x, H // J, axis=0), rows)
    if segment_ids is not None:
      segment_ids = segment_ids.reshape(-1, L)
    attend = linear.linear_attention
    if axis_name is not None:
      attend = functools.partial(sequence_parallel.linear_attention, axis_name)
    out_BLHE = attend(
      linear.Linear(
        self._feature_map,
        causal,
        self.implementation,
        self.lax_scan_unroll,
        precision,
        keep_states=self.keep_states,
      ),
      *(x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)),
      rows,
      valid_BS=arguments.key_padding(mask, batch_shape, num_keys),
      segment_ids_BL=segment_ids,
    )
    out = out_BLHE.reshape(*batch_shape, *out_BLHE.shape[1:])
    return out.astype(out_dtype)

  @property
  def _feature_map(self) -> features_lib.FeatureMap:
    kind = 'kernel'
    if self.features_type in estimator.SOFTMAX_TYPES:
      is_waves = self.features_type == 'trigonometric'
      kind = 'trigonometric' if is_waves else 'positive'
    return features_lib.FeatureMap(
      kind=kind,
      kernel_fn=self.kernel_fn,
      kernel_epsilon=self.kernel_epsilon,
      numerical_stabilizer=self.numerical_stabilizer,
      renormalize=self.renormalize_attention,
    )

  # Statistics of queries and keys, which some features need.

  @property
  def needs_stats(self) -> bool:
    """Whether a call needs `stats`."""
    return estimator.needs_statistics(self.features_type)

  def measure_stats(
    self,
    query: jax.Array,
    key: jax.Array,
    *,
    mask: jax.Array | None = None,
  ) -> lower_variance_lib.Statistics:
    """Means and second moments of queries and keys, without gradient.

    They choose among unbiased features, and change the variance only. In a
    causal model pass averages over earlier batches (`lower_variance.update`),
    never those of the sequence itself: they would tell of its future.

    Args:
      query: `[batch..., L, H, K]`.
      key: `[batch..., L, J, K]`.
      mask: `[batch..., 1, 1, L]`, of the positions that count; default all.

    Returns:
      Statistics, a pytree of arrays that start with `[J]`, and of weight 1.
    """
    arguments.check_shapes(query, key, key, self.qkv_dim)
    *batch_shape, L, _, _ = key.shape
    valid_BL = arguments.key_padding(mask, batch_shape, L)
    return lower_variance_lib.measure(query, key, valid_BL, valid_BL)

  # Random matrices.

  def projection_rng(
    self, layer: int | jax.Array, step_rng: jax.Array | None = None
  ) -> jax.Array:
    """The key from which a layer's projection is drawn.

    Args:
      layer: number of the layer; may be traced.
      step_rng: randomness of the training step. Used if `redraw_features`;
        None (evaluation, decoding) gives the fixed matrix.
    """
    if self.redraw_features and step_rng is not None:
      rng = jax.random.fold_in(step_rng, self.seed)
    else:
      rng = jax.random.key(self.seed)
    return jax.random.fold_in(rng, layer)

  def projection(
    self, rng: jax.Array | None, num_heads: int, depth: int, dtype=jnp.float32
  ) -> jax.Array | None:
    """The matrices of all key heads, `[J, M, K]`; None if there are none.

    Args:
      rng: see `projection_rng`; None is the fixed one of layer 0.
      num_heads: number of key/value heads J.
      depth: head width K.
      dtype: of the result; the draw does not depend on it.
    """
    if self.features_type == 'deterministic':
      return None
    shape = (num_heads, self.nb_features, depth)
    kind = dict(
      orthogonal=self.ortho_features, ortho_scaling=self.ortho_scaling
    )
    if rng is None:
      projection_JMK = projections.fixed_head_projections(
        self.seed, 0, *shape, **kind
      )
    else:
      projection_JMK = projections.head_projections(rng, *shape, **kind)
    projection_JMK = jax.lax.stop_gradient(jnp.asarray(projection_JMK, dtype))
    return residuals.named(projection_JMK)
