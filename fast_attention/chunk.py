"""Chunks of a sweep: their arrays, and the weights of keys and state in them.

All weights are exp(scale - larger scale) <= 1, or 0 where nothing is visible.
See sweep.py for P, g, f, w.

Axes: H heads, B batch, G chunks, C queries and S keys of one chunk, K head
width, E value width, M features.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fast_attention import features as features_lib
from fast_attention import state as state_lib


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep does.

  Attributes:
    feature_map: of queries and keys.
    inside: which keys of its own chunk a query sees: 'causal', 'all' or 'none'
      (for more than one chunk), of its own run.
    reverse: whether chunks go from last to first.
    unroll: chunks per turn of the loop.
    precision: of every product except the projection.
  """

  feature_map: features_lib.FeatureMap
  inside: str
  reverse: bool = False
  unroll: int = 1
  precision: Any = None


class Inputs(NamedTuple):
  """Arrays in chunks; in the loop, without the G."""

  query_GHBCK: jax.Array
  key_GHBCK: jax.Array
  value_GHBCE: jax.Array
  valid_GBC: jax.Array | None  # bool: keys that may be seen
  run_GBC: jax.Array | None  # int: number of the run of equal segment ids


class Sums(NamedTuple):
  """Numerator and denominator, both times exp(-log_scale - query_scale)."""

  numerator_GHBCE: jax.Array
  denominator_GHBC: jax.Array
  log_scale_GHBC: jax.Array  # largest of the keys seen: r_t
  query_scale_GHBC: jax.Array


class Carry(NamedTuple):
  """What one chunk leaves to the next."""

  state: state_lib.State
  run_B: jax.Array | None  # the run whose keys the state holds


def visible(spec: Sweep, chunk: Inputs) -> jax.Array | None:
  """Which keys of its own chunk a query sees, bool `[B or 1, C, S]`."""
  if spec.inside == 'none':
    return None
  C = chunk.query_GHBCK.shape[-2]
  visible_BCS = jnp.ones((1, C, C), bool)
  if spec.inside == 'causal':
    visible_BCS = jnp.tril(visible_BCS)
  if chunk.run_GBC is not None:
    run_BC = chunk.run_GBC
    visible_BCS = visible_BCS & (run_BC[:, :, None] == run_BC[:, None, :])
  if chunk.valid_GBC is not None and not spec.feature_map.has_scale:
    # Elsewhere the scale of an invalid key, -inf, does this.
    visible_BCS = visible_BCS & chunk.valid_GBC[:, None, :]
  return visible_BCS


def sees_state(carry: Carry, chunk: Inputs) -> jax.Array | None:
  """Whether a query belongs to the run the state holds; None is always."""
  if chunk.run_GBC is None:
    return None
  return chunk.run_GBC == carry.run_B[:, None]


def query_log_scale(spec, carry, chunk: Inputs, key_scale_HBS):
  """r_t: the largest log-scale of the keys a query sees."""
  if not spec.feature_map.has_scale:
    return jnp.zeros_like(key_scale_HBS)
  log_scale_HBC = jnp.full_like(key_scale_HBS, -jnp.inf)
  visible_BCS = visible(spec, chunk)
  if visible_BCS is not None:
    log_scale_HBC = jnp.max(
      jnp.where(visible_BCS[None], key_scale_HBS[:, :, None, :], -jnp.inf),
      axis=-1,
    )
  if carry is None:
    return log_scale_HBC
  past_HBC = carry.state.log_scale_HB[..., None]
  sees_BC = sees_state(carry, chunk)
  if sees_BC is not None:
    past_HBC = jnp.where(sees_BC[None], past_HBC, -jnp.inf)
  return jnp.maximum(log_scale_HBC, past_HBC)


def inside_weights(spec, visible, key_scale, log_scale):
  """P: exp(c_s - r_t) where visible. Masked inside the exponential."""
  if not spec.feature_map.has_scale:
    return visible.astype(key_scale.dtype)
  exponent = key_scale - state_lib.finite(log_scale)
  return jnp.exp(jnp.where(visible, exponent, -jnp.inf))


def state_weights(carry: Carry, chunk: Inputs, log_scale_HBC):
  """g_t: factor of what is read from the state."""
  past_HBC = carry.state.log_scale_HB[..., None]
  sees_BC = sees_state(carry, chunk)
  if sees_BC is not None:
    past_HBC = jnp.where(sees_BC[None], past_HBC, -jnp.inf)
  return jnp.exp(past_HBC - state_lib.finite(log_scale_HBC))


def entry(spec, carry: Carry, chunk: Inputs, key_scale_HBS):
  """f and w_s, and the run that the next state holds."""
  if chunk.run_GBC is None:
    return state_lib.entry_weights(carry.state, key_scale_HBS), None
  run_BS = chunk.run_GBC
  edge_B = run_BS[:, 0] if spec.reverse else run_BS[:, -1]
  stays_BS = run_BS == edge_B[:, None]
  entry = state_lib.entry_weights(
    carry.state,
    jnp.where(stays_BS[None], key_scale_HBS, -jnp.inf),
    edge_B == carry.run_B,
  )
  return entry, edge_B
