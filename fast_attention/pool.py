"""Bidirectional sums: all keys of a row into one state, read by every query.

Chunks bound the memory of the features, which are never all stored; the VJP is
written by hand and computes them again.

Axes: H heads, B batch, G chunks, C queries and S keys of one chunk, K head
width, E value width, M features.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import features as features_lib
from fast_attention import state as state_lib


@dataclasses.dataclass(frozen=True)
class Pool:
  """Feature map, chunks per turn of the loop, precision of the products."""

  feature_map: features_lib.FeatureMap
  unroll: int = 1
  precision: Any = None


class Keys(NamedTuple):
  """Keys and values in chunks; in the loop, without the G."""

  key_GHBSK: jax.Array
  value_GHBSE: jax.Array
  valid_GBS: jax.Array | None  # bool: keys that may be seen


class Sums(NamedTuple):
  """Numerator and denominator, both times exp(-query_scale)."""

  numerator_GHBCE: jax.Array
  denominator_GHBC: jax.Array
  query_scale_GHBC: jax.Array


# Keys -> state.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pool_keys(
  spec: Pool, keys: Keys, projection_HMK: jax.Array | None
) -> state_lib.State:
  """The state that holds all valid keys."""
  _, H, B, _, K = keys.key_GHBSK.shape
  first = state_lib.empty_state(
    (H, B),
    spec.feature_map.width(features_lib.num_rows(projection_HMK), K),
    keys.value_GHBSE.shape[-1],
    _dtype(keys),
  )
  first = state_lib.vary_like(first, keys)

  def body(state, chunk):
    (key_prime_HBSM, log_scale_HBS), _ = _key_features(
      spec, chunk, projection_HMK
    )
    entry = state_lib.entry_weights(state, log_scale_HBS)
    value_HBSE = chunk.value_GHBSE.astype(key_prime_HBSM.dtype)
    state = state_lib.add_keys(
      state, entry, key_prime_HBSM, value_HBSE, spec.precision
    )
    return state, None

  state, _ = _scan(spec, body, first, keys)
  return state


def _pool_keys_fwd(spec, keys, projection_HMK):
  state = pool_keys(spec, keys, projection_HMK)
  return state, (keys, projection_HMK, state.log_scale_HB)


def _pool_keys_bwd(spec, residuals, cotangent: state_lib.State):
  keys, projection_HMK, log_scale_HB = residuals
  einsum = functools.partial(jnp.einsum, precision=spec.precision)
  base_HB = state_lib.finite(log_scale_HB)

  def body(_, chunk):
    (key_prime_HBSM, log_scale_HBS), vjp = _key_features(
      spec, chunk, projection_HMK
    )
    weight_HBS1 = jnp.exp(log_scale_HBS - base_HB[..., None])[..., None]
    value_HBSE = chunk.value_GHBSE.astype(key_prime_HBSM.dtype)
    d_key_HBSM = weight_HBS1 * (
      einsum('hbse,hbem->hbsm', value_HBSE, cotangent.kv_HBEM)
      + cotangent.key_sum_HBM[:, :, None, :]
    )
    d_value_HBSE = weight_HBS1 * einsum(
      'hbsm,hbem->hbse', key_prime_HBSM, cotangent.kv_HBEM
    )
    (d_key_HBSK,) = vjp(d_key_HBSM)
    return None, (d_key_HBSK, d_value_HBSE.astype(chunk.value_GHBSE.dtype))

  _, grads = _scan(spec, body, None, keys)
  zero_HMK = jax.tree.map(jnp.zeros_like, projection_HMK)
  return Keys(*grads, valid_GBS=None), zero_HMK


pool_keys.defvjp(_pool_keys_fwd, _pool_keys_bwd)


def _key_features(spec, chunk: Keys, projection_HMK):
  return features_lib.key_features_vjp(
    spec.feature_map,
    chunk.key_GHBSK,
    projection_HMK,
    chunk.valid_GBS,
    _dtype(chunk),
  )


def _dtype(keys: Keys) -> jnp.dtype:
  return features_lib.compute_dtype(keys.key_GHBSK, keys.value_GHBSE)


# State -> queries.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read_queries(
  spec: Pool,
  query_GHBCK: jax.Array,
  state: state_lib.State,
  projection_HMK: jax.Array | None,
) -> Sums:
  """The sums of every query over what the state holds."""

  def body(_, query_HBCK):
    query = spec.feature_map.query_features(query_HBCK, projection_HMK)
    query_prime_HBCM = query.features_HBCM.astype(state.kv_HBEM.dtype)
    sums = state_lib.read(state, query_prime_HBCM, spec.precision)
    return None, Sums(*sums, query.log_scale_HBC)

  _, sums = _scan(spec, body, None, query_GHBCK)
  return sums


def _read_queries_fwd(spec, query_GHBCK, state, projection_HMK):
  sums = read_queries(spec, query_GHBCK, state, projection_HMK)
  return sums, (query_GHBCK, state, projection_HMK)


def _read_queries_bwd(spec, residuals, cotangents: Sums):
  query_GHBCK, state, projection_HMK = residuals
  einsum = functools.partial(jnp.einsum, precision=spec.precision)

  def body(d_state, xs):
    query_HBCK, d_numerator_HBCE, d_denominator_HBC = xs

    def features(x):
      query = spec.feature_map.query_features(x, projection_HMK)
      return query.features_HBCM.astype(state.kv_HBEM.dtype)

    query_prime_HBCM, vjp = jax.vjp(features, query_HBCK)
    d_query_HBCM = (
      einsum('hbce,hbem->hbcm', d_numerator_HBCE, state.kv_HBEM)
      + d_denominator_HBC[..., None] * state.key_sum_HBM[:, :, None, :]
    )
    d_kv_HBEM = einsum('hbce,hbcm->hbem', d_numerator_HBCE, query_prime_HBCM)
    d_key_sum_HBM = einsum('hbc,hbcm->hbm', d_denominator_HBC, query_prime_HBCM)
    (d_query_HBCK,) = vjp(d_query_HBCM)
    d_state = d_state._replace(
      kv_HBEM=d_state.kv_HBEM + d_kv_HBEM,
      key_sum_HBM=d_state.key_sum_HBM + d_key_sum_HBM,
    )
    return d_state, d_query_HBCK

  d_state, d_query_GHBCK = _scan(
    spec,
    body,
    jax.tree.map(jnp.zeros_like, state),
    (query_GHBCK, cotangents.numerator_GHBCE, cotangents.denominator_GHBC),
  )
  zero_HMK = jax.tree.map(jnp.zeros_like, projection_HMK)
  return d_query_GHBCK, d_state, zero_HMK


read_queries.defvjp(_read_queries_fwd, _read_queries_bwd)


def _scan(spec: Pool, body, init, xs):
  """lax.scan, without a loop where there is one chunk."""
  if jax.tree.leaves(xs)[0].shape[0] > 1:
    return lax.scan(body, init, xs, unroll=spec.unroll)
  carry, ys = body(init, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda y: y[None], ys)
