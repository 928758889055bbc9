"""From q, k, random rows and statistics to what the sums take.

The sums know one positive feature map; the maps of lower_variance.py are
changes of q, k and the rows made here, once for the whole sequence.

Axes: B batch, L queries, S keys, H heads, J key/value heads, K head width,
M rows.
"""

import jax
import jax.numpy as jnp

from fast_attention import features, lower_variance

SOFTMAX_TYPES = ('trigonometric', *lower_variance.FEATURES_TYPES)


def needs_statistics(features_type: str) -> bool:
  """Whether the features depend on statistics of queries and keys."""
  is_known = features_type in lower_variance.FEATURES_TYPES
  return is_known and lower_variance.needs_statistics(features_type)


def num_rows(features_type: str, nb_features: int) -> int:
  """Rows that `nb_features` random rows become."""
  return nb_features * (1 + lower_variance.is_hyperbolic(features_type))


def prepare(
  features_type: str,
  query_BLHK: jax.Array,
  key_BSJK: jax.Array,
  projection_JMK: jax.Array | None,
  statistics: (
    lower_variance.Statistics | lower_variance.Reshaping | None
  ) = None,
) -> tuple[jax.Array, jax.Array, features.Rows | None]:
  """Queries, keys and the rows of each key head.

  Args:
    features_type: of a FastAttention.
    query_BLHK: queries; any number of batch axes.
    key_BSJK: keys.
    projection_JMK: random rows, or None.
    statistics: see `lower_variance`; None if the type needs none. Or what
      `lower_variance.reshaping` makes of them, which is then not made again.

  Returns:
    Both as they were, or changed and in float32 (or wider).
  """
  if projection_JMK is None:
    return query_BLHK, key_BSJK, None
  if lower_variance.is_hyperbolic(features_type):
    projection_JMK = lower_variance.antithetic(projection_JMK)
  if not needs_statistics(features_type):
    return query_BLHK, key_BSJK, features.Rows(projection_JMK)

  depth = query_BLHK.shape[-1]
  change = statistics
  if not isinstance(change, lower_variance.Reshaping):
    change = lower_variance.reshaping(features_type, statistics, depth)
  rows_JMK, bias_JM = projection_JMK, None
  if change.row_norm_coefficient_J is not None:
    norms_JM = jnp.sum(jnp.square(projection_JMK), axis=-1)
    bias_JM = change.row_norm_coefficient_J[:, None] * norms_JM
    rows_JMK = change.row_scale_J[:, None, None] * projection_JMK
  rows = features.Rows(
    rows_JMK,
    bias_JM,
    change.query_tilt_JK,
    change.key_tilt_JK,
    change.log_constant_J,
  )
  return (
    _change(query_BLHK, change.query_centre_JK, change.query_matrix_JKK),
    _change(key_BSJK, change.key_centre_JK, change.key_matrix_JKK),
    jax.lax.stop_gradient(rows),
  )


def _change(x_BLHK, centre_JK, matrix_JKK):
  """K^1/4 T (K^-1/4 x - c)."""
  if centre_JK is None and matrix_JKK is None:
    return x_BLHK
  *leading, H, K = x_BLHK.shape
  x_BLHK = x_BLHK.astype(features.compute_dtype(x_BLHK))
  J = len(centre_JK if matrix_JKK is None else matrix_JKK)
  x_BLJRK = x_BLHK.reshape(*leading, J, H // J, K)
  if centre_JK is not None:
    centre_JK = jnp.asarray(centre_JK, x_BLHK.dtype)
    x_BLJRK -= K**0.25 * jnp.broadcast_to(centre_JK[:, None], x_BLJRK.shape)
  if matrix_JKK is not None:
    x_BLJRK = jnp.einsum(
      '...jrk,jik->...jri',
      x_BLJRK,
      matrix_JKK.astype(x_BLHK.dtype),
      precision=jax.lax.Precision.HIGHEST,
    )
  return x_BLJRK.reshape(x_BLHK.shape)
