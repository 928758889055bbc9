"""Random matrices of the feature maps: iid and orthogonal Gaussian.

Axes: H heads, M features, K head width, R blocks of K orthogonal rows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def haar_matrices(gaussian_RKK: jax.Array) -> jax.Array:
  """Gaussian matrices made orthogonal, distributed uniformly (Haar).

  Row by row, what lies along the earlier rows is taken off (twice: once loses
  accuracy) and the rest normalised: the one factorisation whose triangular
  factor has a positive diagonal, hence uniform (Mezzadri 2007); a QR routine
  leaves signs of its own there.

  Not `jnp.linalg.qr`: on CPU it waits for the thread pool that it runs on, and
  two at once in a pool of two threads wait for ever (jaxlib 0.10.2).
  """
  depth = gaussian_RKK.shape[-1]
  einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

  def orthogonalise_row(k, rows_RKK):
    row_RK = rows_RKK[..., k, :]
    is_earlier_K = jnp.arange(depth) < k
    earlier_RKK = jnp.where(is_earlier_K[:, None], rows_RKK, 0)
    for _ in range(2):
      along_RK = einsum('...jk,...k->...j', earlier_RKK, row_RK)
      row_RK -= einsum('...j,...jk->...k', along_RK, earlier_RKK)
    row_RK /= jnp.linalg.norm(row_RK, axis=-1, keepdims=True)
    return rows_RKK.at[..., k, :].set(row_RK)

  return jax.lax.fori_loop(0, depth, orthogonalise_row, gaussian_RKK)


def head_projections(
  rng: jax.Array,
  num_heads: int,
  nb_features: int,
  depth: int,
  *,
  orthogonal: bool,
  ortho_scaling: float = 0.0,
) -> jax.Array:
  """An independent matrix for each head, its rows marginally Gaussian.

  Args:
    rng: the key the matrices are drawn from.
    num_heads: number of matrices H.
    nb_features: rows M of each.
    depth: head width K.
    orthogonal: whether rows are orthogonal within blocks of K; blocks are
      independent. Otherwise all rows are.
    ortho_scaling: of orthogonal rows: 0 gives each the norm of a Gaussian
      vector (chi with K degrees of freedom: unbiased), 1 gives all sqrt(K).

  Returns:
    `[H, M, K]`, float32: always drawn so, that every precision sees the same
    matrix.
  """
  if not orthogonal:
    shape = (num_heads, nb_features, depth)
    return jax.random.normal(rng, shape, jnp.float32)
  num_rows = -(-nb_features // depth) * depth
  # One draw for directions and norms: compiling the generator takes a second.
  shape = (num_heads, num_rows + nb_features, depth)
  gaussian_HMK = jax.random.normal(rng, shape, jnp.float32)
  blocks_HRKK = gaussian_HMK[:, :num_rows].reshape(num_heads, -1, depth, depth)
  rows_HMK = haar_matrices(blocks_HRKK).reshape(num_heads, num_rows, depth)
  rows_HMK = rows_HMK[:, :nb_features]
  if ortho_scaling == 1:
    return rows_HMK * depth**0.5
  norms_HM = jnp.linalg.norm(gaussian_HMK[:, num_rows:], axis=-1)
  return rows_HMK * norms_HM[..., None]


@functools.lru_cache(maxsize=256)
def fixed_head_projections(
  seed: int, layer: int, *args: int, **kwargs
) -> np.ndarray:
  """`head_projections` of fold_in(key(seed), layer): computed once, not traced.

  A constant of the compiled program, which neither compiles nor runs a draw.
  """
  with jax.ensure_compile_time_eval():
    rng = jax.random.fold_in(jax.random.key(seed), layer)
    return np.asarray(head_projections(rng, *args, **kwargs))
