"""Layout of the sums: `[B, L, H, K]` <-> `[G, H, B, C, K]`.

Heads come first: the projection differs between heads only, so that one product
serves the whole batch. Batch and heads stay apart, so that a batch sharded over
devices stays where it is.

Axes: H heads, B batch, L length, S keys, G chunks, C positions of one chunk,
K head width, E value width.
"""

import jax
import jax.numpy as jnp


def to_chunks(x_BLHK: jax.Array, chunks: tuple[int, int]) -> jax.Array:
  B, L, H, K = x_BLHK.shape
  G, C = chunks
  x_BLHK = jnp.pad(x_BLHK, ((0, 0), (0, G * C - L), (0, 0), (0, 0)))
  return x_BLHK.reshape(B, G, C, H, K).transpose(1, 3, 0, 2, 4)


def from_chunks(x_GHBCE: jax.Array, length: int) -> jax.Array:
  G, H, B, C, E = x_GHBCE.shape
  x_BLHE = x_GHBCE.transpose(2, 0, 3, 1, 4).reshape(B, G * C, H, E)
  return x_BLHE[:, :length]


def row_chunks(x_BL: jax.Array, chunks: tuple[int, int], **pad) -> jax.Array:
  B, L = x_BL.shape
  G, C = chunks
  x_BL = jnp.pad(x_BL, ((0, 0), (0, G * C - L)), **pad)
  return x_BL.reshape(B, G, C).transpose(1, 0, 2)


def valid_chunks(valid_BS, key_BSHK, chunks) -> jax.Array | None:
  """Valid keys in chunks, padding among the invalid; None if all are valid."""
  B, S = key_BSHK.shape[:2]
  if valid_BS is None:
    if chunks[0] * chunks[1] == S:
      return None
    valid_BS = jnp.ones((B, S), bool)
  return row_chunks(valid_BS, chunks)
