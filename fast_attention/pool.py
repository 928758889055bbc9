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
from fast_attention import residuals as residuals_lib
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
  spec: Pool, keys: Keys, rows: features_lib.Rows | None
) -> state_lib.State:
  """The state that holds all valid keys."""
  _, H, B, _, K = keys.key_GHBSK.shape
  first = state_lib.empty_state(
    (H, B),
    spec.feature_map.width(features_lib.num_rows(rows), K),
    keys.value_GHBSE.shape[-1],
    _dtype(keys),
  )
  first = state_lib.vary_like(first, keys)

  def body(state, chunk):
    (key_prime_HBSM, log_scale_HBS, _), _ = _key_features(spec, chunk, rows)
    entry = state_lib.entry_weights(state, log_scale_HBS)
    value_HBSE = chunk.value_GHBSE.astype(key_prime_HBSM.dtype)
    state = state_lib.add_keys(
      state, entry, key_prime_HBSM, value_HBSE, spec.precision
    )
    return state, None

  state, _ = _scan(spec, body, first, keys)
  return state


def _pool_keys_fwd(spec, keys, rows):
  state = residuals_lib.named(pool_keys(spec, keys, rows))
  return state, (keys, rows, state.log_scale_HB)


def _pool_keys_bwd(spec, residuals, cotangent: state_lib.State):
  keys, rows, log_scale_HB = residuals
  einsum = functools.partial(jnp.einsum, precision=spec.precision)
  base_HB = state_lib.finite(log_scale_HB)

  def body(_, chunk):
    key, pull_back = _key_features(spec, chunk, rows)
    key_prime_HBSM, log_scale_HBS, _ = key
    weight_HBS1 = jnp.exp(log_scale_HBS - base_HB[..., None])[..., None]
    value_HBSE = chunk.value_GHBSE.astype(key_prime_HBSM.dtype)
    d_key_HBSM = weight_HBS1 * (
      einsum('hbse,hbem->hbsm', value_HBSE, cotangent.kv_HBEM)
      + cotangent.key_sum_HBM[:, :, None, :]
    )
    d_value_HBSE = weight_HBS1 * einsum(
      'hbsm,hbem->hbse', key_prime_HBSM, cotangent.kv_HBEM
    )
    d_value_HBSE = d_value_HBSE.astype(chunk.value_GHBSE.dtype)
    return None, (pull_back(d_key_HBSM), d_value_HBSE)

  _, grads = _scan(spec, body, None, keys)
  zeros = jax.tree.map(jnp.zeros_like, rows)
  return Keys(*grads, valid_GBS=None), zeros


pool_keys.defvjp(_pool_keys_fwd, _pool_keys_bwd)


def _key_features(spec, chunk: Keys, rows):
  """Key features, their log-scale -inf where not valid, and their pull-back."""
  key, pull_back = spec.feature_map.pullable_features(
    chunk.key_GHBSK, rows, is_query=False, dtype=_dtype(chunk)
  )
  if chunk.valid_GBS is not None:
    scale_HBS = jnp.where(chunk.valid_GBS[None], key.log_scale_HBC, -jnp.inf)
    key = key._replace(log_scale_HBC=scale_HBS)
  return key, pull_back


def _dtype(keys: Keys) -> jnp.dtype:
  return features_lib.compute_dtype(keys.key_GHBSK, keys.value_GHBSE)


# State -> queries.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read_queries(
  spec: Pool,
  query_GHBCK: jax.Array,
  state: state_lib.State,
  rows: features_lib.Rows | None,
) -> Sums:
  """The sums of every query over what the state holds."""

  def body(_, query_HBCK):
    query, _ = _query_features(spec, query_HBCK, rows, state)
    sums = state_lib.read(state, query.features_HBCM, spec.precision)
    return None, Sums(*sums, query.log_scale_HBC)

  _, sums = _scan(spec, body, None, query_GHBCK)
  return sums


def _read_queries_fwd(spec, query_GHBCK, state, rows):
  sums = residuals_lib.named(read_queries(spec, query_GHBCK, state, rows))
  return sums, (query_GHBCK, state, rows)


def _read_queries_bwd(spec, residuals, cotangents: Sums):
  query_GHBCK, state, rows = residuals
  einsum = functools.partial(jnp.einsum, precision=spec.precision)

  def body(d_state, xs):
    query_HBCK, d_numerator_HBCE, d_denominator_HBC = xs

    query, pull_back = _query_features(spec, query_HBCK, rows, state)
    query_prime_HBCM = query.features_HBCM
    d_query_HBCM = (
      einsum('hbce,hbem->hbcm', d_numerator_HBCE, state.kv_HBEM)
      + d_denominator_HBC[..., None] * state.key_sum_HBM[:, :, None, :]
    )
    d_kv_HBEM = einsum('hbce,hbcm->hbem', d_numerator_HBCE, query_prime_HBCM)
    d_key_sum_HBM = einsum('hbc,hbcm->hbm', d_denominator_HBC, query_prime_HBCM)
    d_state = d_state._replace(
      kv_HBEM=d_state.kv_HBEM + d_kv_HBEM,
      key_sum_HBM=d_state.key_sum_HBM + d_key_sum_HBM,
    )
    return d_state, pull_back(d_query_HBCM)

  d_state, d_query_GHBCK = _scan(
    spec,
    body,
    jax.tree.map(jnp.zeros_like, state),
    (query_GHBCK, cotangents.numerator_GHBCE, cotangents.denominator_GHBC),
  )
  zeros = jax.tree.map(jnp.zeros_like, rows)
  return d_query_GHBCK, d_state, zeros


read_queries.defvjp(_read_queries_fwd, _read_queries_bwd)


def _query_features(spec, query_HBCK, rows, state: state_lib.State):
  return spec.feature_map.pullable_features(
    query_HBCK, rows, is_query=True, dtype=state.kv_HBEM.dtype
  )


def _scan(spec: Pool, body, init, xs):
  """lax.scan, without a loop where there is one chunk."""
  if jax.tree.leaves(xs)[0].shape[0] > 1:
    return lax.scan(body, init, xs, unroll=spec.unroll)
  carry, ys = body(init, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda y: y[None], ys)
