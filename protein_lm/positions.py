"""Positions: counted within segments, as a sinusoid, or as rotations.

Axes: B batch, L length, H heads, K head width, D model width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


class Rotation(NamedTuple):
  """Sines and cosines of the angles of positions, `[B, L, K / 2]` float32."""

  sin_BLK: jax.Array
  cos_BLK: jax.Array


def rotation(positions_BL, width, dtype='float32'):
  """The rotation of each position, for heads of a width (K, even).

  Made once for all layers: sines are slow on a CPU.

  Args:
    positions_BL: integers.
    width: of a head.
    dtype: that the frequencies are rounded to.
  """
  angles_BLK = _angles(positions_BL, width, dtype)
  return Rotation(jnp.sin(angles_BLK), jnp.cos(angles_BLK))


def rotate(x_BLHK, rotation):
  """Rotates the halves of each head by its position (arXiv 2104.09864, eq. 34).

  Args:
    x_BLHK: queries or keys.
    rotation: of their positions.

  Returns:
    [B, L, H, K] in the dtype of x; scalar products of two results depend on
    the difference of their positions alone.
  """
  sin, cos = (x_BLK[:, :, None] for x_BLK in rotation)
  left, right = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  rotated = [left * cos - right * sin, right * cos + left * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x_BLHK.dtype)


def rotary_frequencies(width, dtype='float32'):
  """Radians a position of each pair of features, [K / 2] float32."""
  # Rounded where PyTorch rounds, not once at the end and not by the device:
  # a thousand positions on, an error in the seventh digit shows in the logits.
  exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  wavelengths = (_MAX_WAVELENGTH ** exponent.astype(np.float64)).astype('f4')
  return (1 / wavelengths).astype(dtype).astype(np.float32)


def _angles(positions, width, dtype='float32'):
  frequencies = rotary_frequencies(width, dtype)
  positions = jnp.asarray(positions, jnp.float32)
  return jax.lax.mul(
    *jnp.broadcast_arrays(
      positions[..., None],
      frequencies.reshape((1,) * positions.ndim + (-1,)),
    )
  )
