"""The running sums of linear attention: everything past keys amount to.

`features x values`, summed over keys, and the sum of the features, both times
exp(-log_scale). The same state is carried between chunks and between tokens.

Axes: H heads, B batch, C queries, S keys, E value width, M features. Values
come before features in `kv_HBEM`: that product runs faster on CPU.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class State(NamedTuple):
  """Sums over keys, relative to the largest of their log-scales.

  A NamedTuple, hence a pytree. The axes before the last two (`kv`), the last
  (`key_sum`) and none (`log_scale`) agree. An empty state has log_scale -inf.
  """

  kv_HBEM: jax.Array
  key_sum_HBM: jax.Array
  log_scale_HB: jax.Array


def empty_state(
  leading_shape: tuple[int, ...], width: int, value_depth: int, dtype
) -> State:
  """The state before the first key."""
  return State(
    kv_HBEM=jnp.zeros((*leading_shape, value_depth, width), dtype),
    key_sum_HBM=jnp.zeros((*leading_shape, width), dtype),
    log_scale_HB=jnp.full(leading_shape, -jnp.inf, dtype),
  )


def finite(log_scale: jax.Array) -> jax.Array:
  """-inf, the scale of nothing, replaced by 0: safe to subtract."""
  return jnp.where(log_scale == -jnp.inf, 0, log_scale)


def scaled(x: jax.Array, weight: jax.Array | None) -> jax.Array:
  """x with each of its leading axes weighed; None is 1."""
  if weight is None:
    return x
  return x * weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))


class Entry(NamedTuple):
  """Factors with which keys enter a state; None is 1."""

  keep_HB: jax.Array | None  # of the old sums
  weight_HBS: jax.Array | None  # of every new key
  log_scale_HB: jax.Array  # of the new sums


def entry_weights(
  state: State,
  log_scale_HBS: jax.Array,
  keep_state_B: jax.Array | None = None,
) -> Entry:
  """Factors that bring old sums and new keys to their larger log-scale.

  Args:
    state: the sums so far.
    log_scale_HBS: of the new keys, -inf for those that stay out.
    keep_state_B: where False the old sums are dropped: another sequence.
  """
  old_HB = state.log_scale_HB
  if keep_state_B is not None:
    old_HB = jnp.where(keep_state_B[None], old_HB, -jnp.inf)
  new_HB = jnp.maximum(old_HB, jnp.max(log_scale_HBS, axis=-1))
  base_HB = finite(new_HB)
  return Entry(
    keep_HB=jnp.exp(old_HB - base_HB),
    weight_HBS=jnp.exp(log_scale_HBS - base_HB[..., None]),
    log_scale_HB=new_HB,
  )


def add_keys(
  state: State,
  entry: Entry,
  key_prime_HBSM: jax.Array,
  value_HBSE: jax.Array,
  precision=None,
) -> State:
  """The state with the keys in it."""
  weight_HBS = entry.weight_HBS
  if weight_HBS is None:
    weight_HBS = jnp.ones(key_prime_HBSM.shape[:-1], key_prime_HBSM.dtype)
  kv_HBEM = jnp.einsum(
    'hbse,hbsm->hbem',
    scaled(value_HBSE, entry.weight_HBS),
    key_prime_HBSM,
    precision=precision,
  )
  key_sum_HBM = jnp.einsum(
    'hbs,hbsm->hbm', weight_HBS, key_prime_HBSM, precision=precision
  )
  return State(
    kv_HBEM=scaled(state.kv_HBEM, entry.keep_HB) + kv_HBEM,
    key_sum_HBM=scaled(state.key_sum_HBM, entry.keep_HB) + key_sum_HBM,
    log_scale_HB=entry.log_scale_HB,
  )


def read(
  state: State, query_prime_HBCM: jax.Array, precision=None
) -> tuple[jax.Array, jax.Array]:
  """Numerator `[H, B, C, E]` and denominator `[H, B, C]` of queries."""
  numerator_HBCE = jnp.einsum(
    'hbcm,hbem->hbce', query_prime_HBCM, state.kv_HBEM, precision=precision
  )
  denominator_HBC = jnp.einsum(
    'hbcm,hbm->hbc', query_prime_HBCM, state.key_sum_HBM, precision=precision
  )
  return numerator_HBCE, denominator_HBC


def vary_like(tree, like):
  """Marks arrays as varying over the manual axes that others vary over.

  Inside shard_map the start of a loop must vary over the axes its body does.
  """
  axes = set().union(*(_varying_axes(x) for x in jax.tree.leaves(like)))

  def vary(x):
    missing = tuple(sorted(axes - _varying_axes(x)))
    return lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(vary, tree) if axes else tree


def _varying_axes(x: jax.Array) -> frozenset[str]:
  aval = jax.typeof(x)
  if hasattr(aval, 'vma'):  # earlier releases of JAX
    return aval.vma
  return aval.manual_axis_type.varying
