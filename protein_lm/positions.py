"""Positions: counted within segments, as a sinusoid, or as rotations.

Axes: B batch, L length, H heads, K head width, D model width.
"""

import jax
import jax.numpy as jnp

_MAX_WAVELENGTH = 10_000.0


def positions_in_segments(segment_ids_BL):
  """Positions that restart at 0 with each run of equal ids: [B, L] int32."""
  index_BL = jnp.broadcast_to(
    jnp.arange(segment_ids_BL.shape[1], dtype=jnp.int32), segment_ids_BL.shape
  )
  starts_BL = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
  starts_BL = jnp.pad(starts_BL, ((0, 0), (1, 0)))
  first_BL = jax.lax.cummax(jnp.where(starts_BL, index_BL, 0), axis=1)
  return index_BL - first_BL


def sinusoid(positions, width):
  """Sines, then cosines, of geometric wavelengths (arXiv 1706.03762, 3.5).

  Args:
    positions: integers of any shape.
    width: even number of features, D.

  Returns:
    [..., D] float32.
  """
  angles = _angles(positions, width)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def apply_rotary(x_BLHK, positions_BL):
  """Rotates the halves of each head by its position (arXiv 2104.09864, eq. 34).

  Args:
    x_BLHK: queries or keys, K even.
    positions_BL: integers.

  Returns:
    [B, L, H, K] in the dtype of x; scalar products of two results depend on
    the difference of their positions alone.
  """
  angles_BL1K = _angles(positions_BL, x_BLHK.shape[-1])[:, :, None]
  sin, cos = jnp.sin(angles_BL1K), jnp.cos(angles_BL1K)
  left, right = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  rotated = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x_BLHK.dtype)


def _angles(positions, width):
  exponent = jnp.arange(0, width, 2, dtype=jnp.float32) / width
  frequencies = _MAX_WAVELENGTH**-exponent
  positions = jnp.asarray(positions, jnp.float32)
  return jax.lax.mul(
    *jnp.broadcast_arrays(
      positions[..., None],
      frequencies.reshape((1,) * positions.ndim + (-1,)),
    )
  )
