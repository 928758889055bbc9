"""Causal attention one token per step: the plain definition.

Axes: H heads, B batch, L queries, S keys, G groups, C tokens of one group,
K head width, E value width, M features.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import features as features_lib
from fast_attention import layout, reference
from fast_attention import state as state_lib

_TOKENS_PER_GROUP = 32  # bounds the states the backward pass keeps
# Tokens per turn of the loop: 16 is reported 4x faster than 1 on GPU, and
# measured 3 to 7 times slower on CPU.
_UNROLL = {'cpu': 1}
_DEFAULT_UNROLL = 16


def token_scan(
  feature_map: features_lib.FeatureMap,
  unroll: int | None,
  precision,
  query_BLHK: jax.Array,
  key_BSHK: jax.Array,
  value_BSHE: jax.Array,
  rows: features_lib.Rows | None,
  valid_BS: jax.Array | None,
  run_BL: jax.Array | None,
) -> jax.Array:
  """Causal, one token per step: the definition, differentiated by JAX.

  Tokens go in checkpointed groups, so that the backward pass keeps a state per
  group and one group's states.
  """
  B, length, H, K = query_BLHK.shape
  dtype = features_lib.compute_dtype(query_BLHK, key_BSHK, value_BSHE)
  group_length = min(_TOKENS_PER_GROUP, length)
  chunks = (-(-length // group_length), group_length)
  if unroll is None:
    unroll = _UNROLL.get(jax.default_backend(), _DEFAULT_UNROLL)
  unroll = min(unroll, group_length)
  groups = (
    layout.to_chunks(query_BLHK, chunks),
    layout.to_chunks(key_BSHK, chunks),
    layout.to_chunks(value_BSHE.astype(dtype), chunks),
    layout.valid_chunks(valid_BS, key_BSHK, chunks),
    None if run_BL is None else layout.row_chunks(run_BL, chunks, mode='edge'),
  )

  def token_step(carry, token):
    state, previous_run_B = carry
    query_HB1K, key_HB1K, value_HB1E, valid_B1, run_B1 = token
    query = feature_map.query_features(query_HB1K, rows)
    key = feature_map.key_features(key_HB1K, rows)
    log_scale_HB1 = key.log_scale_HBC.astype(dtype)
    if valid_B1 is not None:
      log_scale_HB1 = jnp.where(valid_B1[None], log_scale_HB1, -jnp.inf)
    same_B, run_B = None, None
    if run_B1 is not None:
      run_B = run_B1[:, 0]
      same_B = run_B == previous_run_B
    state = state_lib.add_keys(
      state,
      state_lib.entry_weights(state, log_scale_HB1, same_B),
      key.features_HBCM.astype(dtype),
      value_HB1E,
      precision,
    )
    sums = state_lib.read(state, query.features_HBCM.astype(dtype), precision)
    log_scale_HB1 = state_lib.finite(state.log_scale_HB)[..., None]
    out_HB1E = reference.normalise(
      feature_map, *sums, log_scale_HB1 + query.log_scale_HBC
    )
    return (state, run_B), out_HB1E

  @jax.checkpoint
  def group_step(carry, group):
    tokens = jax.tree.map(
      lambda x: jnp.moveaxis(x, -2 if x.ndim == 4 else -1, 0), group
    )
    tokens = jax.tree.map(
      lambda x: jnp.expand_dims(x, -2 if x.ndim == 4 else -1), tokens
    )
    carry, out = lax.scan(token_step, carry, tokens, unroll=unroll)
    return carry, out[..., 0, :]

  state = state_lib.empty_state(
    (H, B),
    feature_map.width(features_lib.num_rows(rows), K),
    value_BSHE.shape[-1],
    dtype,
  )
  first_run_B = None if run_BL is None else jnp.full((B,), -1, jnp.int32)
  first = state_lib.vary_like((state, first_run_B), groups)
  _, out_GCHBE = lax.scan(group_step, first, groups)
  return layout.from_chunks(out_GCHBE.transpose(0, 2, 3, 1, 4), length)
