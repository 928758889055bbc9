"""Decoding: the state after a prompt, and one token at a time.

Here batch comes before heads, as callers reorder and slice the batch.

Axes: B batch, J key/value heads, H query heads, R queries per key head, L
length of the prompt, K head width, E value width, M features.
"""

import functools

import jax
import jax.numpy as jnp

from fast_attention import arguments, estimator, linear, reference
from fast_attention import features as features_lib
from fast_attention import lower_variance as lower_variance_lib
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


class Decoder:
  """The methods of FastAttention that decode, token by token.

  The past is a state of fixed size, whatever the position.
  """

  def init_state(
    self,
    batch_shape: tuple[int, ...],
    heads: int,
    depth: int,
    value_depth: int | None = None,
    dtype=jnp.float32,
  ) -> state_lib.State:
    """The state before the first token.

    Args:
      batch_shape: of all batch axes.
      heads: number of key/value heads J.
      depth: head width K.
      value_depth: width of values E; default K.
      dtype: float32 or wider.

    Returns:
      A pytree of arrays that start with `[batch..., J]`.
    """
    is_deterministic = self.features_type == 'deterministic'
    nb_features = None
    if not is_deterministic:
      nb_features = estimator.num_rows(self.features_type, self.nb_features)
    return state_lib.empty_state(
      (*batch_shape, heads),
      self._feature_map.width(nb_features, depth),
      depth if value_depth is None else value_depth,
      dtype,
    )

  def prefill(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
    rng: jax.Array | None = None,
    projection: jax.Array | None = None,
    stats: lower_variance_lib.Statistics | None = None,
  ) -> tuple[jax.Array, state_lib.State]:
    """Causal attention over a prompt, and the state after it.

    Args:
      query: `[batch..., L, H, K]`.
      key: `[batch..., L, J, K]`.
      value: `[batch..., L, J, E]`.
      segment_ids: `[batch..., L]`; the state holds the run of the last
        unmasked key.
      mask: `[batch..., 1, 1, L]`; masked keys (padding on the right, say) do
        not enter the state.
      rng: see `projection_rng`; default the fixed one of layer 0.
      projection: instead of `rng`, what `projection` gave for it.
      stats: as in a call.

    Returns:
      Outputs `[batch..., L, H, E]` and the state.
    """
    self._check_decodes()
    arguments.check_stats(self, stats)
    arguments.check_shapes(query, key, value, self.qkv_dim)
    *batch_shape, L, J, K = key.shape
    if projection is None:
      projection = self.projection(rng, J, K)
    out = self._attend(
      query,
      key,
      value,
      mask=mask,
      segment_ids=segment_ids,
      causal=True,
      projection=projection,
      rng=None,
      stats=stats,
    )
    valid_BL = arguments.key_padding(mask, batch_shape, L)
    if segment_ids is not None:
      valid_BL = last_run(segment_ids.reshape(-1, L), valid_BL)
    _, key, rows = estimator.prepare(
      self.features_type, query, key, projection, stats
    )
    state = state_of(
      self._feature_map,
      *(x.reshape(-1, *x.shape[-3:]) for x in (key, value)),
      rows,
      valid_BL,
    )
    return out, jax.tree.map(
      lambda x: x.reshape(*batch_shape, *x.shape[1:]), state
    )

  def step(
    self,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: state_lib.State,
    *,
    rng: jax.Array | None = None,
    projection: jax.Array | None = None,
    stats: lower_variance_lib.Statistics | None = None,
  ) -> tuple[jax.Array, state_lib.State]:
    """One token: its key enters the state, its query reads it.

    Args:
      query: `[batch..., 1, H, K]`.
      key: `[batch..., 1, J, K]`.
      value: `[batch..., 1, J, E]`.
      state: from `init_state`, `prefill` or `step`.
      rng: see `projection_rng`; the one the state was made with.
      projection: instead of `rng`, what `projection` gave for it: nothing is
        drawn again at each token.
      stats: those the state was made with. To save time at each token pass
        `lower_variance.reshaping(features_type, stats, K)` in their place.

    Returns:
      Output `[batch..., 1, H, E]` and the next state.
    """
    self._check_decodes()
    arguments.check_stats(self, stats)
    arguments.check_shapes(query, key, value, self.qkv_dim)
    arguments.check_step(query, key, value, state)
    *batch_shape, _, J, K = key.shape
    if projection is None:
      projection = self.projection(rng, J, K)
    query, key, rows = estimator.prepare(
      self.features_type, query, key, projection, stats
    )
    out, state = step(
      self._feature_map,
      *(x.reshape(-1, *x.shape[-2:]) for x in (query, key, value)),
      jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[len(batch_shape) :]), state
      ),
      rows,
    )
    return (
      out.reshape(*batch_shape, 1, *out.shape[1:]).astype(value.dtype),
      jax.tree.map(lambda x: x.reshape(*batch_shape, *x.shape[1:]), state),
    )

  def _check_decodes(self):
    if self.unidirectional is False:
      raise ValueError(
        'unidirectional=False has no decode state: every output depends on '
        'later tokens. Leave unidirectional unset (None).'
      )
