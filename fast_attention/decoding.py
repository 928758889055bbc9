"""Decoding: the state after a prompt, and one token at a time.

Here batch comes before heads, as callers reorder and slice the batch.

Axes: B batch, J key/value heads, H query heads, R queries per key head, L
length of the prompt, K head width, E value width, M features.
"""

import functools

import jax
import jax.numpy as jnp

from fast_attention import features as features_lib
from fast_attention import linear, reference
from fast_attention import state as state_lib


def last_run(
  segment_ids_BL: jax.Array, valid_BL: jax.Array | None
) -> jax.Array:
  """Which keys are valid and of the same run as the last valid one."""
  run_BL = reference.run_ids(segment_ids_BL)
  if valid_BL is None:
    return run_BL == run_BL[:, -1:]
  last_run_B = jnp.max(jnp.where(valid_BL, run_BL, -1), axis=-1)
  return valid_BL & (run_BL == last_run_B[:, None])


def state_of(
  feature_map: features_lib.FeatureMap,
  key_BLJK: jax.Array,
  value_BLJE: jax.Array,
  rows: features_lib.Rows | None,
  valid_BL: jax.Array | None,
) -> state_lib.State:
  """The state that holds all valid keys; its arrays start with `[B, J]`."""
  spec = linear.Linear(feature_map, causal=False)
  state = linear.pool(spec, key_BLJK, value_BLJE, rows, valid_BL)
  return jax.tree.map(lambda x: x.swapaxes(0, 1), state)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def step(
  feature_map: features_lib.FeatureMap,
  query_BHK: jax.Array,
  key_BJK: jax.Array,
  value_BJE: jax.Array,
  state: state_lib.State,
  rows: features_lib.Rows | None,
) -> tuple[jax.Array, state_lib.State]:
  """Output `[B, H, E]` of one token, and the next state."""
  B, H, K = query_BHK.shape
  J = key_BJK.shape[1]
  dtype = state.kv_HBEM.dtype
  query_JBRK = query_BHK.reshape(B, J, H // J, K).swapaxes(0, 1)
  key_JB1K = key_BJK.swapaxes(0, 1)[:, :, None, :]

  # [J, B, ...] -> [B, J, ...], and to the state's dtype.
  query, key = jax.tree.map(
    lambda x: x.swapaxes(0, 1).astype(dtype),
    (
      feature_map.query_features(query_JBRK, rows),
      feature_map.key_features(key_JB1K, rows),
    ),
  )
  state = state_lib.add_keys(
    state,
    state_lib.entry_weights(state, key.log_scale_HBC),
    key.features_HBCM,
    value_BJE.astype(dtype)[:, :, None, :],
  )
  numerator_BJRE, denominator_BJR = state_lib.read(state, query.features_HBCM)
  log_scale_BJ1 = state_lib.finite(state.log_scale_HB)[..., None]
  out_BJRE = reference.normalise(
    feature_map,
    numerator_BJRE,
    denominator_BJR,
    query.log_scale_HBC + log_scale_BJ1,
  )
  return out_BJRE.reshape(B, H, value_BJE.shape[-1]), state
