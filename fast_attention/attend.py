"""What one chunk of a sweep computes, and its cotangents: see sweep.py.

Axes: H heads, B batch, L positions, C queries and S keys of one chunk, K head
width, E value width, M features.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fast_attention import chunk as chunk_lib
from fast_attention import features as features_lib
from fast_attention import reference
from fast_attention import state as state_lib


class Sums(NamedTuple):
  """Numerator and denominator, both times exp(-log_scale - query_scale).

  The numerator is the output already if the sweep normalises. Scales and shifts
  are None where the feature map has none; key_scale and the shifts are kept for
  the backward pass. Of one chunk the axes are HBCE and HBC.
  """

  numerator_BLHE: jax.Array
  denominator_HBL: jax.Array
  log_scale_HBL: jax.Array | None  # largest of the keys seen: r_t
  query_scale_HBL: jax.Array | None
  key_scale_HBL: jax.Array | None  # c_s
  query_shift_HBL: jax.Array | None
  key_shift_HBL: jax.Array | None


def key_features(spec, rows, chunk, shift_HBC=None, scale_HBC=None):
  """Key features, their log-scale -inf where not valid, and their pull-back."""
  key, pull_back = spec.feature_map.pullable_features(
    chunk.key_HBCK,
    rows,
    is_query=False,
    dtype=_dtype(chunk),
    shift_HBC=shift_HBC,
  )
  if scale_HBC is None:
    scale_HBC = key.log_scale_HBC
    if chunk.valid_BC is not None:
      scale_HBC = jnp.where(chunk.valid_BC[None], scale_HBC, -jnp.inf)
  return key._replace(log_scale_HBC=scale_HBC), pull_back


def _dtype(chunk: chunk_lib.Chunk) -> jnp.dtype:
  return features_lib.compute_dtype(*chunk[:3])


def attend(
  spec, rows, carry: chunk_lib.Carry | None, chunk: chunk_lib.Chunk
) -> tuple[Sums, chunk_lib.Carry | None]:
  """Sums of one chunk, and the carry with its keys."""
  query, _ = spec.feature_map.pullable_features(
    chunk.query_HBCK, rows, is_query=True, dtype=_dtype(chunk)
  )
  query_prime_HBCM = query.features_HBCM
  key, _ = key_features(spec, rows, chunk)
  key_prime_HBSM, key_scale_HBS, _ = key
  value_HBSE = chunk.value_HBCE.astype(_dtype(chunk))

  visible_BCS = chunk.visible_BCS
  log_scale_HBC = chunk_lib.query_log_scale(spec, carry, chunk, key_scale_HBS)
  numerator_HBCE, denominator_HBC = 0, 0
  if visible_BCS is not None:
    scores_HBCS = chunk_lib.weigh_inside(
      spec,
      visible_BCS,
      key_scale_HBS,
      log_scale_HBC,
      spec.einsum('hbcm,hbsm->hbcs', query_prime_HBCM, key_prime_HBSM),
    )
    numerator_HBCE = spec.einsum('hbcs,hbse->hbce', scores_HBCS, value_HBSE)
    denominator_HBC = features_lib.sum_last(scores_HBCS)
  if carry is not None:
    past_HBCE, past_HBC = state_lib.read(
      carry.state, query_prime_HBCM, spec.precision
    )
    weight_HBC = chunk_lib.past_weights(spec, carry, chunk, log_scale_HBC)
    numerator_HBCE += state_lib.scaled(past_HBCE, weight_HBC)
    denominator_HBC += state_lib.scaled(past_HBC, weight_HBC)
    carry = next_carry(spec, carry, chunk, key)
  if spec.normalise:
    numerator_HBCE = reference.normalise(
      spec.feature_map,
      numerator_HBCE,
      denominator_HBC,
      total_scale(log_scale_HBC, query.log_scale_HBC),
    )
  sums = Sums(
    numerator_HBCE,
    denominator_HBC,
    log_scale_HBC,
    query.log_scale_HBC,
    key_scale_HBS,
    query.shift_HBC,
    key.shift_HBC,
  )
  return sums, carry


def total_scale(log_scale, query_scale):
  """Logarithm of the factor left out of numerators and denominators."""
  if log_scale is None:
    return query_scale
  return query_scale + state_lib.finite(log_scale)


def next_carry(
  spec, carry: chunk_lib.Carry, chunk: chunk_lib.Chunk, key
) -> chunk_lib.Carry:
  """The carry with the keys of a chunk in it."""
  entry, run_B = chunk_lib.entry(spec, carry, chunk, key.log_scale_HBC)
  value_HBSE = chunk.value_HBCE.astype(key.features_HBCM.dtype)
  state = state_lib.add_keys(
    carry.state, entry, key.features_HBCM, value_HBSE, spec.precision
  )
  return chunk_lib.Carry(state, run_B)


def _numerator_cotangents(spec, sums: Sums, cotangents: Sums):
  """Cotangents of the numerator and denominator of a chunk."""
  d_numerator_HBCE, d_denominator_HBC = cotangents[:2]
  if not spec.normalise:
    return d_numerator_HBCE, d_denominator_HBC
  out_HBCE, denominator_HBC = sums[:2]
  scale_HBC = None
  if not spec.feature_map.renormalize:
    scale_HBC = total_scale(sums.log_scale_HBL, sums.query_scale_HBL)
  factor_HBC = reference.output_factor(
    spec.feature_map, denominator_HBC, scale_HBC
  )
  d_out_HBCE = d_numerator_HBCE
  d_numerator_HBCE = state_lib.scaled(d_out_HBCE, factor_HBC)
  if not spec.feature_map.renormalize:
    return d_numerator_HBCE, jnp.zeros_like(denominator_HBC)
  # Of the factor 1 / denominator, with the numerator the output by it.
  return d_numerator_HBCE, -factor_HBC * features_lib.sum_last(
    d_out_HBCE * out_HBCE
  )


def attend_bwd(
  spec,
  rows,
  state_cotangent,
  carry: chunk_lib.Carry | None,
  chunk: chunk_lib.Chunk,
  sums: Sums,
  cotangents: Sums,
):
  """Cotangents of the state before a chunk, and of its q, k, v."""
  d_numerator_HBCE, d_denominator_HBC = _numerator_cotangents(
    spec, sums, cotangents
  )
  query, pull_query = spec.feature_map.pullable_features(
    chunk.query_HBCK,
    rows,
    is_query=True,
    dtype=_dtype(chunk),
    shift_HBC=sums.query_shift_HBL,
  )
  query_prime_HBCM = query.features_HBCM
  key, pull_key = key_features(
    spec, rows, chunk, sums.key_shift_HBL, sums.key_scale_HBL
  )
  key_prime_HBSM, key_scale_HBS, _ = key
  value_HBSE = chunk.value_HBCE.astype(_dtype(chunk))

  visible_BCS = chunk.visible_BCS
  d_query_HBCM, d_key_HBSM, d_value_HBSE = 0, 0, 0
  if visible_BCS is not None:
    weigh = functools.partial(
      chunk_lib.weigh_inside,
      spec,
      visible_BCS,
      key_scale_HBS,
      sums.log_scale_HBL,
    )
    scores_HBCS = weigh(
      spec.einsum('hbcm,hbsm->hbcs', query_prime_HBCM, key_prime_HBSM)
    )
    d_scores_HBCS = weigh(
      spec.einsum('hbce,hbse->hbcs', d_numerator_HBCE, value_HBSE)
      + d_denominator_HBC[..., None]
    )
    d_value_HBSE = spec.einsum('hbcs,hbce->hbse', scores_HBCS, d_numerator_HBCE)
    d_key_HBSM = spec.einsum('hbcs,hbcm->hbsm', d_scores_HBCS, query_prime_HBCM)
    d_query_HBCM = spec.einsum('hbcs,hbsm->hbcm', d_scores_HBCS, key_prime_HBSM)
  if carry is not None:
    d_kv_HBEM, d_key_sum_HBM = state_cotangent[:2]
    weight_HBC = chunk_lib.past_weights(spec, carry, chunk, sums.log_scale_HBL)
    entry, _ = chunk_lib.entry(spec, carry, chunk, key_scale_HBS)
    d_past_HBCE = state_lib.scaled(d_numerator_HBCE, weight_HBC)
    d_past_HBC = state_lib.scaled(d_denominator_HBC, weight_HBC)
    d_query_HBCM += (
      spec.einsum('hbce,hbem->hbcm', d_past_HBCE, carry.state.kv_HBEM)
      + d_past_HBC[..., None] * carry.state.key_sum_HBM[:, :, None, :]
    )
    d_key_HBSM += state_lib.scaled(
      spec.einsum('hbse,hbem->hbsm', value_HBSE, d_kv_HBEM)
      + d_key_sum_HBM[:, :, None, :],
      entry.weight_HBS,
    )
    d_value_HBSE += state_lib.scaled(
      spec.einsum('hbsm,hbem->hbse', key_prime_HBSM, d_kv_HBEM),
      entry.weight_HBS,
    )
    state_cotangent = state_cotangent._replace(
      kv_HBEM=state_lib.scaled(d_kv_HBEM, entry.keep_HB)
      + spec.einsum('hbce,hbcm->hbem', d_past_HBCE, query_prime_HBCM),
      key_sum_HBM=state_lib.scaled(d_key_sum_HBM, entry.keep_HB)
      + spec.einsum('hbc,hbcm->hbm', d_past_HBC, query_prime_HBCM),
    )
  return state_cotangent, (
    pull_query(d_query_HBCM),
    pull_key(d_key_HBSM),
    d_value_HBSE,
  )
