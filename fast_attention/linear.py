"""Attention in linear time: choice of the sums, merging, normalisation.

Which sums answer which question:

    causal                     one sweep over chunks (sweep.py)
    bidirectional              keys into one state, read by all (pool.py)
    bidirectional, segments    a sweep from each side: left and own chunk, right
    causal, token by token     the plain definition (token_scan.py)

Axes: H heads, B batch, L queries, S keys, G chunks, C positions of one chunk,
K head width, E value width, M features.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import chunk as chunk_lib
from fast_attention import features as features_lib
from fast_attention import layout, reference, token_scan
from fast_attention import pool as pool_lib
from fast_attention import state as state_lib
from fast_attention import sweep as sweep_lib

IMPLEMENTATIONS = ('auto', 'chunked', 'scan', 'reference')
# Longest chunk by platform. CPU: 64 was the fastest of 32, 64, 128, 256 forward
# and backward, at B1 L1024 H8 K64 M256 and at B16 L512 H4 K64 M128.
_CHUNK_LENGTH = {'cpu': 64}
_DEFAULT_CHUNK_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class Linear:
  """How the sums are computed, beside what they are.

  Attributes:
    feature_map: of queries and keys.
    causal: whether query t sees keys up to t only.
    implementation: one of IMPLEMENTATIONS.
    unroll: steps per turn of the loop; None picks by platform.
    precision: of every product except the projection.
    chunk_length: longest chunk; None picks by platform.
  """

  feature_map: features_lib.FeatureMap
  causal: bool
  implementation: str = 'auto'
  unroll: int | None = None
  precision: Any = None
  chunk_length: int | None = None


# Compiled also when called outside of jit: a call is many small operations.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def linear_attention(
  spec: Linear,
  query_BLHK: jax.Array,
  key_BSHK: jax.Array,
  value_BSHE: jax.Array,
  projection_HMK: jax.Array | None,
  *,
  valid_BS: jax.Array | None = None,
  segment_ids_BL: jax.Array | None = None,
) -> jax.Array:
  """Kernel attention, `[B, L, H, E]`, in float32 or wider.

  Args:
    spec: how.
    query_BLHK: queries.
    key_BSHK: keys, as many heads as queries.
    value_BSHE: values.
    projection_HMK: rows of the feature map, or None.
    valid_BS: bool, keys that may be seen; None is all.
    segment_ids_BL: positions see their own maximal run of equal ids; None is
      one run.
  """
  run_BL = None
  if segment_ids_BL is not None:
    run_BL = reference.run_ids(segment_ids_BL)
  if spec.implementation == 'reference':
    out_HBLE = reference.kernel_attention(
      spec.feature_map,
      *(x.transpose(2, 0, 1, 3) for x in (query_BLHK, key_BSHK, value_BSHE)),
      projection_HMK,
      causal=spec.causal,
      valid_BS=valid_BS,
      run_BL=run_BL,
    )
    return out_HBLE.transpose(1, 2, 0, 3)

  arrays = (query_BLHK, key_BSHK, value_BSHE, projection_HMK, valid_BS)
  arrays, run_BL = state_lib.vary_like((arrays, run_BL), (arrays, run_BL))
  if spec.causal and spec.implementation == 'scan':
    return token_scan.token_scan(
      spec.feature_map, spec.unroll, spec.precision, *arrays, run_BL
    )
  if spec.causal or run_BL is not None:
    return _swept(spec, *arrays, run_BL)
  return _pooled(spec, *arrays)


def _swept(
  spec, query_BLHK, key_BSHK, value_BSHE, projection_HMK, valid_BS, run_BL
):
  """Causal, or bidirectional within runs."""
  length = query_BLHK.shape[1]
  chunks = _chunks(spec, length)
  unroll = _unroll(spec, chunks[0])
  inputs = chunk_lib.Inputs(
    layout.to_chunks(query_BLHK, chunks),
    layout.to_chunks(key_BSHK, chunks),
    layout.to_chunks(value_BSHE, chunks),
    layout.valid_chunks(valid_BS, key_BSHK, chunks),
    # Padding extends the last run; it is not valid, so nothing sees it.
    None if run_BL is None else layout.row_chunks(run_BL, chunks, mode='edge'),
  )

  def sweep(inside, reverse=False):
    static = chunk_lib.Sweep(
      spec.feature_map, inside, reverse, unroll, spec.precision
    )
    return sweep_lib.sweep(static, inputs, projection_HMK)

  if spec.causal:
    sums = sweep('causal')
  elif chunks[0] == 1:
    sums = sweep('all')
  else:
    sums = _merge(spec.feature_map, sweep('all'), sweep('none', reverse=True))
  out_GHBCE = reference.normalise(
    spec.feature_map,
    sums.numerator_GHBCE,
    sums.denominator_GHBC,
    sums.query_scale_GHBC + state_lib.finite(sums.log_scale_GHBC),
  )
  return layout.from_chunks(out_GHBCE, length)


def _merge(
  feature_map, left: chunk_lib.Sums, right: chunk_lib.Sums
) -> chunk_lib.Sums:
  """Sums over disjoint keys, brought to the larger of their log-scales."""
  if not feature_map.has_scale:
    return left._replace(
      numerator_GHBCE=left.numerator_GHBCE + right.numerator_GHBCE,
      denominator_GHBC=left.denominator_GHBC + right.denominator_GHBC,
    )
  scales = lax.stop_gradient((left.log_scale_GHBC, right.log_scale_GHBC))
  log_scale_GHBC = jnp.maximum(*scales)
  base_GHBC = state_lib.finite(log_scale_GHBC)
  weights = [jnp.exp(scale - base_GHBC) for scale in scales]
  return left._replace(
    numerator_GHBCE=left.numerator_GHBCE * weights[0][..., None]
    + right.numerator_GHBCE * weights[1][..., None],
    denominator_GHBC=left.denominator_GHBC * weights[0]
    + right.denominator_GHBC * weights[1],
    log_scale_GHBC=log_scale_GHBC,
  )


def _pooled(spec, query_BLHK, key_BSHK, value_BSHE, projection_HMK, valid_BS):
  """Bidirectional, all valid keys."""
  num_queries = query_BLHK.shape[1]
  query_chunks = _chunks(spec, num_queries)
  state = pool(spec, key_BSHK, value_BSHE, projection_HMK, valid_BS)
  sums = pool_lib.read_queries(
    pool_lib.Pool(
      spec.feature_map, _unroll(spec, query_chunks[0]), spec.precision
    ),
    layout.to_chunks(query_BLHK, query_chunks),
    state,
    projection_HMK,
  )
  key_scale_1HB1 = state_lib.finite(state.log_scale_HB)[None, :, :, None]
  out_GHBCE = reference.normalise(
    spec.feature_map,
    sums.numerator_GHBCE,
    sums.denominator_GHBC,
    sums.query_scale_GHBC + lax.stop_gradient(key_scale_1HB1),
  )
  return layout.from_chunks(out_GHBCE, num_queries)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def pool(
  spec: Linear,
  key_BSHK: jax.Array,
  value_BSHE: jax.Array,
  projection_HMK: jax.Array | None,
  valid_BS: jax.Array | None,
) -> state_lib.State:
  """The state that holds all valid keys; its arrays start with `[H, B]`."""
  chunks = _chunks(spec, key_BSHK.shape[1])
  keys = pool_lib.Keys(
    layout.to_chunks(key_BSHK, chunks),
    layout.to_chunks(value_BSHE, chunks),
    layout.valid_chunks(valid_BS, key_BSHK, chunks),
  )
  static = pool_lib.Pool(
    spec.feature_map, _unroll(spec, chunks[0]), spec.precision
  )
  return pool_lib.pool_keys(static, keys, projection_HMK)


def _chunks(spec: Linear, length: int) -> tuple[int, int]:
  """Number of chunks and their length: equal, so that little is padded."""
  longest = spec.chunk_length or _CHUNK_LENGTH.get(
    jax.default_backend(), _DEFAULT_CHUNK_LENGTH
  )
  num_chunks = max(1, -(-length // longest))
  chunk_length = -(-length // num_chunks)
  if num_chunks > 1:
    chunk_length = min(longest, 8 * math.ceil(chunk_length / 8))
  return num_chunks, chunk_length


def _unroll(spec: Linear, length: int) -> int:
  return min(1 if spec.unroll is None else spec.unroll, length)
