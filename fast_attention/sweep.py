"""One sweep over the chunks of a sequence, with an exact hand-written VJP.

Inside a chunk, attention is quadratic; what lies before the chunk is read from
a state. With P the weights exp(c_s - r_t) <= 1 of the visible keys,

    A = (Q' K'^T) . P;   O = A V + g_t Q' S;   S <- f S + (w_s K')^T V

and backwards, with R the cotangent of the state after the chunk,

    dA = (dO V^T) . P;   dQ' = dA K' + g_t dO S^T;   dK' = dA^T Q' + w_s V R^T
    dV = A^T dO + w_s K' R;   R <- f R + (g_t Q')^T dO

Scales c, r (hence P, g, w, f) are constants: they cancel in the output.
Kept for the backward pass are q, k, v, the output and a few numbers per
position: features and states are computed again, the states by a sweep over
the keys.

Heads go in groups, the streams: each is a chain of products of its own, so that
a backend that runs independent operations side by side (CPU) can.

Axes: H heads, B batch, L positions, C queries and S keys of one chunk, K head
width, E value width, M features.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import chunk as chunk_lib
from fast_attention import features as features_lib
from fast_attention import reference
from fast_attention import state as state_lib


class Sums(NamedTuple):
  """Numerator and denominator, both times exp(-log_scale - query_scale).

  The numerator is the output already if the sweep normalises. Scales are None
  where the feature map has none. Not for the eye of the caller: the shifts.
  """

  numerator_BLHE: jax.Array
  denominator_HBL: jax.Array
  log_scale_HBL: jax.Array | None  # largest of the keys seen: r_t
  query_scale_HBL: jax.Array | None
  key_scale_HBL: jax.Array | None  # c_s
  query_shift_HBL: jax.Array | None
  key_shift_HBL: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sweep(
  spec: chunk_lib.Sweep,
  inputs: chunk_lib.Inputs,
  rows: features_lib.Rows | None,
) -> Sums:
  """Attention sums of every query over what the sweep has seen."""
  groups = spec.head_groups(inputs.query_BLHK.shape[2])
  C = spec.chunk_length

  def body(carry, number):
    carries, sums = carry
    next_carries = []
    for heads, stream_carry in zip(groups, carries, strict=True):
      chunk = chunk_lib.take_chunk(inputs, number, C, heads)
      chunk_sums, next_carry = _attend(
        spec, _rows_of(rows, heads), stream_carry, chunk
      )
      next_carries.append(next_carry)
      sums = Sums(
        chunk_lib.put(sums[0], chunk_sums[0], number, heads),
        *(
          chunk_lib.put_rows(x, y, number, heads)
          for x, y in zip(sums[1:], chunk_sums[1:], strict=True)
        ),
      )
    return (next_carries, sums), None

  first = _first_carries(spec, rows, inputs, groups)
  (_, sums), _ = _loop(spec, inputs, body, (first, _empty_sums(spec, inputs)))
  return sums


def _sweep_fwd(spec, inputs, rows):
  sums = sweep(spec, inputs, rows)
  return sums, (inputs, rows, sums)


def _sweep_bwd(spec, residuals, cotangents: Sums):
  inputs, rows, sums = residuals
  groups = spec.head_groups(inputs.query_BLHK.shape[2])
  C = spec.chunk_length
  carries = _carries(spec, rows, inputs, sums, groups)

  def body(carry, xs):
    number, chunk_carries = xs
    state_cotangents, grads = carry
    next_cotangents = []
    for heads, d_state, stream_carry in zip(
      groups, state_cotangents, chunk_carries, strict=True
    ):
      chunk = chunk_lib.take_chunk(inputs, number, C, heads)
      chunk_sums, chunk_cotangents = (
        Sums(
          chunk_lib.take(x[0], number, C, heads),
          *(chunk_lib.take_rows(y, number, C, heads) for y in x[1:]),
        )
        for x in (sums, cotangents)
      )
      d_state, chunk_grads = _attend_bwd(
        spec,
        _rows_of(rows, heads),
        d_state,
        stream_carry,
        chunk,
        chunk_sums,
        chunk_cotangents,
      )
      next_cotangents.append(d_state)
      grads = tuple(
        chunk_lib.put(x, y, number, heads)
        for x, y in zip(grads, chunk_grads, strict=True)
      )
    return (next_cotangents, grads), None

  # The cotangent of the last state: zero, as nothing reads it.
  first = jax.tree.map(
    lambda x: jnp.zeros_like(x[0]),
    [carry and carry.state._replace(log_scale_HB=None) for carry in carries],
  )
  grads = jax.tree.map(jnp.zeros_like, inputs[:3])
  (_, grads), _ = _loop(
    spec, inputs, body, (first, grads), carries, is_backward=True
  )
  # The projection is not trained.
  zeros = jax.tree.map(jnp.zeros_like, rows)
  return chunk_lib.Inputs(*grads, valid_BL=None, run_BL=None), zeros


sweep.defvjp(_sweep_fwd, _sweep_bwd)


def _loop(spec, inputs, body, init, xs=None, is_backward=False):
  """lax.scan over the numbers of chunks, or one call without a loop."""
  num_chunks = inputs.query_BLHK.shape[1] // spec.chunk_length
  if num_chunks == 1:
    return body(init, 0 if xs is None else (0, xs))
  numbers_G = jnp.arange(num_chunks)
  init = state_lib.vary_like(init, inputs)
  return lax.scan(
    body,
    init,
    numbers_G if xs is None else (numbers_G, xs),
    reverse=spec.reverse != is_backward,
    unroll=min(spec.unroll, num_chunks),
  )


def _rows_of(rows, heads: slice):
  return jax.tree.map(lambda x: x[heads], rows)


def _empty_sums(spec, inputs: chunk_lib.Inputs) -> Sums:
  B, L, H, _ = inputs.query_BLHK.shape
  dtype = features_lib.compute_dtype(*inputs[:3])
  zeros_HBL = jnp.zeros((H, B, L), dtype)
  has_scale = spec.feature_map.has_scale
  has_shift = spec.feature_map.kind == 'positive'
  return Sums(
    jnp.zeros((B, L, H, inputs.value_BLHE.shape[-1]), dtype),
    zeros_HBL,
    *[zeros_HBL if has_scale else None] * 3,
    *[zeros_HBL if has_shift else None] * 2,
  )


def _first_carries(
  spec, rows, inputs: chunk_lib.Inputs, groups
) -> list[chunk_lib.Carry | None]:
  """Of each stream; None where one chunk is all there is."""
  B, L, _, K = inputs.query_BLHK.shape
  if spec.chunk_length == L:
    return [None] * len(groups)
  width = spec.feature_map.width(features_lib.num_rows(rows), K)
  run_B = None if inputs.run_BL is None else jnp.full((B,), -1, jnp.int32)
  return [
    chunk_lib.Carry(
      state_lib.empty_state(
        (heads.stop - heads.start, B),
        width,
        inputs.value_BLHE.shape[-1],
        features_lib.compute_dtype(*inputs[:3]),
      ),
      run_B,
    )
    for heads in groups
  ]


def _carries(spec, rows, inputs, sums: Sums, groups):
  """The carry at the start of each chunk, computed again from the keys."""
  first = _first_carries(spec, rows, inputs, groups)
  C = spec.chunk_length
  if first[0] is None:
    return first

  def body(carries, number):
    next_carries = []
    for heads, carry in zip(groups, carries, strict=True):
      chunk = chunk_lib.take_chunk(inputs, number, C, heads)
      shift_HBC, scale_HBC = (
        chunk_lib.take_rows(x, number, C, heads)
        for x in (sums.key_shift_HBL, sums.key_scale_HBL)
      )
      key, _ = _key_features(
        spec, _rows_of(rows, heads), chunk, shift_HBC, scale_HBC
      )
      next_carries.append(_next_carry(spec, carry, chunk, key))
    return next_carries, carries

  return _loop(spec, inputs, body, first)[1]


def _key_features(spec, rows, chunk, shift_HBC=None, scale_HBC=None):
  """Key features, their log-scale -inf where not valid, and their pull-back."""
  key, pull_back = spec.feature_map.pullable_features(
    chunk.key_HBCK,
    rows,
    is_query=False,
    dtype=_dtype(chunk),
    shift_HBC=shift_HBC,
  )
  if scale_HBC is None:
    scale_HBC = key.log_scale_HBC
    if chunk.valid_BC is not None:
      scale_HBC = jnp.where(chunk.valid_BC[None], scale_HBC, -jnp.inf)
  return key._replace(log_scale_HBC=scale_HBC), pull_back


def _dtype(chunk: chunk_lib.Chunk) -> jnp.dtype:
  return features_lib.compute_dtype(*chunk[:3])


def _attend(
  spec, rows, carry: chunk_lib.Carry | None, chunk: chunk_lib.Chunk
) -> tuple[Sums, chunk_lib.Carry | None]:
  """Sums of one chunk, and the carry with its keys."""
  query, _ = spec.feature_map.pullable_features(
    chunk.query_HBCK, rows, is_query=True, dtype=_dtype(chunk)
  )
  query_prime_HBCM = query.features_HBCM
  key, _ = _key_features(spec, rows, chunk)
  key_prime_HBSM, key_scale_HBS, _ = key
  value_HBSE = chunk.value_HBCE.astype(_dtype(chunk))

  visible_BCS = chunk_lib.visible(spec, chunk)
  log_scale_HBC = chunk_lib.query_log_scale(spec, carry, chunk, key_scale_HBS)
  numerator_HBCE, denominator_HBC = 0, 0
  if visible_BCS is not None:
    scores_HBCS = chunk_lib.weigh_inside(
      spec,
      visible_BCS,
      key_scale_HBS,
      log_scale_HBC,
      spec.einsum('hbcm,hbsm->hbcs', query_prime_HBCM, key_prime_HBSM),
    )
    numerator_HBCE = spec.einsum('hbcs,hbse->hbce', scores_HBCS, value_HBSE)
    # A product: it is faster than a sum on CPU.
    ones_S = jnp.ones(scores_HBCS.shape[-1], scores_HBCS.dtype)
    denominator_HBC = spec.einsum('hbcs,s->hbc', scores_HBCS, ones_S)
  if carry is not None:
    past_HBCE, past_HBC = state_lib.read(
      carry.state, query_prime_HBCM, spec.precision
    )
    weight_HBC = chunk_lib.past_weights(spec, carry, chunk, log_scale_HBC)
    numerator_HBCE += state_lib.scaled(past_HBCE, weight_HBC)
    denominator_HBC += state_lib.scaled(past_HBC, weight_HBC)
    carry = _next_carry(spec, carry, chunk, key)
  if spec.normalise:
    numerator_HBCE = reference.normalise(
      spec.feature_map,
      numerator_HBCE,
      denominator_HBC,
      total_scale(log_scale_HBC, query.log_scale_HBC),
    )
  sums = Sums(
    numerator_HBCE,
    denominator_HBC,
    log_scale_HBC,
    query.log_scale_HBC,
    key_scale_HBS,
    query.shift_HBC,
    key.shift_HBC,
  )
  return sums, carry


def total_scale(log_scale, query_scale):
  """Logarithm of the factor left out of numerators and denominators."""
  if log_scale is None:
    return query_scale
  return query_scale + state_lib.finite(log_scale)


def _next_carry(
  spec, carry: chunk_lib.Carry, chunk: chunk_lib.Chunk, key
) -> chunk_lib.Carry:
  """The carry with the keys of a chunk in it."""
  entry, run_B = chunk_lib.entry(spec, carry, chunk, key.log_scale_HBC)
  value_HBSE = chunk.value_HBCE.astype(key.features_HBCM.dtype)
  state = state_lib.add_keys(
    carry.state, entry, key.features_HBCM, value_HBSE, spec.precision
  )
  return chunk_lib.Carry(state, run_B)


def _numerator_cotangents(spec, sums: Sums, cotangents: Sums):
  """Cotangents of the numerator and denominator of a chunk."""
  d_numerator_HBCE, d_denominator_HBC = cotangents[:2]
  if not spec.normalise:
    return d_numerator_HBCE, d_denominator_HBC
  out_HBCE, denominator_HBC = sums[:2]
  scale_HBC = None
  if not spec.feature_map.renormalize:
    scale_HBC = total_scale(sums.log_scale_HBL, sums.query_scale_HBL)
  _, vjp = jax.vjp(
    lambda *x: reference.normalise(spec.feature_map, *x, scale_HBC),
    out_HBCE * denominator_HBC[..., None],  # the numerator
    denominator_HBC,
  )
  return vjp(d_numerator_HBCE)


def _attend_bwd(
  spec,
  rows,
  state_cotangent,
  carry: chunk_lib.Carry | None,
  chunk: chunk_lib.Chunk,
  sums: Sums,
  cotangents: Sums,
):
  """Cotangents of the state before a chunk, and of its q, k, v."""
  d_numerator_HBCE, d_denominator_HBC = _numerator_cotangents(
    spec, sums, cotangents
  )
  query, pull_query = spec.feature_map.pullable_features(
    chunk.query_HBCK,
    rows,
    is_query=True,
    dtype=_dtype(chunk),
    shift_HBC=sums.query_shift_HBL,
  )
  query_prime_HBCM = query.features_HBCM
  key, pull_key = _key_features(
    spec, rows, chunk, sums.key_shift_HBL, sums.key_scale_HBL
  )
  key_prime_HBSM, key_scale_HBS, _ = key
  value_HBSE = chunk.value_HBCE.astype(_dtype(chunk))

  visible_BCS = chunk_lib.visible(spec, chunk)
  d_query_HBCM, d_key_HBSM, d_value_HBSE = 0, 0, 0
  if visible_BCS is not None:
    weigh = functools.partial(
      chunk_lib.weigh_inside,
      spec,
      visible_BCS,
      key_scale_HBS,
      sums.log_scale_HBL,
    )
    scores_HBCS = weigh(
      spec.einsum('hbcm,hbsm->hbcs', query_prime_HBCM, key_prime_HBSM)
    )
    d_scores_HBCS = weigh(
      spec.einsum('hbce,hbse->hbcs', d_numerator_HBCE, value_HBSE)
      + d_denominator_HBC[..., None]
    )
    d_value_HBSE = spec.einsum('hbcs,hbce->hbse', scores_HBCS, d_numerator_HBCE)
    d_key_HBSM = spec.einsum('hbcs,hbcm->hbsm', d_scores_HBCS, query_prime_HBCM)
    d_query_HBCM = spec.einsum('hbcs,hbsm->hbcm', d_scores_HBCS, key_prime_HBSM)
  if carry is not None:
    d_kv_HBEM, d_key_sum_HBM = state_cotangent[:2]
    weight_HBC = chunk_lib.past_weights(spec, carry, chunk, sums.log_scale_HBL)
    entry, _ = chunk_lib.entry(spec, carry, chunk, key_scale_HBS)
    d_past_HBCE = state_lib.scaled(d_numerator_HBCE, weight_HBC)
    d_past_HBC = state_lib.scaled(d_denominator_HBC, weight_HBC)
    d_query_HBCM += (
      spec.einsum('hbce,hbem->hbcm', d_past_HBCE, carry.state.kv_HBEM)
      + d_past_HBC[..., None] * carry.state.key_sum_HBM[:, :, None, :]
    )
    d_key_HBSM += state_lib.scaled(
      spec.einsum('hbse,hbem->hbsm', value_HBSE, d_kv_HBEM)
      + d_key_sum_HBM[:, :, None, :],
      entry.weight_HBS,
    )
    d_value_HBSE += state_lib.scaled(
      spec.einsum('hbsm,hbem->hbse', key_prime_HBSM, d_kv_HBEM),
      entry.weight_HBS,
    )
    state_cotangent = state_cotangent._replace(
      kv_HBEM=state_lib.scaled(d_kv_HBEM, entry.keep_HB)
      + spec.einsum('hbce,hbcm->hbem', d_past_HBCE, query_prime_HBCM),
      key_sum_HBM=state_lib.scaled(d_key_sum_HBM, entry.keep_HB)
      + spec.einsum('hbc,hbcm->hbm', d_past_HBC, query_prime_HBCM),
    )
  return state_cotangent, (
    pull_query(d_query_HBCM),
    pull_key(d_key_HBSM),
    d_value_HBSE,
  )
