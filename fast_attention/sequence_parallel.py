"""Linear-time attention over a length that is split between devices.

Each device holds one shard of consecutive positions. The keys of a shard amount
to a state `[H, B, E, M]`, whatever their number, and states are all that
devices send each other: every shard gathers those of all, merges the ones its
queries see, in order and at their largest log-scale, and goes on from there as
a sweep goes on from chunk to chunk. Queries, keys and values stay where they
are.

    causal                    what the shards to the left hold
    bidirectional             what all shards hold
    bidirectional, segments   what the left hold, and what the right hold

A run of equal segment ids goes on over an edge where the ids on its two sides
are equal. So a shard also sends its first and last id, and whether it is one
run: then the run goes on through it.

Gradients come from JAX: that of a gathered state is a sum over the devices that
read it. Log-scales are constants.

Axes: N shards, H heads, B batch, L positions, S keys of one shard, K head
width, E value width, M features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import chunk as chunk_lib
from fast_attention import features as features_lib
from fast_attention import linear, reference
from fast_attention import state as state_lib


class Edges(NamedTuple):
  """Segment ids at the ends of a shard; with a leading N, those of all."""

  first_B: jax.Array
  last_B: jax.Array
  is_one_run_B: jax.Array  # bool


def linear_attention(
  axis_name: str,
  spec: linear.Linear,
  query_BLHK: jax.Array,
  key_BSHK: jax.Array,
  value_BSHE: jax.Array,
  rows: features_lib.Rows | None,
  *,
  valid_BS: jax.Array | None = None,
  segment_ids_BL: jax.Array | None = None,
) -> jax.Array:
  """One shard of `linear.linear_attention`, `[B, L, H, E]`.

  Called inside `jax.shard_map`; every array is this device's shard of it.

  Args:
    axis_name: mesh axis over which the length is split, in its order.
    spec: how; its implementation is 'auto' or 'chunked'.
    query_BLHK: queries.
    key_BSHK: keys of the same positions.
    value_BSHE: values.
    rows: of the feature map, or None; the same on all shards.
    valid_BS: bool, keys that may be seen; None is all.
    segment_ids_BL: positions see their own maximal run of equal ids, which may
      cross shards; None is one run.

  Raises:
    ValueError: the implementation is 'scan' or 'reference'.
  """
  if spec.implementation not in ('auto', 'chunked'):
    raise ValueError(
      f'implementation={spec.implementation!r} needs the whole length on one '
      f"device, but it is split over the mesh axis {axis_name!r}: use 'auto'."
    )
  arrays = (query_BLHK, key_BSHK, value_BSHE, rows, valid_BS, segment_ids_BL)
  *arrays, segment_ids_BL = state_lib.vary_like(
    arrays, (arrays, lax.axis_index(axis_name))
  )
  _, key_BSHK, value_BSHE, rows, valid_BS = arrays

  def gather(is_held_BS) -> state_lib.State:
    """The states that hold those keys, of all shards."""
    if is_held_BS is None or valid_BS is None:
      held_BS = valid_BS if is_held_BS is None else is_held_BS
    else:
      held_BS = is_held_BS & valid_BS
    state = linear.pool(spec, key_BSHK, value_BSHE, rows, held_BS)
    return lax.all_gather(state, axis_name)

  index = lax.axis_index(axis_name)
  num_shards = lax.axis_size(axis_name)
  if segment_ids_BL is None:
    is_seen_N = jnp.arange(num_shards) < (index if spec.causal else num_shards)
    state = merge(gather(None), is_seen_N[:, None])
    if not spec.causal:
      return linear.read(spec, query_BLHK, state, rows)
    return linear.swept(spec, *arrays, None, chunk_lib.Carry(state, None))

  run_BL = reference.run_ids(segment_ids_BL)
  last_run_B = run_BL[:, -1]
  edges = lax.all_gather(
    Edges(segment_ids_BL[:, 0], segment_ids_BL[:, -1], last_run_B == 0),
    axis_name,
  )
  states = gather(run_BL == last_run_B[:, None])
  left = merge(states, reaches(edges, index))
  left = chunk_lib.Carry(left, jnp.zeros_like(last_run_B))
  if spec.causal:
    return linear.swept(spec, *arrays, run_BL, left)
  mirrored = Edges(
    edges.last_B[::-1], edges.first_B[::-1], edges.is_one_run_B[::-1]
  )
  is_seen_NB = reaches(mirrored, num_shards - 1 - index)[::-1]
  right = chunk_lib.Carry(merge(gather(run_BL == 0), is_seen_NB), last_run_B)
  return linear.swept(spec, *arrays, run_BL, left, right)


def reaches(edges_NB: Edges, index: jax.Array) -> jax.Array:
  """Whether the last run of each shard goes on into shard `index`, [N, B].

  Only shards to its left can: their edges must join, and the shards between be
  one run each.
  """
  goes_on_NB = edges_NB.first_B == jnp.roll(edges_NB.last_B, 1, axis=0)
  passes_NB = goes_on_NB & edges_NB.is_one_run_B
  number_N1 = jnp.arange(len(passes_NB))[:, None]
  number_1N = number_N1.T
  is_between_NN = (number_N1 < number_1N) & (number_1N < index)
  is_open_NB = jnp.all(passes_NB[None] | ~is_between_NN[..., None], axis=1)
  return is_open_NB & (number_N1 < index) & goes_on_NB[index][None]


def merge(states: state_lib.State, is_seen_NB: jax.Array) -> state_lib.State:
  """The shards' states that are seen, as one, at the largest log-scale.

  Args:
    states: of all shards, with leading axes `[N, H, B]`.
    is_seen_NB: bool, `[N, B or 1]`; what is not seen enters as an exact zero.
  """
  log_scale_NHB = jnp.where(
    is_seen_NB[:, None], lax.stop_gradient(states.log_scale_HB), -jnp.inf
  )
  log_scale_HB = jnp.max(log_scale_NHB, axis=0)
  weight_NHB = jnp.exp(log_scale_NHB - state_lib.finite(log_scale_HB)[None])
  return state_lib.State(
    jnp.sum(state_lib.scaled(states.kv_HBEM, weight_NHB), axis=0),
    jnp.sum(state_lib.scaled(states.key_sum_HBM, weight_NHB), axis=0),
    log_scale_HB,
  )
