"""One sweep over the chunks of a sequence, with an exact hand-written VJP.

Inside a chunk, attention is quadratic; what lies before the chunk is read from
a state. With P the weights exp(c_s - r_t) <= 1 of the visible keys,

    A = (Q' K'^T) . P;   O = A V + g_t Q' S;   S <- f S + (w_s K')^T V

and backwards, with R the cotangent of the state after the chunk,

    dA = (dO V^T) . P;   dQ' = dA K' + g_t dO S^T;   dK' = dA^T Q' + w_s V R^T
    dV = A^T dO + w_s K' R;   R <- f R + (g_t Q')^T dO

Scales c, r (hence P, g, w, f) are constants: they cancel in the output.
Kept for the backward pass are q, k, v and r: features and states are computed
again, the states by a sweep over the keys.

Axes: H heads, B batch, G chunks, C queries and S keys of one chunk, K head
width, E value width, M features.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import chunk as chunk_lib
from fast_attention import features as features_lib
from fast_attention import state as state_lib


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sweep(
  spec: chunk_lib.Sweep,
  inputs: chunk_lib.Inputs,
  projection_HMK: jax.Array | None,
) -> chunk_lib.Sums:
  """Attention sums of every query over what the sweep has seen."""
  if inputs.query_GHBCK.shape[0] == 1:  # No loop, and no state to read.
    chunk = jax.tree.map(lambda x: x[0], inputs)
    sums = _attend(spec, projection_HMK, None, chunk)[0]
    return jax.tree.map(lambda x: x[None], sums)

  def body(carry, chunk):
    sums, key = _attend(spec, projection_HMK, carry, chunk)
    return _next_carry(spec, carry, chunk, key), sums

  return _scan(spec, body, _first_carry(spec, projection_HMK, inputs), inputs)


def _sweep_fwd(spec, inputs, projection_HMK):
  sums = sweep(spec, inputs, projection_HMK)
  return sums, (inputs, projection_HMK, sums.log_scale_GHBC)


def _sweep_bwd(spec, residuals, cotangents: chunk_lib.Sums):
  inputs, projection_HMK, log_scale_GHBC = residuals
  xs = (
    inputs,
    log_scale_GHBC,
    cotangents.numerator_GHBCE,
    cotangents.denominator_GHBC,
  )
  if inputs.query_GHBCK.shape[0] == 1:
    xs = jax.tree.map(lambda x: x[0], xs)
    _, grads = _attend_bwd(spec, projection_HMK, None, None, *xs)
    grads = jax.tree.map(lambda x: x[None], grads)
  else:
    carries = _carries(spec, projection_HMK, inputs)

    def body(cotangent, x):
      return _attend_bwd(spec, projection_HMK, cotangent, *x)

    # The cotangent of the last state: zero, as nothing reads it.
    zero = jax.tree.map(lambda x: jnp.zeros_like(x[0]), carries.state)
    grads = _scan(
      dataclasses.replace(spec, reverse=not spec.reverse),
      body,
      (zero.kv_HBEM, zero.key_sum_HBM),
      (carries, *xs),
    )
  # The projection is not trained.
  zero_HMK = jax.tree.map(jnp.zeros_like, projection_HMK)
  return chunk_lib.Inputs(*grads, valid_GBC=None, run_GBC=None), zero_HMK


sweep.defvjp(_sweep_fwd, _sweep_bwd)


def _scan(spec, body, first, xs):
  """The outputs of every chunk."""
  _, ys = lax.scan(body, first, xs, reverse=spec.reverse, unroll=spec.unroll)
  return ys


def _carries(spec, projection_HMK, inputs: chunk_lib.Inputs) -> chunk_lib.Carry:
  """The carry at the start of each chunk, computed again from the keys."""

  def body(carry, chunk):
    key, _ = _key_features(spec, projection_HMK, chunk)
    return _next_carry(spec, carry, chunk, key), carry

  return _scan(spec, body, _first_carry(spec, projection_HMK, inputs), inputs)


def _first_carry(
  spec, projection_HMK, inputs: chunk_lib.Inputs
) -> chunk_lib.Carry:
  _, H, B, _, K = inputs.query_GHBCK.shape
  state = state_lib.empty_state(
    (H, B),
    spec.feature_map.width(features_lib.num_rows(projection_HMK), K),
    inputs.value_GHBCE.shape[-1],
    features_lib.compute_dtype(*inputs[:3]),
  )
  run_B = None if inputs.run_GBC is None else jnp.full((B,), -1, jnp.int32)
  return state_lib.vary_like(chunk_lib.Carry(state, run_B), inputs)


def _key_features(spec, projection_HMK, chunk: chunk_lib.Inputs):
  return features_lib.key_features_vjp(
    spec.feature_map,
    chunk.key_GHBCK,
    projection_HMK,
    chunk.valid_GBC,
    features_lib.compute_dtype(*chunk[:3]),
  )


def _attend(
  spec, projection_HMK, carry: chunk_lib.Carry | None, chunk: chunk_lib.Inputs
):
  """Sums of one chunk, and its key features."""
  einsum = functools.partial(jnp.einsum, precision=spec.precision)
  dtype = features_lib.compute_dtype(*chunk[:3])
  query = spec.feature_map.query_features(chunk.query_GHBCK, projection_HMK)
  query_prime_HBCM = query.features_HBCM.astype(dtype)
  key, _ = _key_features(spec, projection_HMK, chunk)
  key_prime_HBSM, key_scale_HBS = key
  value_HBSE = chunk.value_GHBCE.astype(dtype)

  visible_BCS = chunk_lib.visible(spec, chunk)
  log_scale_HBC = chunk_lib.query_log_scale(spec, carry, chunk, key_scale_HBS)
  numerator_HBCE, denominator_HBC = 0, 0
  if visible_BCS is not None:
    scores_HBCS = einsum('hbcm,hbsm->hbcs', query_prime_HBCM, key_prime_HBSM)
    scores_HBCS *= chunk_lib.inside_weights(
      spec,
      visible_BCS[None],
      key_scale_HBS[:, :, None, :],
      log_scale_HBC[..., None],
    )
    numerator_HBCE = einsum('hbcs,hbse->hbce', scores_HBCS, value_HBSE)
    denominator_HBC = jnp.sum(scores_HBCS, axis=-1)
  if carry is not None:
    past_HBCE, past_HBC = state_lib.read(
      carry.state, query_prime_HBCM, spec.precision
    )
    weight_HBC = chunk_lib.state_weights(carry, chunk, log_scale_HBC)
    numerator_HBCE += past_HBCE * weight_HBC[..., None]
    denominator_HBC += past_HBC * weight_HBC
  sums = chunk_lib.Sums(
    numerator_HBCE, denominator_HBC, log_scale_HBC, query.log_scale_HBC
  )
  return sums, key


def _next_carry(
  spec, carry: chunk_lib.Carry, chunk: chunk_lib.Inputs, key
) -> chunk_lib.Carry:
  """The carry with the keys of a chunk in it."""
  key_prime_HBSM, key_scale_HBS = key
  entry, run_B = chunk_lib.entry(spec, carry, chunk, key_scale_HBS)
  value_HBSE = chunk.value_GHBCE.astype(key_prime_HBSM.dtype)
  state = state_lib.add_keys(
    carry.state, entry, key_prime_HBSM, value_HBSE, spec.precision
  )
  return chunk_lib.Carry(state, run_B)


def _attend_bwd(
  spec,
  projection_HMK,
  state_cotangent,
  carry: chunk_lib.Carry | None,
  chunk: chunk_lib.Inputs,
  log_scale_HBC,
  d_numerator_HBCE,
  d_denominator_HBC,
):
  """Cotangents of the state before a chunk, and of its q, k, v."""
  einsum = functools.partial(jnp.einsum, precision=spec.precision)
  dtype = d_numerator_HBCE.dtype

  def query_features(x):
    y = spec.feature_map.query_features(x, projection_HMK)
    return y.features_HBCM.astype(dtype)

  query_prime_HBCM, query_vjp = jax.vjp(query_features, chunk.query_GHBCK)
  key, key_vjp = _key_features(spec, projection_HMK, chunk)
  key_prime_HBSM, key_scale_HBS = key
  value_HBSE = chunk.value_GHBCE.astype(dtype)

  visible_BCS = chunk_lib.visible(spec, chunk)
  d_query_HBCM, d_key_HBSM, d_value_HBSE = 0, 0, 0
  if visible_BCS is not None:
    # Scores are made key-major: two of the three products below then have
    # their contraction where it is fast.
    weights_HBSC = chunk_lib.inside_weights(
      spec,
      visible_BCS.swapaxes(1, 2)[None],
      key_scale_HBS[..., None],
      log_scale_HBC[:, :, None, :],
    )
    scores_HBSC = weights_HBSC * einsum(
      'hbsm,hbcm->hbsc', key_prime_HBSM, query_prime_HBCM
    )
    d_scores_HBSC = weights_HBSC * (
      einsum('hbse,hbce->hbsc', value_HBSE, d_numerator_HBCE)
      + d_denominator_HBC[:, :, None, :]
    )
    d_value_HBSE = einsum('hbsc,hbce->hbse', scores_HBSC, d_numerator_HBCE)
    d_key_HBSM = einsum('hbsc,hbcm->hbsm', d_scores_HBSC, query_prime_HBCM)
    d_query_HBCM = einsum('hbsc,hbsm->hbcm', d_scores_HBSC, key_prime_HBSM)
  if carry is not None:
    d_kv_HBEM, d_key_sum_HBM = state_cotangent
    weight_HBC = chunk_lib.state_weights(carry, chunk, log_scale_HBC)
    entry, _ = chunk_lib.entry(spec, carry, chunk, key_scale_HBS)
    d_past_HBCE = d_numerator_HBCE * weight_HBC[..., None]
    d_past_HBC = d_denominator_HBC * weight_HBC
    d_query_HBCM += (
      einsum('hbce,hbem->hbcm', d_past_HBCE, carry.state.kv_HBEM)
      + d_past_HBC[..., None] * carry.state.key_sum_HBM[:, :, None, :]
    )
    d_key_HBSM += entry.weight_HBS[..., None] * (
      einsum('hbse,hbem->hbsm', value_HBSE, d_kv_HBEM)
      + d_key_sum_HBM[:, :, None, :]
    )
    d_value_HBSE += entry.weight_HBS[..., None] * einsum(
      'hbsm,hbem->hbse', key_prime_HBSM, d_kv_HBEM
    )
    state_cotangent = (
      d_kv_HBEM * entry.keep_HB[..., None, None]
      + einsum('hbce,hbcm->hbem', d_past_HBCE, query_prime_HBCM),
      d_key_sum_HBM * entry.keep_HB[..., None]
      + einsum('hbc,hbcm->hbm', d_past_HBC, query_prime_HBCM),
    )
  (d_query_HBCK,) = query_vjp(d_query_HBCM)
  (d_key_HBSK,) = key_vjp(d_key_HBSM)
  d_value_HBSE = d_value_HBSE.astype(chunk.value_GHBCE.dtype)
  return state_cotangent, (d_query_HBCK, d_key_HBSK, d_value_HBSE)
