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
the keys, unless they are kept too.

Heads go in groups, the streams: each is a chain of products of its own, so that
a backend that runs independent operations side by side (CPU) can.

Axes: H heads, B batch, L positions, C queries and S keys of one chunk, K head
width, E value width, M features.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import attend as attend_lib
from fast_attention import chunk as chunk_lib
from fast_attention import features as features_lib
from fast_attention import residuals as residuals_lib
from fast_attention import state as state_lib


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sweep(
  spec: chunk_lib.Sweep,
  inputs: chunk_lib.Inputs,
  rows: features_lib.Rows | None,
  before: chunk_lib.Carry | None = None,
) -> attend_lib.Sums:
  """Attention sums of every query over what the sweep has seen.

  Args:
    spec: what the sweep does.
    inputs: whole rows.
    rows: of the feature map, or None.
    before: keys seen before the first chunk, of all heads; None is none.
  """
  return _attend_chunks(spec, inputs, rows, before)[0]


def _attend_chunks(spec, inputs, rows, before, keep_carries=False):
  """The sums, and the carries before each chunk if they are to be kept."""
  groups = spec.head_groups(inputs.query_BLHK.shape[2])
  inputs = chunk_lib.with_visible(spec, inputs)

  def body(carry, number):
    carries, sums = carry
    next_carries = []
    for heads, stream_carry in zip(groups, carries, strict=True):
      chunk = chunk_lib.take_chunk(spec, inputs, number, heads)
      chunk_sums, next_carry = attend_lib.attend(
        spec, _rows_of(rows, heads), stream_carry, chunk
      )
      next_carries.append(next_carry)
      sums = attend_lib.Sums(
        chunk_lib.put(sums[0], chunk_sums[0], number, heads),
        *(
          chunk_lib.put_rows(x, y, number, heads)
          for x, y in zip(sums[1:], chunk_sums[1:], strict=True)
        ),
      )
    return (next_carries, sums), carries if keep_carries else None

  first = _first_carries(spec, rows, inputs, before, groups)
  init = first, _empty_sums(spec, inputs)
  (_, sums), carries = _loop(spec, inputs, body, init)
  return sums, carries


def _sweep_fwd(spec, inputs, rows, before):
  sums, carries = residuals_lib.named(
    _attend_chunks(spec, inputs, rows, before, spec.keep_states)
  )
  return sums, (inputs, rows, before, sums, carries)


def _sweep_bwd(spec, residuals, cotangents: attend_lib.Sums):
  inputs, rows, before, sums, carries = residuals
  groups = spec.head_groups(inputs.query_BLHK.shape[2])
  C = spec.chunk_length
  first_carries = _first_carries(spec, rows, inputs, before, groups)
  if not spec.keep_states:
    carries = _carries(spec, rows, inputs, sums, first_carries, groups)
  inputs = chunk_lib.with_visible(spec, inputs)

  def body(carry, xs):
    number, chunk_carries = xs
    state_cotangents, grads = carry
    next_cotangents = []
    for heads, d_state, stream_carry in zip(
      groups, state_cotangents, chunk_carries, strict=True
    ):
      chunk = chunk_lib.take_chunk(spec, inputs, number, heads)
      chunk_sums, chunk_cotangents = (
        attend_lib.Sums(
          chunk_lib.take(x[0], number, C, heads),
          *(chunk_lib.take_rows(y, number, C, heads) for y in x[1:]),
        )
        for x in (sums, cotangents)
      )
      d_state, chunk_grads = attend_lib.attend_bwd(
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
    jnp.zeros_like,
    [
      carry and carry.state._replace(log_scale_HB=None)
      for carry in first_carries
    ],
  )
  grads = jax.tree.map(jnp.zeros_like, inputs[:3])
  (state_cotangents, grads), _ = _loop(
    spec, inputs, body, (first, grads), carries, is_backward=True
  )
  # The projection is not trained.
  zeros = jax.tree.map(jnp.zeros_like, rows)
  d_before = None
  if before is not None:
    d_state = jax.tree.map(lambda *x: jnp.concatenate(x), *state_cotangents)
    scale_HB = jnp.zeros_like(before.state.log_scale_HB)
    d_before = chunk_lib.Carry(d_state._replace(log_scale_HB=scale_HB), None)
  return chunk_lib.Inputs(*grads, valid_BL=None, run_BL=None), zeros, d_before


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


def _empty_sums(spec, inputs: chunk_lib.Inputs) -> attend_lib.Sums:
  B, L, H, _ = inputs.query_BLHK.shape
  dtype = features_lib.compute_dtype(*inputs[:3])
  zeros_HBL = jnp.zeros((H, B, L), dtype)
  has_scale = spec.feature_map.has_scale
  has_shift = spec.feature_map.kind == 'positive'
  return attend_lib.Sums(
    jnp.zeros((B, L, H, inputs.value_BLHE.shape[-1]), dtype),
    zeros_HBL,
    *[zeros_HBL if has_scale else None] * 3,
    *[zeros_HBL if has_shift else None] * 2,
  )


def _first_carries(
  spec, rows, inputs: chunk_lib.Inputs, before, groups
) -> list[chunk_lib.Carry | None]:
  """Of each stream; None where one chunk is all there is."""
  if before is not None:
    return [
      before._replace(state=_rows_of(before.state, heads)) for heads in groups
    ]
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


def _carries(spec, rows, inputs, sums: attend_lib.Sums, first, groups):
  """The carry at the start of each chunk, computed again from the keys."""
  C = spec.chunk_length
  if first[0] is None:
    return first

  def body(carries, number):
    next_carries = []
    for heads, carry in zip(groups, carries, strict=True):
      chunk = chunk_lib.take_chunk(spec, inputs, number, heads)
      shift_HBC, scale_HBC = (
        chunk_lib.take_rows(x, number, C, heads)
        for x in (sums.key_shift_HBL, sums.key_scale_HBL)
      )
      key, _ = attend_lib.key_features(
        spec, _rows_of(rows, heads), chunk, shift_HBC, scale_HBC
      )
      next_carries.append(attend_lib.next_carry(spec, carry, chunk, key))
    return next_carries, carries

  return _loop(spec, inputs, body, first)[1]
