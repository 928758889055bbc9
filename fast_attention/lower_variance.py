"""Softmax feature maps of smaller variance, as changes of q, k and of W.

All are unbiased estimates of exp(q.k / sqrt(K)): statistics of q and k choose
among them, and change the variance only. With x' = K^-1/4 q, y' = K^-1/4 k and
the rows w_m of W, iid or orthogonal with chi norms, one map computes them all:

    q~ = T_q (x' - c_q)        k~ = T_k (y' - c_k)        T_q^T T_k = 1
    phi_q[m] = exp(b w_m.q~ + a |w_m|^2 - |q~|^2 / 2 + query_tilt.q~)
    phi_k[m] = exp(b w_m.k~ + a |w_m|^2 - |k~|^2 / 2 + key_tilt.k~)
    exp(q.k / sqrt(K)) = exp(log_constant) E[phi_q.phi_k / M]

where b = sqrt(1 - 4a), query_tilt = T_k c_k, key_tilt = T_q c_q and
log_constant = K/2 log(1 - 4a) + c_q.c_k. Relative variance of iid rows:

    (((1 - 4a)^2 / (1 - 8a))^(K/2) exp(|q~ + k~|^2 / (1 - 8a)) - 1) / M

- positive: a = 0, T = 1, c = 0.
- hyperbolic: the same with rows W and -W, M of each. Relative variance
  (cosh(|q~ + k~|^2) - 1) / M.
- favor_plus_plus: a = (1 - 2r - sqrt((2r + 1)^2 + 8r)) / 16 <= 0, of least
  variance for r = mean |q~ + k~|^2 / K, the mean over independent pairs.
- aderf: also T_q = G^1/2, T_k = G^-1/2 with G E[x'x'^T] G = E[y'y'^T], of
  least r.
- hyperbolic_aderf: both; with orthogonal rows the least error measured.
- centred_*: also c_q = E x', c_k = E y'; moments are about them.

Sources: Choromanski et al. (2021), arXiv:2009.14794, lemma 1 (the first two);
Likhosherstov et al. (2022), arXiv:2205.15317 (FAVOR++) and (2023),
arXiv:2302.00787 (ADERF, whose B_1 and B_2 are b T_q and b T_k but for a
rotation, which leaves the distribution of W as it is).

Axes: B batch, L queries, S keys, N positions, H heads, J key/value heads,
G query heads of a key head, K head width, M features.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import features

FEATURES_TYPES = ('positive', 'favor_plus_plus', 'aderf')
FEATURES_TYPES += ('hyperbolic', 'hyperbolic_aderf')
FEATURES_TYPES += tuple(f'centred_{name}' for name in FEATURES_TYPES)

# Added to the eigenvalues of moments, relative to their mean. With 1e-5,
# float32 does not always converge for moments of rank 1 to 3 of 64.
_RIDGE = 1e-4

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class Statistics(NamedTuple):
  """E q, E k, E qq^T and E kk^T, all times their weight, per key/value head.

  The queries that share a key head are pooled. Other axes (layers) may lead.
  """

  query_mean_JK: jax.Array
  key_mean_JK: jax.Array
  query_moment_JKK: jax.Array
  key_moment_JKK: jax.Array
  weight_J: jax.Array


class Reshaping(NamedTuple):
  """T, c, the tilts, b, a and log_constant; None changes nothing.

  K^-1/4 is not in it: q~ = (x' - query_centre) @ query_matrix^T.
  """

  query_matrix_JKK: jax.Array | None = None
  key_matrix_JKK: jax.Array | None = None
  query_centre_JK: jax.Array | None = None
  key_centre_JK: jax.Array | None = None
  key_tilt_JK: jax.Array | None = None
  query_tilt_JK: jax.Array | None = None
  row_scale_J: jax.Array | None = None
  row_norm_coefficient_J: jax.Array | None = None
  log_constant_J: jax.Array | None = None


def needs_statistics(features_type: str) -> bool:
  """Whether the map depends on statistics of q and k."""
  return features_type not in ('positive', 'hyperbolic')


def is_hyperbolic(features_type: str) -> bool:
  """Whether the rows are W and -W."""
  return 'hyperbolic' in features_type


def antithetic(projection_JMK: jax.Array) -> jax.Array:
  """W and -W, `[J, 2M, K]`: the rows of the hyperbolic features."""
  return jnp.concatenate([projection_JMK, -projection_JMK], axis=-2)


def init(num_heads: int, depth: int) -> Statistics:
  """Statistics of nothing, for J key/value heads of width K: zeros."""
  mean_JK = jnp.zeros((num_heads, depth), jnp.float32)
  moment_JKK = jnp.zeros((num_heads, depth, depth), jnp.float32)
  weight_J = jnp.zeros(num_heads, jnp.float32)
  return Statistics(mean_JK, mean_JK, moment_JKK, moment_JKK, weight_J)


def measure(
  query_BLHK: jax.Array,
  key_BSJK: jax.Array,
  valid_query_BL: jax.Array | None = None,
  valid_key_BS: jax.Array | None = None,
  axis_names: tuple[str, ...] = (),
) -> Statistics:
  """Averages over a batch, of weight 1, without gradient.

  Args:
    query_BLHK: queries; each key head serves H / J of their heads in a row.
    key_BSJK: keys.
    valid_query_BL: bool or 0/1, the queries that count; default all.
    valid_key_BS: the same of keys.
    axis_names: mesh axes over which positions are split, inside
      `jax.shard_map`: the averages are those of all devices.

  Returns:
    float32, or wider; all zeros, the weight too, if no query or key is valid.
  """
  J, K = key_BSJK.shape[-2:]
  query_NJGK = query_BLHK.reshape(-1, J, query_BLHK.shape[-2] // J, K)
  key_NJGK = key_BSJK.reshape(-1, J, 1, K)
  query_mean, query_moment, some_query = _moments(
    query_NJGK, valid_query_BL, axis_names
  )
  key_mean, key_moment, some_key = _moments(key_NJGK, valid_key_BS, axis_names)
  weight_J = jnp.broadcast_to(some_query * some_key, (J,))
  sums = (query_mean, key_mean, query_moment, key_moment)
  return Statistics(*(x * some_query * some_key for x in sums), weight_J)


def _moments(x_NJGK, valid, axis_names):
  """Mean, second moment, and 1 if a position is valid, else 0."""
  x_NJGK = lax.stop_gradient(x_NJGK).astype(features.compute_dtype(x_NJGK))
  num_valid = jnp.asarray(len(x_NJGK), x_NJGK.dtype)
  if valid is not None:
    valid_N = valid.reshape(-1).astype(bool)
    num_valid = jnp.sum(valid_N, dtype=x_NJGK.dtype)
    x_NJGK = jnp.where(valid_N[:, None, None, None], x_NJGK, 0)
  J, K = x_NJGK.shape[1], x_NJGK.shape[3]
  x_JNK = jnp.moveaxis(x_NJGK, 1, 0).reshape(J, -1, K)
  # Else XLA puts the transpose into the product: 5 times slower on CPU.
  x_JNK = lax.optimization_barrier(x_JNK)
  sums = (jnp.sum(x_JNK, axis=1), _matmul(x_JNK.mT, x_JNK), num_valid)
  if axis_names:
    sums = lax.psum(sums, axis_names)
  sum_JK, product_JKK, num_valid = sums
  total = jnp.maximum(num_valid, 1) * x_NJGK.shape[2]
  return sum_JK / total, product_JKK / total, jnp.minimum(num_valid, 1)


def update(
  running: Statistics, batch: Statistics, decay: float | jax.Array
) -> Statistics:
  """Exponential running average: decay * running + (1 - decay) * batch."""
  return jax.tree.map(lambda r, b: decay * r + (1 - decay) * b, running, batch)


def corrected(statistics: Statistics) -> Statistics:
  """Divided by the weight: averages from the first update on; zeros stay."""
  weight_J = statistics.weight_J
  divisor_J = jnp.where(weight_J > 0, weight_J, 1)
  return Statistics(
    *(x / divisor_J[..., None] for x in statistics[:2]),
    *(x / divisor_J[..., None, None] for x in statistics[2:4]),
    weight_J / divisor_J,
  )


def reshaping(
  features_type: str, statistics: Statistics | None, depth: int
) -> Reshaping:
  """The change of q, k and W, without gradient.

  Args:
    features_type: one of FEATURES_TYPES.
    statistics: running or of a batch, corrected or not; None if not needed.
    depth: head width K.

  Returns:
    Arrays of the statistics' dtype. In float32 T_q^T T_k is 1 to 3e-6 for
    moments of full rank, and to 2e-5 for any (1e-4 is checked: a head where
    nothing better is found keeps T = 1).

  Raises:
    ValueError: the name is unknown, or statistics are missing.
  """
  if features_type not in FEATURES_TYPES:
    raise ValueError(
      f'features_type={features_type!r} is unknown: choose one of '
      f'{", ".join(FEATURES_TYPES)}.'
    )
  if not needs_statistics(features_type):
    return Reshaping()
  if statistics is None:
    raise ValueError(
      f'features_type={features_type!r} needs statistics of q and k: measure '
      "them on training batches first, or choose 'positive' or 'hyperbolic'."
    )
  statistics = corrected(lax.stop_gradient(statistics))
  query_mean_JK, key_mean_JK = (x * depth**-0.25 for x in statistics[:2])
  query_JKK, key_JKK = (x * depth**-0.5 for x in statistics[2:4])
  mean_product_J = jnp.sum(query_mean_JK * key_mean_JK, axis=-1)
  # About zero: the rounding errors of these moments stay when they are centred.
  scale_J = _trace(query_JKK + key_JKK) / (2 * depth)

  name = features_type.removeprefix('centred_').removeprefix('hyperbolic_')
  is_centred = features_type.startswith('centred_')
  centre_product_J = mean_product_J if is_centred else 0 * mean_product_J
  result = Reshaping()
  if is_centred:
    query_JKK -= query_mean_JK[..., :, None] * query_mean_JK[..., None, :]
    key_JKK -= key_mean_JK[..., :, None] * key_mean_JK[..., None, :]
    result = Reshaping(
      query_centre_JK=query_mean_JK,
      key_centre_JK=key_mean_JK,
      key_tilt_JK=query_mean_JK,
      query_tilt_JK=key_mean_JK,
      log_constant_J=centre_product_J,
    )
  if name == 'aderf':
    query_matrix_JKK, key_matrix_JKK = _balance(query_JKK, key_JKK, scale_J)
    result = result._replace(
      query_matrix_JKK=query_matrix_JKK, key_matrix_JKK=key_matrix_JKK
    )
    query_JKK = _matmul(_matmul(query_matrix_JKK, query_JKK), query_matrix_JKK)
    key_JKK = _matmul(_matmul(key_matrix_JKK, key_JKK), key_matrix_JKK)
    if is_centred:
      result = result._replace(
        key_tilt_JK=_matmul(query_matrix_JKK, query_mean_JK[..., None])[..., 0],
        query_tilt_JK=_matmul(key_matrix_JKK, key_mean_JK[..., None])[..., 0],
      )
  if name in ('favor_plus_plus', 'aderf'):
    # T leaves the product of the means as it is; centring makes it 0.
    product_J = mean_product_J - centre_product_J
    r_J = (_trace(query_JKK + key_JKK) + 2 * product_J) / depth
    r_J = jnp.maximum(r_J, 0)
    a_J = (1 - 2 * r_J - jnp.sqrt((2 * r_J + 1) ** 2 + 8 * r_J)) / 16
    a_J = jnp.minimum(a_J, 0)
    result = result._replace(
      row_scale_J=jnp.sqrt(1 - 4 * a_J),
      row_norm_coefficient_J=a_J,
      log_constant_J=centre_product_J + depth / 2 * jnp.log1p(-4 * a_J),
    )
  return result


def _trace(x_JKK):
  return jnp.trace(x_JKK, axis1=-2, axis2=-1)


def _balance(query_JKK, key_JKK, scale_J):
  """T_q = G^1/2 and T_k = G^-1/2, symmetric, for moments of mean `scale`."""
  scale_J11 = jnp.maximum(scale_J, 1e-30)[..., None, None]
  one_JKK = jnp.broadcast_to(
    jnp.eye(query_JKK.shape[-1], dtype=query_JKK.dtype), query_JKK.shape
  )
  query_JKK, key_JKK = (
    x / scale_J11 + _RIDGE * one_JKK for x in (query_JKK, key_JKK)
  )
  g_JKK, _ = _geometric_mean(query_JKK, key_JKK)
  query_matrix_JKK, key_matrix_JKK = _geometric_mean(one_JKK, g_JKK)
  error_JKK = jnp.abs(_matmul(query_matrix_JKK, key_matrix_JKK) - one_JKK)
  # False for NaN too, which XLA's maximum may drop.
  is_inverse_J11 = jnp.all(error_JKK < 1e-4, axis=(-2, -1), keepdims=True)
  return (
    jnp.where(is_inverse_J11, x, one_JKK)
    for x in (query_matrix_JKK, key_matrix_JKK)
  )


def _geometric_mean(a_JKK, b_JKK):
  """G and G^-1 with G A G = B, all symmetric and positive.

  sign([[0, A], [B, 0]]) = [[0, G^-1], [G, 0]] by Newton-Schulz: products only,
  as `jnp.linalg` may hang on CPU (see `projections.haar_matrices`). Kept
  symmetric, the two are inverse to rounding. (Higham, Functions of Matrices,
  2008, theorem 5.2 and equation 5.22.)
  """
  depth = a_JKK.shape[-1]
  one_JKK = jnp.broadcast_to(jnp.eye(depth, dtype=a_JKK.dtype), a_JKK.shape)
  # Roots of the eigenvalues of the product are then at most 1, and go to 1.
  product_J11 = jnp.sum(a_JKK * b_JKK, axis=(-2, -1), keepdims=True)
  a_JKK, b_JKK = (x / jnp.sqrt(product_J11) for x in (a_JKK, b_JKK))

  def iterate(carry):
    i, inverse_JKK, g_JKK, _ = carry
    error_JKK = one_JKK - _matmul(g_JKK, inverse_JKK)
    error_J11 = jnp.linalg.norm(error_JKK, axis=(-2, -1), keepdims=True)
    # While far: small roots grow by 2, not 1.5, and large stay below 1.1.
    is_far_J11 = (error_J11 > 0.3 * depth**0.5) & (i < 12)
    step_JKK = one_JKK + error_JKK * jnp.where(is_far_J11, 1, 0.5)
    inverse_JKK = _matmul(inverse_JKK, step_JKK)
    g_JKK = _matmul(step_JKK, g_JKK)
    inverse_JKK, g_JKK = ((x + x.mT) / 2 for x in (inverse_JKK, g_JKK))
    return i + 1, inverse_JKK, g_JKK, jnp.max(error_J11)

  # A step squares the error: the one that finds sqrt(eps) leaves eps.
  tolerance = float(jnp.finfo(a_JKK.dtype).eps) ** 0.5
  _, inverse_JKK, g_JKK, _ = lax.while_loop(
    lambda carry: (carry[0] < 50) & (carry[3] > tolerance),
    iterate,
    (0, a_JKK, b_JKK, jnp.asarray(jnp.inf, a_JKK.dtype)),
  )
  return g_JKK, inverse_JKK
