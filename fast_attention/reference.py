"""Quadratic definitions, for tests and for readers. Nothing here is fast.

Axes: H heads, B batch, L queries, S keys, K head width, E value width,
M features.
"""

import jax
import jax.numpy as jnp

from fast_attention import features as features_lib


def run_ids(segment_ids_BL: jax.Array) -> jax.Array:
  """Numbers the maximal runs of equal ids: [5, 5, 0, 5] -> [0, 0, 1, 2]."""
  changes_BL = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
  changes_BL = jnp.pad(changes_BL, ((0, 0), (1, 0)))
  return jnp.cumsum(changes_BL.astype(jnp.int32), axis=-1)


def visible_keys(
  num_queries: int,
  num_keys: int,
  *,
  causal: bool,
  valid_BS: jax.Array | None = None,
  run_BL: jax.Array | None = None,
) -> jax.Array:
  """Which keys a query sees, bool `[B or 1, L, S]`."""
  visible_BLS = jnp.ones((1, num_queries, num_keys), bool)
  if causal:
    visible_BLS = jnp.tril(visible_BLS)
  if run_BL is not None:
    visible_BLS = visible_BLS & (run_BL[:, :, None] == run_BL[:, None, :])
  if valid_BS is not None:
    visible_BLS = visible_BLS & valid_BS[:, None, :]
  return visible_BLS


def kernel_attention(
  feature_map: features_lib.FeatureMap,
  query_HBLK: jax.Array,
  key_HBSK: jax.Array,
  value_HBSE: jax.Array,
  rows: features_lib.Rows | None,
  *,
  causal: bool,
  valid_BS: jax.Array | None = None,
  run_BL: jax.Array | None = None,
) -> jax.Array:
  """out_t = sum_s phi(q_t).phi(k_s) v_s / sum_s phi(q_t).phi(k_s), written out.

  Without `feature_map.renormalize` the division is left out.
  """
  dtype = features_lib.compute_dtype(query_HBLK, key_HBSK, value_HBSE)
  query = feature_map.query_features(query_HBLK.astype(dtype), rows)
  key = feature_map.key_features(key_HBSK.astype(dtype), rows)
  visible_1BLS = visible_keys(
    query_HBLK.shape[2],
    key_HBSK.shape[2],
    causal=causal,
    valid_BS=valid_BS,
    run_BL=run_BL,
  )[None]

  log_scale_HBLS = jnp.where(
    visible_1BLS, key.log_scale_HBC[:, :, None, :], -jnp.inf
  )
  largest_HBL = jnp.max(log_scale_HBLS, axis=-1)
  largest_HBL = jnp.where(jnp.isfinite(largest_HBL), largest_HBL, 0)
  scores_HBLS = jnp.einsum(
    'hblm,hbsm->hbls',
    query.features_HBCM,
    key.features_HBCM,
    precision='highest',
  )
  scores_HBLS *= jnp.exp(log_scale_HBLS - largest_HBL[..., None])
  out_HBLE = jnp.einsum(
    'hbls,hbse->hble',
    scores_HBLS,
    value_HBSE.astype(dtype),
    precision='highest',
  )
  return normalise(
    feature_map,
    out_HBLE,
    jnp.sum(scores_HBLS, axis=-1),
    query.log_scale_HBC + largest_HBL,
  )


def normalise(
  feature_map: features_lib.FeatureMap,
  numerator_HBLE: jax.Array,
  denominator_HBL: jax.Array,
  log_scale_HBL: jax.Array | None,
) -> jax.Array:
  """Divides by the denominator, or else undoes the scales; None is none.

  A row without keys, or whose denominator is too small to divide by, is zeros.
  """
  factor_HBL = output_factor(feature_map, denominator_HBL, log_scale_HBL)
  if factor_HBL is None:
    return numerator_HBLE
  return numerator_HBLE * factor_HBL[..., None]


def output_factor(
  feature_map: features_lib.FeatureMap,
  denominator_HBL: jax.Array,
  log_scale_HBL: jax.Array | None,
) -> jax.Array | None:
  """What numerators are multiplied by to be outputs; None is 1."""
  if not feature_map.renormalize:
    return None if log_scale_HBL is None else jnp.exp(log_scale_HBL)
  usable_HBL = jnp.abs(denominator_HBL) > feature_map.smallest_denominator
  return jnp.where(usable_HBL, 1 / jnp.where(usable_HBL, denominator_HBL, 1), 0)
