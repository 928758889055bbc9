"""Feature maps: positive softmax, trigonometric softmax, generalized kernels.

A map turns q and k into features whose dot product estimates (or defines) the
attention score. To stay in range at every norm, features come scaled, with the
scale as a logarithm beside them:

    phi(x) = exp(log_scale) * features

The scale of a key belongs to that position alone: no maximum runs over other
positions, so nothing leaks from the future, padding or other sequences.

Axes: H heads, B batch, C positions, K head width, M features.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import kernels

GENERALIZED_TYPES = ('deterministic', 'iid', 'ortho')


class Rows(NamedTuple):
  """The random rows of each head, and what goes with them.

  Attributes:
    matrix_HMK: the rows W.
    bias_HM: added to W x' of queries and keys.
    query_tilt_HK: the logarithm of a query's weight is tilt . x'.
    key_tilt_HK: the same of keys.
    log_constant_H: of the estimate; cancels in the normalised output.
  """

  matrix_HMK: jax.Array
  bias_HM: jax.Array | None = None
  query_tilt_HK: jax.Array | None = None
  key_tilt_HK: jax.Array | None = None
  log_constant_H: jax.Array | None = None


class Features(NamedTuple):
  """Scaled features and the logarithm of their scale, per position."""

  features_HBCM: jax.Array
  log_scale_HBC: jax.Array
  # What was subtracted from W x': the features made with it are the same ones.
  shift_HBC: jax.Array | None = None


PullBack = Callable[[jax.Array], jax.Array]


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
  """float32, or wider if an array is."""
  return jnp.result_type(jnp.float32, *(x.dtype for x in arrays))


@dataclasses.dataclass(frozen=True)
class FeatureMap:
  """Features of queries and keys.

  positive:       M^-1/2 exp(W x' + b - |x'|^2 / 2 + t.x'), x' = K^-1/4 x
  trigonometric:  M^-1/2 exp(|x'|^2 / 2) [cos W x', sin W x']
  kernel:         kernel_fn(W x) + kernel_epsilon; W = 1 if there is none

  The first two are unbiased estimates of exp(q.k / sqrt(K)). Bias b and tilt t
  are those of Rows, usually none.

  Attributes:
    kind: 'positive', 'trigonometric' or 'kernel'.
    kernel_fn: elementwise function, for 'kernel'.
    kernel_epsilon: added to kernel features.
    numerical_stabilizer: added to scaled key features. The largest query
      feature of the softmax kernels is 1, so the denominator is at least this.
    renormalize: whether factors of the query alone cancel, and are left out.
  """

  kind: str
  kernel_fn: kernels.KernelFn | None = None
  kernel_epsilon: float = 0.0
  numerical_stabilizer: float = 0.0
  renormalize: bool = True

  @property
  def is_exponential(self) -> bool:
    """Whether features are exponentials of what the projection gives."""
    return self.kind == 'positive' or self.kernel_fn is kernels.jexp

  @property
  def has_scale(self) -> bool:
    """Whether log-scales differ from zero."""
    return self.kind != 'kernel' or self.is_exponential

  @property
  def smallest_denominator(self) -> float:
    """Rows whose |denominator| is not above this are zeros."""
    if self.kind == 'positive' or self.kernel_fn in kernels.NONNEGATIVE:
      return 1e-30  # Only an empty or underflown row.
    return 1e-9  # Signed features cancel: keep the gradient finite.

  def width(self, nb_features: int | None, depth: int) -> int:
    """Number of features of M rows; None: of a head without projection."""
    width = depth if nb_features is None else nb_features
    return 2 * width if self.kind == 'trigonometric' else width

  def query_features(
    self, query_HBCK: jax.Array, rows: Rows | None
  ) -> Features:
    """Features of queries: `[H, B, C, M]` and log-scales `[H, B, C]`."""
    return self._features(query_HBCK, rows, is_query=True)

  def key_features(self, key_HBCK: jax.Array, rows: Rows | None) -> Features:
    """Features of keys: `[H, B, C, M]` and log-scales `[H, B, C]`."""
    return self._features(key_HBCK, rows, is_query=False)

  def pullable_features(
    self,
    x_HBCK: jax.Array,
    rows: Rows | None,
    *,
    is_query: bool,
    dtype,
    shift_HBC: jax.Array | None = None,
  ) -> tuple[Features, PullBack]:
    """Features in `dtype`, and the map of their cotangents to that of x.

    Args:
      x_HBCK: queries or keys.
      rows: of the feature map.
      is_query: which.
      dtype: of the features.
      shift_HBC: of the same features made before: saves a maximum.
    """
    if self.kernel_fn is jax.nn.relu:
      return self._pullable_relu(x_HBCK, rows, is_query, dtype)
    if self.kind != 'positive':

      def features(x_HBCK):
        y = self._features(x_HBCK, rows, is_query=is_query)
        return y.features_HBCM.astype(dtype), y.log_scale_HBC.astype(dtype)

      features_HBCM, vjp, scale_HBC = jax.vjp(features, x_HBCK, has_aux=True)
      return Features(features_HBCM, scale_HBC), lambda d: vjp(d)[0]

    y = self._positive(
      x_HBCK, rows, is_query=is_query, shift_HBC=shift_HBC, in_vjp=True
    )
    y = jax.tree.map(lambda z: z.astype(dtype), y)

    def pull_back(d_features_HBCM):
      stabilizer = 0 if is_query else self.numerical_stabilizer
      d_logits_HBCM = d_features_HBCM * (y.features_HBCM - stabilizer)
      d_x_HBCK = project_back(d_logits_HBCM, rows)
      scale = x_HBCK.shape[-1] ** -0.25
      tilt_HK = rows.query_tilt_HK if is_query else rows.key_tilt_HK
      if not (is_query and self.renormalize):
        # Of the norm and the tilt.
        d_weight_HBC1 = sum_last(d_logits_HBCM)[..., None]
        direction_HBCK = -scale * x_HBCK.astype(dtype)
        if tilt_HK is not None:
          direction_HBCK += tilt_HK[:, None, None].astype(dtype)
        d_x_HBCK += direction_HBCK * d_weight_HBC1
      return (scale * d_x_HBCK).astype(x_HBCK.dtype)

    return y, pull_back

  def _pullable_relu(
    self, x_HBCK, rows, is_query, dtype
  ) -> tuple[Features, PullBack]:
    """Its derivative is known from the features: no W x has to wait for it."""
    y = self._features(x_HBCK, rows, is_query=is_query)
    # Features of 0, by the same additions.
    zero = jnp.zeros((), y.features_HBCM.dtype) + self.kernel_epsilon
    if not is_query:
      zero += self.numerical_stabilizer
    features_HBCM = y.features_HBCM.astype(dtype)

    def pull_back(d_features_HBCM):
      is_active_HBCM = features_HBCM > zero.astype(dtype)
      d_logits_HBCM = jnp.where(is_active_HBCM, d_features_HBCM, 0)
      return project_back(d_logits_HBCM, rows).astype(x_HBCK.dtype)

    return Features(features_HBCM, y.log_scale_HBC.astype(dtype)), pull_back

  def _features(self, x_HBCK, rows, *, is_query) -> Features:
    if self.kind == 'positive':
      return self._positive(x_HBCK, rows, is_query=is_query)
    x_HBCK = x_HBCK.astype(compute_dtype(x_HBCK))
    if self.kind == 'trigonometric':
      return self._trigonometric(x_HBCK, rows, is_query=is_query)
    logits_HBCM = project(x_HBCK, rows)
    if self.is_exponential:
      features = self._exponential_kernel(logits_HBCM)
    else:
      features = Features(
        self.kernel_fn(logits_HBCM) + self.kernel_epsilon,
        jnp.zeros_like(logits_HBCM[..., 0]),
      )
    return features if is_query else self._stabilised(features)

  def _stabilised(self, key: Features) -> Features:
    if not self.numerical_stabilizer:
      return key
    return key._replace(
      features_HBCM=key.features_HBCM + self.numerical_stabilizer
    )

  def _positive(
    self, x_HBCK, rows, *, is_query, shift_HBC=None, in_vjp=False
  ) -> Features:
    x_HBCK = x_HBCK.astype(compute_dtype(x_HBCK))
    x_HBCK = x_HBCK * x_HBCK.shape[-1] ** -0.25
    logits_HBCM = project(x_HBCK, rows)
    if rows.bias_HM is not None:
      logits_HBCM += rows.bias_HM[:, None, None].astype(logits_HBCM.dtype)
    if shift_HBC is None:
      shift_HBC = lax.stop_gradient(jnp.max(logits_HBCM, axis=-1))
    exponents_HBCM = logits_HBCM - shift_HBC[..., None]
    log_scale_HBC = shift_HBC
    if not (is_query and self.renormalize):
      # Of a query it cancels in the normalised output.
      weight_HBC = -0.5 * jnp.sum(jnp.square(x_HBCK), axis=-1)
      tilt_HK = rows.query_tilt_HK if is_query else rows.key_tilt_HK
      if tilt_HK is not None:
        weight_HBC += jnp.sum(x_HBCK * tilt_HK[:, None, None], axis=-1)
      scale_HBC = lax.stop_gradient(weight_HBC)
      log_scale_HBC = log_scale_HBC + scale_HBC
      if not in_vjp:
        # Zero, with the gradient of the weight: the scale is a constant.
        exponents_HBCM += (weight_HBC - scale_HBC)[..., None]
    features = Features(jnp.exp(exponents_HBCM), log_scale_HBC, shift_HBC)
    if not is_query:
      return self._stabilised(features)
    return self._with_width(features, rows)

  def _trigonometric(self, x_HBCK, rows, *, is_query) -> Features:
    x_HBCK = x_HBCK * x_HBCK.shape[-1] ** -0.25
    logits_HBCM = project(x_HBCK, rows)
    # exp(|x'|^2 / 2). Of a query it cancels in the normalised output.
    norm_HBC = 0.5 * jnp.sum(jnp.square(x_HBCK), axis=-1)
    if is_query and self.renormalize:
      norm_HBC = jnp.zeros_like(norm_HBC)
    scale_HBC = lax.stop_gradient(norm_HBC)
    waves_HBCM = jnp.concatenate(
      [jnp.cos(logits_HBCM), jnp.sin(logits_HBCM)], axis=-1
    )
    # exp(0), with the gradient of the norm: the scale is a constant.
    weight_HBC1 = jnp.exp(norm_HBC - scale_HBC)[..., None]
    features = Features(waves_HBCM * weight_HBC1, scale_HBC)
    if not is_query:
      return self._stabilised(features)
    return self._with_width(features, rows)

  def _with_width(self, query: Features, rows: Rows) -> Features:
    """With the M^-1/2 of queries and keys, together, in the query's scale."""
    log_scale_HBC = query.log_scale_HBC - math.log(rows.matrix_HMK.shape[-2])
    if rows.log_constant_H is not None:
      log_scale_HBC += rows.log_constant_H[:, None, None]
    return query._replace(log_scale_HBC=log_scale_HBC)

  def _exponential_kernel(self, logits_HBCM) -> Features:
    """exp(W x) + kernel_epsilon, with the larger of the two as its scale."""
    log_scale_HBC = lax.stop_gradient(jnp.max(logits_HBCM, axis=-1))
    if self.kernel_epsilon > 0:
      log_epsilon = math.log(self.kernel_epsilon)
      log_scale_HBC = jnp.maximum(log_scale_HBC, log_epsilon)
    features_HBCM = jnp.exp(logits_HBCM - log_scale_HBC[..., None])
    if self.kernel_epsilon > 0:
      features_HBCM += jnp.exp(log_epsilon - log_scale_HBC)[..., None]
    return Features(features_HBCM, log_scale_HBC)


def project(x_HBCK: jax.Array, rows: Rows | None) -> jax.Array:
  """W x for each head; x itself where there is no matrix."""
  if rows is None:
    return x_HBCK
  # Exponents: an error here is a relative error there (TF32 has 10 bits).
  return jnp.einsum(
    'hbck,hmk->hbcm',
    x_HBCK,
    rows.matrix_HMK.astype(x_HBCK.dtype),
    precision=lax.Precision.HIGHEST,
  )


def project_back(d_logits_HBCM: jax.Array, rows: Rows | None) -> jax.Array:
  """The cotangent of x from that of W x."""
  if rows is None:
    return d_logits_HBCM
  return jnp.einsum(
    'hbcm,hmk->hbck',
    d_logits_HBCM,
    rows.matrix_HMK.astype(d_logits_HBCM.dtype),
    precision=lax.Precision.HIGHEST,
  )


def sum_last(x_HBCM: jax.Array) -> jax.Array:
  """The sum over the last axis, as a product: it is faster on CPU."""
  ones_M = jnp.ones(x_HBCM.shape[-1], x_HBCM.dtype)
  return jnp.einsum(
    'hbcm,m->hbc', x_HBCM, ones_M, precision=lax.Precision.HIGHEST
  )


def num_rows(rows: Rows | None) -> int | None:
  """M, or None where there is no matrix."""
  return None if rows is None else rows.matrix_HMK.shape[-2]
