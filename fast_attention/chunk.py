"""Chunks of a sweep: their arrays, and the weights of keys and state in them.

All weights are exp(scale - larger scale) <= 1, or 0 where nothing is visible;
None where all are 1. See sweep.py for P, g, f, w.

Axes: H heads, B batch, L positions, C queries and S keys of one chunk, K head
width, E value width, M features.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import features as features_lib
from fast_attention import state as state_lib


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep does.

  Attributes:
    feature_map: of queries and keys.
    inside: which keys of its own chunk a query sees: 'causal', 'all' or 'none'
      (for more than one chunk), of its own run.
    chunk_length: C; divides the length.
    reverse: whether chunks go from last to first.
    normalise: whether numerators are divided by the denominators.
    streams: groups of heads whose products do not wait for each other.
    unroll: chunks per turn of the loop.
    precision: of every product except the projection.
    keep_states: whether the backward pass finds the states kept.
  """

  feature_map: features_lib.FeatureMap
  inside: str
  chunk_length: int
  reverse: bool = False
  normalise: bool = False
  streams: int = 1
  unroll: int = 1
  precision: Any = None
  keep_states: bool = False

  def einsum(self, subscripts: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, *operands, precision=self.precision)

  def head_groups(self, num_heads: int) -> list[slice]:
    """The heads of each stream: as equal as can be."""
    streams = min(self.streams, num_heads)
    edges = [n * num_heads // streams for n in range(streams + 1)]
    return [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]


class Inputs(NamedTuple):
  """Whole rows; the length is a multiple of the chunk's."""

  query_BLHK: jax.Array
  key_BLHK: jax.Array
  value_BLHE: jax.Array
  valid_BL: jax.Array | None  # bool: keys that may be seen
  run_BL: jax.Array | None  # int: number of the run of equal segment ids
  visible_BLS: jax.Array | None = None  # bool: keys of its chunk a query sees


class Chunk(NamedTuple):
  """One chunk of some heads."""

  query_HBCK: jax.Array
  key_HBCK: jax.Array
  value_HBCE: jax.Array
  valid_BC: jax.Array | None
  run_BC: jax.Array | None
  visible_BCS: jax.Array | None  # bool, `[B or 1, C, S]`


class Carry(NamedTuple):
  """What one chunk leaves to the next."""

  state: state_lib.State
  run_B: jax.Array | None  # the run whose keys the state holds


def take(x_BLHK: jax.Array, number, length: int, heads: slice) -> jax.Array:
  """Chunk `number` of some heads, `[H, B, C, K]`.

  Cut where it is used: a copy of the whole in another layout would cost as
  much again, and memory.
  """
  x_BCHK = lax.dynamic_slice_in_dim(x_BLHK, number * length, length, axis=1)
  return x_BCHK[:, :, heads].transpose(2, 0, 1, 3)


def put(x_BLHK: jax.Array, y_HBCK: jax.Array, number, heads: slice):
  """`x` with chunk `number` of some heads replaced."""
  start = number * y_HBCK.shape[2]
  y_BCHK = y_HBCK.transpose(1, 2, 0, 3).astype(x_BLHK.dtype)
  return lax.dynamic_update_slice(x_BLHK, y_BCHK, (0, start, heads.start, 0))


def take_rows(x_HBL: jax.Array | None, number, length: int, heads: slice):
  """The same of numbers per position and head, `[H, B, C]`."""
  if x_HBL is None:
    return None
  return lax.dynamic_slice_in_dim(x_HBL[heads], number * length, length, axis=2)


def put_rows(x_HBL: jax.Array | None, y_HBC, number, heads: slice):
  if x_HBL is None:
    return None
  start = number * y_HBC.shape[2]
  return lax.dynamic_update_slice(x_HBL, y_HBC, (heads.start, 0, start))


def take_chunk(spec: Sweep, inputs: Inputs, number, heads: slice) -> Chunk:
  length = spec.chunk_length

  def take_positions(x_BL):
    if x_BL is None:
      return None
    return lax.dynamic_slice_in_dim(x_BL, number * length, length, axis=1)

  visible_BCS = take_positions(inputs.visible_BLS)
  if visible_BCS is None and spec.inside != 'none':
    visible_BCS = jnp.ones((1, length, length), bool)
    if spec.inside == 'causal':
      visible_BCS = jnp.tril(visible_BCS)

  return Chunk(
    *(take(x, number, length, heads) for x in inputs[:3]),
    take_positions(inputs.valid_BL),
    take_positions(inputs.run_BL),
    visible_BCS,
  )


def with_visible(spec: Sweep, inputs: Inputs) -> Inputs:
  """The rows with what a query sees of its own chunk, where rows differ.

  Made before the loop, once for all heads: comparisons of runs inside it cost
  as much as the products do.
  """
  hides_invalid = inputs.valid_BL is not None and not spec.feature_map.has_scale
  if spec.inside == 'none' or (inputs.run_BL is None and not hides_invalid):
    return inputs
  B, L = inputs.query_BLHK.shape[:2]
  C = spec.chunk_length
  visible_BGCS = jnp.ones((B, L // C, C, C), bool)
  if spec.inside == 'causal':
    visible_BGCS = jnp.tril(visible_BGCS)
  if inputs.run_BL is not None:
    run_BGC = inputs.run_BL.reshape(B, -1, C)
    visible_BGCS &= run_BGC[..., :, None] == run_BGC[..., None, :]
  if hides_invalid:
    # Elsewhere the scale of an invalid key, -inf, does this.
    visible_BGCS &= inputs.valid_BL.reshape(B, -1, 1, C)
  return inputs._replace(visible_BLS=visible_BGCS.reshape(B, L, C))


def past_log_scale(carry: Carry, chunk: Chunk) -> jax.Array:
  """Log-scale of what a query sees of the state, `[H, B, C or 1]`."""
  past_HB1 = carry.state.log_scale_HB[..., None]
  if chunk.run_BC is None:
    return past_HB1
  sees_BC = chunk.run_BC == carry.run_B[:, None]
  return jnp.where(sees_BC[None], past_HB1, -jnp.inf)


def query_log_scale(spec, carry: Carry | None, chunk: Chunk, key_scale_HBS):
  """r_t: the largest log-scale of the keys a query sees; None if all are 0."""
  if not spec.feature_map.has_scale:
    return None
  log_scale_HBC = jnp.full_like(key_scale_HBS, -jnp.inf)
  if chunk.visible_BCS is not None:
    scales_HB1S = key_scale_HBS[:, :, None, :]
    log_scale_HBC = jnp.max(
      jnp.where(chunk.visible_BCS[None], scales_HB1S, -jnp.inf), axis=-1
    )
  if carry is None:
    return log_scale_HBC
  return jnp.maximum(log_scale_HBC, past_log_scale(carry, chunk))


def weigh_inside(spec, visible_BCS, key_scale_HBS, log_scale_HBC, scores_HBCS):
  """scores P, with P = exp(c_s - r_t) where visible, else 0."""
  if not spec.feature_map.has_scale:
    return jnp.where(visible_BCS[None], scores_HBCS, 0)
  exponents_HBCS = (
    key_scale_HBS[:, :, None, :] - state_lib.finite(log_scale_HBC)[..., None]
  )
  # Masked inside the exponential: after it gradients are NaN.
  return scores_HBCS * jnp.exp(
    jnp.where(visible_BCS[None], exponents_HBCS, -jnp.inf)
  )


def past_weights(spec, carry: Carry, chunk: Chunk, log_scale_HBC):
  """g_t: factor of what is read from the state."""
  if spec.feature_map.has_scale:
    return jnp.exp(
      past_log_scale(carry, chunk) - state_lib.finite(log_scale_HBC)
    )
  if chunk.run_BC is None:
    return None
  sees_BC = chunk.run_BC == carry.run_B[:, None]
  return sees_BC[None].astype(carry.state.kv_HBEM.dtype)


def entry(
  spec, carry: Carry, chunk: Chunk, key_scale_HBS
) -> tuple[state_lib.Entry, jax.Array | None]:
  """f and w_s, and the run that the next state holds."""
  all_enter = chunk.run_BC is None and chunk.valid_BC is None
  if all_enter and not spec.feature_map.has_scale:
    return state_lib.Entry(None, None, carry.state.log_scale_HB), None
  if chunk.run_BC is None:
    return state_lib.entry_weights(carry.state, key_scale_HBS), None
  run_BS = chunk.run_BC
  edge_B = run_BS[:, 0] if spec.reverse else run_BS[:, -1]
  stays_BS = run_BS == edge_B[:, None]
  weights = state_lib.entry_weights(
    carry.state,
    jnp.where(stays_BS[None], key_scale_HBS, -jnp.inf),
    edge_B == carry.run_B,
  )
  return weights, edge_B
