"""Attention on a mesh of devices: each computes its rows, heads and positions.

Rows of the batch are split over the mesh axes `data` and `fsdp`, heads over
`tensor`, the length over `sequence`; a mesh may lack some of them. XLA cannot
split loops over the length, nor is its guess at the rest to be relied on, so
attention runs inside `jax.shard_map`.

Where the length is split, fast attention sends its states alone
(fast_attention/sequence_parallel.py); exact attention gathers keys and values.
The cores of a CPU, which share their memory, exchange positions for heads
instead (arXiv 2309.14509): whole rows of some heads cost them no second pass
over the keys and no masked blocks.

Axes: B batch, L length, S keys of all shards, H heads, J key/value heads,
K head width, M features.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from fast_attention import FastAttention, layout, lower_variance, residuals
from fast_attention.reference import run_ids
from protein_lm import cores
from protein_lm.exact_attention import ExactAttention

ROWS, HEADS, LENGTH = ('data', 'fsdp'), 'tensor', 'sequence'

# Of exact attention over a split length: bounds the scores in memory, which
# are this x S for each row and head.
_QUERIES_AT_ONCE = 256


def attend(
  attention_fn,
  query_BLHK,
  key_BLJK,
  value_BLJK,
  *,
  segment_ids=None,
  is_causal=False,
  rng=None,
  deterministic=True,
  dropout_rate=0.0,
  dropout_rng=None,
  stats=None,
):
  """What `attention_fn` gives, computed on all devices of the mesh.

  The mesh is that of `jax.set_mesh`. Without one, with one device, and for an
  attention that is neither exact nor a FastAttention, this is a plain call.
  Random features are those of one device; dropout of attention weights is not:
  every device draws its own.

  Args:
    attention_fn: the attention of a layer.
    query_BLHK: queries of the whole batch.
    key_BLJK: keys.
    value_BLJK: values.
    segment_ids: [B, L] int, attention stays within runs of equal ids.
    is_causal: position t sees s <= t.
    rng: key of the random features, or None.
    deterministic: no dropout.
    dropout_rate: share of attention weights dropped in training.
    dropout_rng: key of that dropout.
    stats: statistics of queries and keys, or None.

  Returns:
    [B, L, H, K].

  Raises:
    ValueError: the length or the heads do not divide among the devices.
  """
  kwargs = dict(
    is_causal=is_causal, deterministic=deterministic, dropout_rate=dropout_rate
  )
  split = None
  if can_split(attention_fn):
    split = _find_split(query_BLHK, key_BLJK)
  if split is None:
    return attention_fn(
      query_BLHK,
      key_BLJK,
      value_BLJK,
      segment_ids=segment_ids,
      rng=rng,
      dropout_rng=dropout_rng,
      stats=stats,
      **kwargs,
    )
  arrays = query_BLHK, key_BLJK, value_BLJK, segment_ids
  if isinstance(attention_fn, FastAttention):
    return _fast(attention_fn, split, *arrays, rng, stats, **kwargs)
  return _exact(attention_fn, split, *arrays, dropout_rng, **kwargs)


def can_split(attention_fn):
  """Whether it is an attention that devices can share."""
  return isinstance(attention_fn, (FastAttention, ExactAttention))


def measure(query_BLHK, key_BLJK, valid_BL):
  """`lower_variance.measure` of the whole batch, computed on all devices.

  Args:
    query_BLHK: queries of the whole batch.
    key_BLJK: keys.
    valid_BL: bool, positions that count.

  Returns:
    lower_variance.Statistics.
  """
  split = _find_split(query_BLHK, key_BLJK)
  if split is None:
    return lower_variance.measure(query_BLHK, key_BLJK, valid_BL, valid_BL)

  def shard(query, key, valid):
    return lower_variance.measure(
      query, key, valid, valid, axis_names=split.positions
    )

  return jax.shard_map(
    shard,
    in_specs=(split.per_head, split.per_head, split.per_position),
    out_specs=P(split.heads),
  )(query_BLHK, key_BLJK, valid_BL)


class _Split(NamedTuple):
  """Mesh axes over which an array is split; none of size 1."""

  rows: tuple[str, ...]
  heads: tuple[str, ...]
  length: str | None
  by_heads: bool = False  # positions are exchanged for heads

  @property
  def per_position(self):
    """Of arrays [B, L]."""
    return P(self.rows, self.length)

  @property
  def per_head(self):
    """Of arrays [B, L, H, K]."""
    return P(self.rows, self.length, self.heads)

  @property
  def positions(self):
    """The axes that split positions, in a tuple."""
    return self.rows + (() if self.length is None else (self.length,))

  @property
  def attended_heads(self):
    """The axes that split heads while these are attended to."""
    return self.heads + ((self.length,) if self.by_heads else ())

  @property
  def attended_length(self):
    """The axis that splits the length meanwhile, or None."""
    return None if self.by_heads else self.length


def _find_split(query_BLHK, key_BLJK) -> _Split | None:
  """How the mesh splits attention; None if it does not.

  Inside another shard_map the arrays are those of one device already.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or mesh.manual_axes:
    return None
  sizes = {name: size for name, size in mesh.shape.items() if size > 1}
  # Where rows do not divide, as in a small batch, devices compute the same.
  rows, num_parts = (), 1
  for name in ROWS:
    if name in sizes and len(query_BLHK) % (num_parts * sizes[name]) == 0:
      rows += (name,)
      num_parts *= sizes[name]
  heads = (HEADS,) if HEADS in sizes else ()
  split = _Split(rows, heads, LENGTH if LENGTH in sizes else None)
  num_heads = query_BLHK.shape[2], key_BLJK.shape[2]
  length = query_BLHK.shape[1]
  if split.length and length % sizes[LENGTH]:
    raise ValueError(
      f'rows of {length} positions do not divide among mesh.sequence='
      f'{sizes[LENGTH]} devices: choose lengths that are multiples of it, or '
      'mesh.sequence = 1.'
    )
  for number in num_heads:
    if split.heads and number % sizes[HEADS]:
      raise ValueError(
        f'{number} attention heads do not divide among mesh.tensor='
        f'{sizes[HEADS]} devices: choose a divisor of num_heads, or '
        'mesh.tensor = 1.'
      )
  are_cores = jax.default_backend() == 'cpu' and cores.num_devices() > 1
  if split.length and are_cores:
    parts_of_heads = sizes[LENGTH] * sizes.get(HEADS, 1)
    by_heads = all(number % parts_of_heads == 0 for number in num_heads)
    split = split._replace(by_heads=by_heads)
  return split if any(split) else None


def _on_shards(split, attend_shard, *specs):
  """A shard's attention, of queries, keys, values, segments, on all shards.

  Args:
    split: the _Split of these.
    attend_shard: the attention to what a device attends to.
    *specs: of the arguments that follow them.
  """
  if split.by_heads:
    attend_shard = _by_heads(attend_shard)
  x = split.per_head
  return jax.shard_map(
    attend_shard,
    in_specs=(x, x, x, split.per_position, *specs),
    out_specs=x,
  )


def _by_heads(attend_rows):
  """Attention to whole rows of some heads, of positions of all heads."""

  def attend_positions(query, key, value, segment_ids, *args):
    # Kept after the exchange: the backward pass does not do it again.
    query, key, value = (
      residuals.named(_exchange(x, 2, 1)) for x in (query, key, value)
    )
    if segment_ids is not None:
      segment_ids = lax.all_gather(segment_ids, LENGTH, axis=1, tiled=True)
    out = attend_rows(query, key, value, segment_ids, *args)
    return residuals.named(_exchange(out, 1, 2))

  return attend_positions


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _exchange(x, split_axis, concat_axis):
  """`lax.all_to_all`, tiled, in fewer copies."""
  parts = jnp.split(x, lax.axis_size(LENGTH), split_axis)
  parts = lax.all_to_all(jnp.stack(parts), LENGTH, 0, 0)
  return jnp.concatenate(list(parts), concat_axis)


_exchange.defvjp(
  lambda x, *axes: (_exchange(x, *axes), None),
  lambda split_axis, concat_axis, _, dy: (
    _exchange(dy, concat_axis, split_axis),
  ),
)


def _fast(
  attention_fn, split, query, key, value, segment_ids, rng, stats, **kwargs
):
  """Random rows and what statistics make are those of one device."""
  depth = key.shape[-1]
  projection_JMK = attention_fn.projection(rng, key.shape[2], depth)
  if stats is not None:
    stats = lower_variance.reshaping(attention_fn.features_type, stats, depth)

  def shard(query, key, value, segment_ids, projection, stats):
    return attention_fn(
      query,
      key,
      value,
      segment_ids=segment_ids,
      projection=projection,
      stats=stats,
      axis_name=split.attended_length,
      **kwargs,
    )

  of_heads = P(split.attended_heads)
  shards = _on_shards(split, shard, of_heads, of_heads)
  return shards(query, key, value, segment_ids, projection_JMK, stats)


def _exact(
  attention_fn, split, query, key, value, segment_ids, dropout_rng, **kwargs
):
  if split.attended_length is not None:
    attention_fn = functools.partial(_gathered, attention_fn)

  def shard(query, key, value, segment_ids, dropout_rng):
    if dropout_rng is not None:
      for name in (*split.positions, *split.heads):
        dropout_rng = jax.random.fold_in(dropout_rng, lax.axis_index(name))
    return attention_fn(
      query,
      key,
      value,
      segment_ids=segment_ids,
      dropout_rng=dropout_rng,
      **kwargs,
    )

  shards = _on_shards(split, shard, P())
  return shards(query, key, value, segment_ids, dropout_rng)


def _gathered(
  attention_fn,
  query_BLHK,
  key_BLJK,
  value_BLJK,
  *,
  segment_ids,
  is_causal,
  dropout_rng,
  **kwargs,
):
  """Exact attention of one shard's queries over the keys of all shards."""
  if attention_fn.unidirectional is not None:
    is_causal = attention_fn.unidirectional
  attention_fn = dataclasses.replace(
    attention_fn, unidirectional=False, implementation='plain'
  )
  key_BSJK, value_BSJK, segment_ids_BS = lax.all_gather(
    (key_BLJK, value_BLJK, segment_ids), LENGTH, axis=1, tiled=True
  )
  S, L = key_BSJK.shape[1], query_BLHK.shape[1]
  run_BS = None if segment_ids is None else run_ids(segment_ids_BS)
  num_blocks = -(-L // _QUERIES_AT_ONCE)
  block_length = -(-L // num_blocks)
  blocks = layout.pad(query_BLHK, num_blocks * block_length)
  first = lax.axis_index(LENGTH) * L

  @jax.checkpoint
  def attend_block(number):
    start = number * block_length
    block = lax.dynamic_slice_in_dim(blocks, start, block_length, axis=1)
    positions_L = first + start + jnp.arange(block_length)
    visible_BLS = jnp.ones((1, block_length, S), bool)
    if is_causal:
      visible_LS = positions_L[:, None] >= jnp.arange(S)[None]
      visible_BLS = visible_BLS & visible_LS[None]
    if run_BS is not None:
      run_BL = jnp.take(run_BS, positions_L, axis=1, mode='clip')
      visible_BLS &= run_BL[:, :, None] == run_BS[:, None, :]
    rng = None
    if dropout_rng is not None:
      rng = jax.random.fold_in(dropout_rng, number)
    return attention_fn(
      block,
      key_BSJK,
      value_BSJK,
      mask=visible_BLS[:, None],
      dropout_rng=rng,
      **kwargs,
    )

  out_GBLHK = lax.map(attend_block, jnp.arange(num_blocks))
  out_BGLHK = out_GBLHK.swapaxes(0, 1)
  return out_BGLHK.reshape(len(query_BLHK), -1, *out_BGLHK.shape[3:])[:, :L]
