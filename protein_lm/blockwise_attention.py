"""Exact attention by blocks: nothing of size L x L is stored, either way.

A block of queries meets one block of keys after another. With m the largest
logit so far and s the logits of the next block,

    m' = max(m, max s);   w = exp(s - m')
    l <- l exp(m - m') + sum w;   O <- O exp(m - m') + w V

and O / l is the output. Kept for the backward pass are q, k, v, the output and
lse = m + log l, from which it makes the weights P = exp(s - lse) again:

    dV = P^T dO;   dS = P . (dO V^T - sum(dO . O));   dK = dS^T Q;   dQ = dS K

Blocks of which no pair sees the other are not visited: the keys after a causal
block of queries, and those of other runs of equal segment ids.

Axes: H heads, B batch, L length, G blocks, C queries and S keys of one block,
K head width.

Source: Dao et al., FlashAttention, 2022 (arXiv:2205.14135); the running
softmax is of Milakov and Gimelshein, 2018 (arXiv:1805.02867).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import layout, residuals
from fast_attention import state as state_lib
from fast_attention.reference import run_ids

_LEAST_BLOCKS_OF_STREAMS = 16


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How blocks are cut and computed.

  Attributes:
    causal: whether query t sees keys up to t only.
    length: positions of a block; divides the length.
    streams: groups of heads whose products do not wait for each other.
    precision: of every product.
  """

  causal: bool
  length: int
  streams: int = 1
  precision: Any = None

  def dot(self, subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """A product, summed in float32 or wider."""
    dtype = jnp.result_type(jnp.float32, x.dtype, y.dtype)
    return jnp.einsum(
      subscripts, x, y, precision=self.precision, preferred_element_type=dtype
    )


class Runs(NamedTuple):
  """Which positions see each other; None where all do.

  first_G and end_G bound the blocks that share a run with a block, in any row.
  """

  run_BL: jax.Array | None
  first_G: jax.Array
  end_G: jax.Array


def blockwise_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  causal: bool,
  segment_ids: jax.Array | None = None,
  precision: Any = None,
  block_length: int | None = None,
) -> jax.Array:
  """softmax(q k^T / sqrt(K)) v over the visible keys.

  Args:
    query: [B, L, H, K].
    key: [B, L, H, K].
    value: [B, L, H, K].
    causal: position t sees s <= t.
    segment_ids: [B, L] int; a position sees its own maximal run of equal ids.
    precision: of the products.
    block_length: longest block; None picks by platform.

  Returns:
    [B, L, H, K] in the dtype of value; sums are float32 or wider.
  """
  _, L, H, _ = query.shape
  longest = block_length or _block_length()
  num_blocks = -(-L // longest)
  C = -(-L // num_blocks)
  if num_blocks > 1:
    C = min(longest, -(-C // 8) * 8)
  padded = num_blocks * C
  run_BL = None if segment_ids is None else run_ids(segment_ids)
  if padded > L and not causal and run_BL is None:
    run_BL = jnp.zeros((1, L), jnp.int32)
  if run_BL is not None:  # Padding is a run of its own.
    run_BL = layout.pad(run_BL, padded, constant_values=L)
  inputs = tuple(layout.pad(x, padded) for x in (query, key, value))
  inputs = state_lib.vary_like(inputs, inputs)
  runs = _runs(run_BL, num_blocks, C)
  spec = Blocks(causal, C, min(_streams_of(num_blocks), H), precision)
  return _attend(spec, *inputs, runs)[:, :L]


def _block_length() -> int:
  """The longest block: scripts/BENCHMARKS.md."""
  return {'cpu': 128}.get(jax.default_backend(), 512)


def _streams_of(num_blocks: int) -> int:
  """Streams of heads: they let both cores work, and take time to compile."""
  is_long = num_blocks >= _LEAST_BLOCKS_OF_STREAMS
  return 4 if is_long and jax.default_backend() == 'cpu' else 1


def _runs(run_BL, num_blocks: int, C: int) -> Runs:
  if run_BL is None:
    return Runs(
      None,
      jnp.zeros(num_blocks, jnp.int32),
      jnp.full(num_blocks, num_blocks, jnp.int32),
    )
  L = run_BL.shape[1]
  positions_1L = jnp.arange(L)[None]
  changes_BL = run_BL[:, 1:] != run_BL[:, :-1]
  starts_BL = jnp.pad(changes_BL, ((0, 0), (1, 0)), constant_values=True)
  ends_BL = jnp.pad(changes_BL, ((0, 0), (0, 1)), constant_values=True)
  first_BL = lax.cummax(jnp.where(starts_BL, positions_1L, 0), axis=1)
  last_BL = lax.cummin(
    jnp.where(ends_BL, positions_1L, L), axis=1, reverse=True
  )
  return Runs(
    run_BL,
    jnp.min(first_BL[:, ::C], axis=0) // C,
    jnp.max(last_BL[:, C - 1 :: C], axis=0) // C + 1,
  )


def _take(x: jax.Array, number, length: int, axis: int = -2) -> jax.Array:
  return lax.dynamic_slice_in_dim(x, number * length, length, axis)


def _put(x: jax.Array, y: jax.Array, number, axis: int = -2) -> jax.Array:
  start = number * y.shape[axis]
  return lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), start, axis)


def _visible(spec: Blocks, runs: Runs, queries, keys) -> jax.Array | None:
  """Keys of a block that queries of another see: [B or 1, C, S]."""
  C = spec.length
  visible_BCS = None
  if spec.causal:
    query_C, key_S = (n * C + jnp.arange(C) for n in (queries, keys))
    visible_BCS = (key_S[None, :] <= query_C[:, None])[None]
  if runs.run_BL is not None:
    query_BC, key_BS = (_take(runs.run_BL, n, C, 1) for n in (queries, keys))
    same_BCS = query_BC[:, :, None] == key_BS[:, None, :]
    visible_BCS = same_BCS if visible_BCS is None else visible_BCS & same_BCS
  return visible_BCS


def _masked(x_HBCS: jax.Array, visible_BCS: jax.Array | None) -> jax.Array:
  if visible_BCS is None:
    return x_HBCS
  return jnp.where(visible_BCS[None], x_HBCS, -jnp.inf)


def _streams(spec: Blocks, *arrays_BLHK: jax.Array) -> list[tuple]:
  """Of each group of heads the arrays, [H, B, L, K]."""
  num_heads = arrays_BLHK[0].shape[2]
  edges = [n * num_heads // spec.streams for n in range(spec.streams + 1)]
  return [
    tuple(x[:, :, a:b].transpose(2, 0, 1, 3) for x in arrays_BLHK)
    for a, b in zip(edges, edges[1:], strict=False)
  ]


def _joined(streams: list[jax.Array]) -> jax.Array:
  """[H, B, L, K] of each stream as [B, L, H, K]."""
  return jnp.concatenate(streams).transpose(1, 2, 0, 3)


def _over_blocks(body, num_blocks: int, init=None):
  """lax.scan over the numbers of blocks, or one call without a loop."""
  if num_blocks > 1:
    return lax.scan(body, init, jnp.arange(num_blocks))
  carry, ys = body(init, 0)
  return carry, jax.tree.map(lambda y: y[None], ys)


def _meet_blocks(spec: Blocks, runs: Runs, first, end, meet, init):
  """Calls meet for the blocks of others that may be seen."""
  if runs.first_G.shape[0] == 1:
    return meet(0, init)
  return lax.fori_loop(first, end, meet, init)


def _merged(x_GHBCK: jax.Array) -> jax.Array:
  """Blocks side by side: [H, B, L, K], or without the K."""
  x_HBGCK = jnp.moveaxis(x_GHBCK, 0, 2)
  H, B, G, C = x_HBGCK.shape[:4]
  return x_HBGCK.reshape(H, B, G * C, *x_HBGCK.shape[4:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec: Blocks, query_BLHK, key_BLHK, value_BLHK, runs: Runs):
  return _attend_fwd(spec, query_BLHK, key_BLHK, value_BLHK, runs)[0]


def _attend_fwd(spec, query_BLHK, key_BLHK, value_BLHK, runs):
  C = spec.length
  scale = query_BLHK.shape[-1] ** -0.5
  streams = _streams(spec, query_BLHK, key_BLHK, value_BLHK)
  dtype = jnp.promote_types(value_BLHK.dtype, jnp.float32)

  def attend_block(_, queries):
    blocks = [_take(query, queries, C) for query, _, _ in streams]

    def meet(keys, carry):
      visible_BCS = _visible(spec, runs, queries, keys)
      next_carry = []
      for query_HBCK, (_, key, value), (out, largest, total) in zip(
        blocks, streams, carry, strict=True
      ):
        logits_HBCS = _masked(
          scale * spec.dot('hbck,hbsk->hbcs', query_HBCK, _take(key, keys, C)),
          visible_BCS,
        )
        new_largest = jnp.maximum(largest, jnp.max(logits_HBCS, axis=-1))
        base_HBC = state_lib.finite(new_largest)
        weights_HBCS = jnp.exp(logits_HBCS - base_HBC[..., None])
        keep_HBC = jnp.exp(largest - base_HBC)
        total = total * keep_HBC + jnp.sum(weights_HBCS, axis=-1)
        out = out * keep_HBC[..., None] + spec.dot(
          'hbcs,hbsk->hbck',
          weights_HBCS.astype(value.dtype),
          _take(value, keys, C),
        )
        next_carry.append((out, new_largest, total))
      return next_carry

    first = []
    for query_HBCK in blocks:
      zeros_HBC = jnp.zeros(query_HBCK.shape[:-1], dtype)
      zeros_HBCK = jnp.zeros(query_HBCK.shape, dtype)
      first.append((zeros_HBCK, zeros_HBC - jnp.inf, zeros_HBC))
    first = state_lib.vary_like(first, (streams, runs))
    end = queries + 1 if spec.causal else runs.end_G[queries]
    carry = _meet_blocks(spec, runs, runs.first_G[queries], end, meet, first)
    # A block that sees no key is padding: 0 / 0 must not be made there.
    return None, [
      (
        (out / jnp.maximum(total, 1e-37)[..., None]).astype(value_BLHK.dtype),
        state_lib.finite(largest) + jnp.log(jnp.maximum(total, 1e-37)),
      )
      for out, largest, total in carry
    ]

  _, results = _over_blocks(attend_block, runs.first_G.shape[0])
  out_BLHK = _joined([_merged(out) for out, _ in results])
  out_BLHK, lses = residuals.named(
    (out_BLHK, [_merged(lse) for _, lse in results])
  )
  return out_BLHK, (query_BLHK, key_BLHK, value_BLHK, runs, out_BLHK, lses)


def _attend_bwd(spec, kept, d_out_BLHK):
  query_BLHK, key_BLHK, value_BLHK, runs, out_BLHK, lses = kept
  C = spec.length
  scale = query_BLHK.shape[-1] ** -0.5
  streams = _streams(spec, query_BLHK, key_BLHK, value_BLHK, d_out_BLHK)
  dtype = jnp.promote_types(value_BLHK.dtype, jnp.float32)
  # The share of an output in its own change: sum(dO . O).
  shares_BLH1 = jnp.sum(
    d_out_BLHK.astype(dtype) * out_BLHK.astype(dtype), axis=-1, keepdims=True
  )
  shares = [share[..., 0] for (share,) in _streams(spec, shares_BLH1)]

  def attend_block(d_queries, keys):
    blocks = [(_take(x[1], keys, C), _take(x[2], keys, C)) for x in streams]

    def meet(queries, carry):
      visible_BCS = _visible(spec, runs, queries, keys)
      visible_BSC = None
      if visible_BCS is not None:
        visible_BSC = visible_BCS.transpose(0, 2, 1)
      next_carry = []
      for n, (d_query, d_key, d_value) in enumerate(carry):
        key_HBSK, value_HBSK = blocks[n]
        query_HBCK, d_out_HBCK = (
          _take(streams[n][k], queries, C) for k in (0, 3)
        )
        lse_HBC, share_HBC = (
          _take(x[n], queries, C, 2) for x in (lses, shares)
        )
        # Keys first, so that the products below want no transposed weights.
        logits_HBSC = _masked(
          scale * spec.dot('hbsk,hbck->hbsc', key_HBSK, query_HBCK),
          visible_BSC,
        )
        weights_HBSC = jnp.exp(logits_HBSC - lse_HBC[:, :, None])
        d_weights_HBSC = spec.dot('hbsk,hbck->hbsc', value_HBSK, d_out_HBCK)
        d_logits_HBSC = weights_HBSC * (d_weights_HBSC - share_HBC[:, :, None])
        weights_HBSC = weights_HBSC.astype(d_out_HBCK.dtype)
        d_logits_HBSC = d_logits_HBSC.astype(query_HBCK.dtype)
        d_value += spec.dot('hbsc,hbck->hbsk', weights_HBSC, d_out_HBCK)
        d_key += spec.dot('hbsc,hbck->hbsk', d_logits_HBSC, query_HBCK)
        d_query_HBCK = _take(d_query, queries, C) + spec.dot(
          'hbsc,hbsk->hbck', d_logits_HBSC, key_HBSK
        )
        d_query = _put(d_query, d_query_HBCK, queries)
        next_carry.append((d_query, d_key, d_value))
      return next_carry

    zeros = [[jnp.zeros(x.shape, dtype) for x in pair] for pair in blocks]
    zeros = state_lib.vary_like(zeros, (streams, runs))
    first = [
      (d_query, *pair) for d_query, pair in zip(d_queries, zeros, strict=True)
    ]
    start = keys if spec.causal else runs.first_G[keys]
    carry = _meet_blocks(spec, runs, start, runs.end_G[keys], meet, first)
    return [x[0] for x in carry], [x[1:] for x in carry]

  d_queries = [jnp.zeros(x[0].shape, dtype) for x in streams]
  d_queries = state_lib.vary_like(d_queries, (streams, runs))
  d_queries, pairs = _over_blocks(
    attend_block, runs.first_G.shape[0], d_queries
  )
  grads = (
    scale * _joined(d_queries),
    scale * _joined([_merged(pair[0]) for pair in pairs]),
    _joined([_merged(pair[1]) for pair in pairs]),
  )
  inputs = (query_BLHK, key_BLHK, value_BLHK)
  grads = (g.astype(x.dtype) for g, x in zip(grads, inputs, strict=True))
  return *grads, None


_attend.defvjp(_attend_fwd, _attend_bwd)
