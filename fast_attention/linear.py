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

from fast_attention import attend as attend_lib
from fast_attention import chunk as chunk_lib
from fast_attention import features as features_lib
from fast_attention import layout, reference, tables, token_scan
from fast_attention import pool as pool_lib
from fast_attention import state as state_lib
from fast_attention import sweep as sweep_lib

IMPLEMENTATIONS = ('auto', 'chunked', 'scan', 'reference')


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
    keep_states: keeps the state before each chunk of a sweep for the backward
      pass, which computes it again otherwise.
  """

  feature_map: features_lib.FeatureMap
  causal: bool
  implementation: str = 'auto'
  unroll: int | None = None
  precision: Any = None
  chunk_length: int | None = None
  keep_states: bool = False


# Compiled also when called outside of jit: a call is many small operations.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def linear_attention(
  spec: Linear,
  query_BLHK: jax.Array,
  key_BSHK: jax.Array,
  value_BSHE: jax.Array,
  rows: features_lib.Rows | None,
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
    rows: of the feature map, or None.
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
      rows,
      causal=spec.causal,
      valid_BS=valid_BS,
      run_BL=run_BL,
    )
    return out_HBLE.transpose(1, 2, 0, 3)

  arrays = (query_BLHK, key_BSHK, value_BSHE, rows, valid_BS)
  arrays, run_BL = state_lib.vary_like((arrays, run_BL), (arrays, run_BL))
  if spec.causal and spec.implementation == 'scan':
    return token_scan.token_scan(
      spec.feature_map, spec.unroll, spec.precision, *arrays, run_BL
    )
  if spec.causal or run_BL is not None:
    return swept(spec, *arrays, run_BL)
  state = pool(spec, key_BSHK, value_BSHE, rows, valid_BS)
  return read(spec, query_BLHK, state, rows)


def swept(
  spec: Linear,
  query_BLHK: jax.Array,
  key_BSHK: jax.Array,
  value_BSHE: jax.Array,
  rows: features_lib.Rows | None,
  valid_BS: jax.Array | None,
  run_BL: jax.Array | None,
  left: chunk_lib.Carry | None = None,
  right: chunk_lib.Carry | None = None,
) -> jax.Array:
  """Causal, or bidirectional within runs.

  Args:
    spec: how.
    query_BLHK: queries.
    key_BSHK: keys, as many.
    value_BSHE: values.
    rows: of the feature map, or None.
    valid_BS: bool, keys that may be seen; None is all.
    run_BL: number of the run of equal segment ids; None is one run.
    left: keys to the left of these that the first run sees.
    right: the same to the right, unless causal.
  """
  B, length, H, K = query_BLHK.shape
  width = spec.feature_map.width(features_lib.num_rows(rows), K)
  num_chunks, chunk_length = _chunks(
    length, spec.chunk_length or tables.sweep_chunk()
  )
  padded_length = num_chunks * chunk_length
  inputs = chunk_lib.Inputs(
    *(layout.pad(x, padded_length) for x in (query_BLHK, key_BSHK, value_BSHE)),
    layout.pad_valid(valid_BS, key_BSHK, padded_length),
    # Padding extends the last run; it is not valid, so nothing sees it.
    None if run_BL is None else layout.pad(run_BL, padded_length, mode='edge'),
  )
  streams, unroll = tables.concurrency(
    B * H * chunk_length * width * K, num_chunks
  )
  static = chunk_lib.Sweep(
    spec.feature_map,
    'causal' if spec.causal else 'all',
    chunk_length,
    normalise=spec.causal or (num_chunks == 1 and right is None),
    streams=streams,
    unroll=unroll if spec.unroll is None else spec.unroll,
    precision=spec.precision,
    keep_states=spec.keep_states,
  )
  sums = sweep_lib.sweep(static, inputs, rows, left)
  out_BLHE = sums.numerator_BLHE
  if not static.normalise:
    from_right = dataclasses.replace(static, inside='none', reverse=True)
    sums_right = sweep_lib.sweep(from_right, inputs, rows, right)
    out_BLHE = _merge(spec.feature_map, sums, sums_right)
  return out_BLHE[:, :length]


def _merge(
  feature_map, left: attend_lib.Sums, right: attend_lib.Sums
) -> jax.Array:
  """The output of sums over disjoint keys, at the larger of their scales."""
  log_scale_HBL = None
  weights = (None, None)
  if feature_map.has_scale:
    scales = lax.stop_gradient((left.log_scale_HBL, right.log_scale_HBL))
    log_scale_HBL = jnp.maximum(*scales)
    base_HBL = state_lib.finite(log_scale_HBL)
    weights = [jnp.exp(scale - base_HBL) for scale in scales]
  numerator_HBLE, denominator_HBL = 0, 0
  for sums, weight_HBL in zip((left, right), weights, strict=True):
    x_HBLE = sums.numerator_BLHE.transpose(2, 0, 1, 3)
    numerator_HBLE += state_lib.scaled(x_HBLE, weight_HBL)
    denominator_HBL += state_lib.scaled(sums.denominator_HBL, weight_HBL)
  out_HBLE = reference.normalise(
    feature_map,
    numerator_HBLE,
    denominator_HBL,
    attend_lib.total_scale(log_scale_HBL, left.query_scale_HBL),
  )
  return out_HBLE.transpose(1, 2, 0, 3)


def read(
  spec: Linear,
  query_BLHK: jax.Array,
  state: state_lib.State,
  rows: features_lib.Rows | None,
) -> jax.Array:
  """What every query sees of all that the state holds, `[B, L, H, E]`."""
  num_queries = query_BLHK.shape[1]
  chunks = _pool_chunks(spec, num_queries)
  sums = pool_lib.read_queries(
    pool_lib.Pool(spec.feature_map, spec.unroll or 1, spec.precision),
    layout.to_chunks(query_BLHK, chunks),
    state,
    rows,
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
  rows: features_lib.Rows | None,
  valid_BS: jax.Array | None,
) -> state_lib.State:
  """The state that holds all valid keys; its arrays start with `[H, B]`."""
  chunks = _pool_chunks(spec, key_BSHK.shape[1])
  keys = pool_lib.Keys(
    layout.to_chunks(key_BSHK, chunks),
    layout.to_chunks(value_BSHE, chunks),
    layout.valid_chunks(valid_BS, key_BSHK, chunks),
  )
  static = pool_lib.Pool(spec.feature_map, spec.unroll or 1, spec.precision)
  return pool_lib.pool_keys(static, keys, rows)


def _pool_chunks(spec: Linear, length: int) -> tuple[int, int]:
  return _chunks(length, spec.chunk_length or tables.pool_chunk())


def _chunks(length: int, longest: int) -> tuple[int, int]:
  """Number of chunks and their length: equal, so that little is padded."""
  num_chunks = max(1, -(-length // longest))
  chunk_length = -(-length // num_chunks)
  if num_chunks > 1:
    chunk_length = min(longest, 8 * math.ceil(chunk_length / 8))
  return num_chunks, chunk_length
