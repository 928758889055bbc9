"""Checks of arguments: what cannot be honoured is refused, with the way out.

Axes: L queries, S keys, H query heads, J key/value heads, K head width,
E value width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fast_attention import estimator, linear
from fast_attention import features as features_lib


def check_fields(attention) -> None:
  """Checks the fields of a FastAttention."""
  known = (*estimator.SOFTMAX_TYPES, *features_lib.GENERALIZED_TYPES)
  if attention.features_type not in known:
    raise ValueError(
      f'features_type must be one of {", ".join(known)}, got '
      f'{attention.features_type!r}.'
    )
  if attention.implementation not in linear.IMPLEMENTATIONS:
    raise ValueError(
      f'implementation must be one of {", ".join(linear.IMPLEMENTATIONS)}, '
      f'got {attention.implementation!r}.'
    )
  if attention.ortho_scaling not in (0, 1):
    raise ValueError(
      'ortho_scaling must be 0 (norms of Gaussian vectors) or 1 (all norms '
      f'sqrt of the width), got {attention.ortho_scaling}.'
    )
  for name, least in [
    ('nb_features', 1),
    ('qkv_dim', 1),
    ('lax_scan_unroll', 1),
    ('numerical_stabilizer', 0),
    ('kernel_epsilon', 0),
  ]:
    value = getattr(attention, name)
    if value is not None and value < least:
      raise ValueError(f'{name} must be at least {least}, got {value}.')
  needs_kernel = attention.features_type in features_lib.GENERALIZED_TYPES
  if needs_kernel != (attention.kernel_fn is not None):
    raise ValueError(
      f'features_type {attention.features_type!r} '
      + ('needs a kernel_fn.' if needs_kernel else 'has no kernel_fn.')
    )


def refuse(
  *,
  bias: Any,
  dropout_rate: float,
  module: Any,
  einsums: tuple[Any, ...],
) -> None:
  """Refuses what has no meaning where no attention weights exist."""
  if bias is not None:
    raise ValueError(
      'bias is not supported: it acts on attention weights, which are never '
      'formed. Encode positions in query and key, or use exact attention.'
    )
  if dropout_rate > 0:
    raise ValueError(
      f'attention dropout is not supported, got dropout_rate={dropout_rate}: '
      'attention weights are never formed. Set it to 0 and drop elsewhere.'
    )
  if module is not None:
    raise ValueError(
      'attention weights are never formed, so module cannot sow them: call '
      'with sow_weights=False.'
    )
  if any(einsum is not None for einsum in einsums):
    raise ValueError(
      'custom einsums of attention weights are not supported: attention '
      'weights are never formed. Use exact attention for quantised products.'
    )


def check_stats(attention, stats: Any) -> None:
  """Statistics come where they are needed, and nowhere else."""
  if attention.needs_stats == (stats is not None):
    return
  name = repr(attention.features_type)
  if stats is None:
    raise ValueError(
      f'features_type={name} needs stats, got None: pass what measure_stats '
      'gives for training batches, or its running average.'
    )
  raise ValueError(
    f'features_type={name} uses no statistics, got stats: pass None.'
  )


def check_shapes(
  query: jax.Array, key: jax.Array, value: jax.Array, qkv_dim: int | None
) -> None:
  """`[batch..., L, H, K]`, `[batch..., S, J, K]`, `[batch..., S, J, E]`."""
  shapes = f'query {query.shape}, key {key.shape}, value {value.shape}'
  if not query.ndim == key.ndim == value.ndim or query.ndim < 3:
    raise ValueError(
      'query, key and value must be [batch..., length, heads, depth], of one '
      f'rank, at least 3, got {shapes}.'
    )
  if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
    raise ValueError(
      f'query, key and value must have equal batch axes, got {shapes}.'
    )
  if key.shape[:-1] != value.shape[:-1]:
    raise ValueError(
      f'key and value must have equal lengths and heads, got {shapes}.'
    )
  if query.shape[-1] != key.shape[-1]:
    raise ValueError(f'query and key must have equal depths, got {shapes}.')
  if query.shape[-2] % key.shape[-2]:
    raise ValueError(
      f'the heads of key must divide the heads of query, got {shapes}.'
    )
  if 0 in query.shape + key.shape + value.shape:
    raise ValueError(f'no axis may be empty, got {shapes}.')
  if qkv_dim is not None and qkv_dim != query.shape[-1]:
    raise ValueError(
      f'qkv_dim={qkv_dim} differs from the depth of the query, '
      f'{query.shape[-1]}: qkv_dim is the width of one head. Leave it unset.'
    )


def check_segment_ids(
  segment_ids: jax.Array | None, query: jax.Array, key: jax.Array
) -> None:
  """`[batch..., L]` ints, for queries and keys of the same positions."""
  if segment_ids is None:
    return
  if query.shape[-3] != key.shape[-3]:
    raise ValueError(
      'segment_ids need queries and keys of the same positions, got '
      f'{query.shape[-3]} queries and {key.shape[-3]} keys: use mask instead.'
    )
  if segment_ids.shape != query.shape[:-2]:
    raise ValueError(
      f'segment_ids must be [batch..., length], {query.shape[:-2]}, got '
      f'{segment_ids.shape}.'
    )


def check_shards(num_queries: int, num_keys: int, axis_name: str) -> None:
  """A shard of the length holds queries and keys of the same positions."""
  if num_queries != num_keys:
    raise ValueError(
      f'attention over the mesh axis {axis_name!r} needs queries and keys of '
      f'the same positions, got {num_queries} queries and {num_keys} keys.'
    )


def check_last_query(num_queries: int, num_keys: int) -> None:
  """A causal call needs L = S, or the last query alone."""
  if num_queries != 1:
    raise ValueError(
      'causal attention needs as many queries as keys, or one query (the '
      f'last), got {num_queries} queries and {num_keys} keys. To continue a '
      'sequence use prefill and step.'
    )


def check_step(query: jax.Array, key: jax.Array, value: jax.Array, state):
  """One token, and a state of the same shape."""
  if query.shape[-3] != 1 or key.shape[-3] != 1:
    raise ValueError(
      f'step takes one token, got query {query.shape}, key {key.shape}: use '
      'prefill for several.'
    )
  expected = (*key.shape[:-3], key.shape[-2], value.shape[-1])
  if state.kv_HBEM.shape[:-1] != expected:
    raise ValueError(
      f'the state is of {state.kv_HBEM.shape[:-1]} (batch, heads, width of '
      f'values), the token of {expected}.'
    )


def key_padding(
  mask: jax.Array | None, batch_shape: tuple[int, ...], num_keys: int
) -> jax.Array | None:
  """A mask `[batch..., 1, 1, S]` of bools or 0/1 as bools `[B, S]`."""
  if mask is None:
    return None
  batch_shape = tuple(batch_shape)
  fits = mask.shape[-3:] == (1, 1, num_keys)
  if fits:
    try:
      leading = np.broadcast_shapes(mask.shape[:-3], batch_shape)
      fits = leading == batch_shape
    except ValueError:
      fits = False
  if not fits:
    raise ValueError(
      f'mask must be key padding, {(*batch_shape, 1, 1, num_keys)}, got '
      f'{mask.shape}. For a causal model set unidirectional=True instead of '
      'passing a causal mask; for packed sequences pass segment_ids.'
    )
  valid = mask.astype(bool).reshape(*mask.shape[:-3], num_keys)
  leading_ones = (1,) * (len(batch_shape) + 1 - valid.ndim)
  valid = valid.reshape(*leading_ones, *valid.shape)
  return jnp.broadcast_to(valid, (*batch_shape, num_keys)).reshape(-1, num_keys)
