"""Layout of the sums: `[B, L, H, K]` <-> `[G, H, B, C, K]`.

Heads come first: the projection differs between heads only, so that one product
serves the whole batch. Batch and heads stay apart, so that a batch sharded over
devices stays where it is.

Axes: H heads, B batch, L length, S keys, G chunks, C positions of one chunk,
K head width, E value width.
"""

import jax
import jax.numpy as jnp


def pad(x_BL: jax.Array, length: int, **kwargs) -> jax.Array:
  """Positions, the second axis, padded on the right."""
  missing = length - x_BL.shape[1]
  if not missing:
    return x_BL
  widths = [(0, 0), (0, missing)] + [(0, 0)] * (x_BL.ndim - 2)
  return jnp.pad(x_BL, widths, **kwargs)


def pad_valid(valid_BS, key_BSHK, length: int) -> jax.Array | None:
  """Valid keys, padding among the invalid; None if all are valid."""
  B, S = key_BSHK.shape[:2]
  if valid_BS is None:
    if length == S:
      return None
    valid_BS = jnp.ones((B, S), bool)
  return pad(valid_BS, length)


def to_chunks(x_BLHK: jax.Array, chunks: tuple[int, int]) -> jax.Array:
  B, _, H, K = x_BLHK.shape
  G, C = chunks
  return pad(x_BLHK, G * C).reshape(B, G, C, H, K).transpose(1, 3, 0, 2, 4)


def from_chunks(x_GHBCE: jax.Array, length: int) -> jax.Array:
  G, H, B, C, E = x_GHBCE.shape
  x_BLHE = x_GHBCE.transpose(2, 0, 3, 1, 4).reshape(B, G * C, H, E)
  return x_BLHE[:, :length]


def row_chunks(x_BL: jax.Array, chunks: tuple[int, int], **kwargs):
  G, C = chunks
  x_BL = pad(x_BL, G * C, **kwargs)
  return x_BL.reshape(-1, G, C).transpose(1, 0, 2)


def valid_chunks(valid_BS, key_BSHK, chunks) -> jax.Array | None:
  """Valid keys in chunks, padding among the invalid; None if all are valid."""
  valid_BL = pad_valid(valid_BS, key_BSHK, chunks[0] * chunks[1])
  return None if valid_BL is None else row_chunks(valid_BL, chunks)
