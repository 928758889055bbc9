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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fast_attention import kernels

SOFTMAX_TYPES = ('positive', 'trigonometric')
GENERALIZED_TYPES = ('deterministic', 'iid', 'ortho')


class Features(NamedTuple):
  """Scaled features and the logarithm of their scale, per position."""

  features_HBCM: jax.Array
  log_scale_HBC: jax.Array


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
  """float32, or wider if an array is."""
  return jnp.result_type(jnp.float32, *(x.dtype for x in arrays))


@dataclasses.dataclass(frozen=True)
class FeatureMap:
  """Features of queries and keys.

  positive:       M^-1/2 exp(W x' - |x'|^2 / 2), x' = K^-1/4 x
  trigonometric:  M^-1/2 exp(|x'|^2 / 2) [cos W x', sin W x']
  kernel:         kernel_fn(W x) + kernel_epsilon; W = 1 if there is none

  The first two are unbiased estimates of exp(q.k / sqrt(K)).

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
    self, query_HBCK: jax.Array, projection_HMK: jax.Array | None
  ) -> Features:
    """Features of queries: `[H, B, C, M]` and log-scales `[H, B, C]`."""
    features = self._features(query_HBCK, projection_HMK, is_query=True)
    if self.kind == 'kernel':
      return features
    # The M^-1/2 of queries and keys, together.
    log_width = math.log(projection_HMK.shape[-2])
    return features._replace(log_scale_HBC=features.log_scale_HBC - log_width)

  def key_features(
    self, key_HBCK: jax.Array, projection_HMK: jax.Array | None
  ) -> Features:
    """Features of keys: `[H, B, C, M]` and log-scales `[H, B, C]`."""
    features = self._features(key_HBCK, projection_HMK, is_query=False)
    if not self.numerical_stabilizer:
      return features
    return features._replace(
      features_HBCM=features.features_HBCM + self.numerical_stabilizer
    )

  def _features(self, x_HBCK, projection_HMK, *, is_query) -> Features:
    x_HBCK = x_HBCK.astype(compute_dtype(x_HBCK))
    if self.kind != 'kernel':
      x_HBCK = x_HBCK * x_HBCK.shape[-1] ** -0.25
    logits_HBCM = project(x_HBCK, projection_HMK)

    if self.kind == 'kernel' and not self.is_exponential:
      features_HBCM = self.kernel_fn(logits_HBCM) + self.kernel_epsilon
      return Features(features_HBCM, jnp.zeros_like(logits_HBCM[..., 0]))

    if self.kind == 'kernel':
      return self._exponential_kernel(logits_HBCM)

    # exp(+-|x'|^2 / 2). Of a query it cancels in the normalised output.
    sign = -1.0 if self.kind == 'positive' else 1.0
    norm_HBC = 0.5 * sign * jnp.sum(jnp.square(x_HBCK), axis=-1)
    if is_query and self.renormalize:
      norm_HBC = jnp.zeros_like(norm_HBC)
    scale_HBC = lax.stop_gradient(norm_HBC)
    # Zero, with the gradient of the norm: the scale itself is a constant.
    norm_HBC = norm_HBC - scale_HBC

    if self.kind == 'trigonometric':
      waves_HBCM = jnp.concatenate(
        [jnp.cos(logits_HBCM), jnp.sin(logits_HBCM)], axis=-1
      )
      return Features(waves_HBCM * jnp.exp(norm_HBC)[..., None], scale_HBC)

    largest_HBC = lax.stop_gradient(jnp.max(logits_HBCM, axis=-1))
    features_HBCM = jnp.exp(
      logits_HBCM - largest_HBC[..., None] + norm_HBC[..., None]
    )
    return Features(features_HBCM, scale_HBC + largest_HBC)

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


def key_features_vjp(
  feature_map: FeatureMap,
  key_HBCK: jax.Array,
  projection_HMK: jax.Array | None,
  valid_BC: jax.Array | None,
  dtype,
):
  """Key features with log-scale -inf where not valid, and the features' VJP."""

  def features(key_HBCK):
    key = feature_map.key_features(key_HBCK, projection_HMK)
    return key.features_HBCM.astype(dtype), key.log_scale_HBC.astype(dtype)

  key_prime_HBCM, vjp, log_scale_HBC = jax.vjp(features, key_HBCK, has_aux=True)
  if valid_BC is not None:
    log_scale_HBC = jnp.where(valid_BC[None], log_scale_HBC, -jnp.inf)
  return Features(key_prime_HBCM, log_scale_HBC), vjp


def project(x_HBCK: jax.Array, projection_HMK: jax.Array | None) -> jax.Array:
  """W x for each head; x itself where there is no matrix."""
  if projection_HMK is None:
    return x_HBCK
  # Exponents: an error here is a relative error there (TF32 has 10 bits).
  return jnp.einsum(
    'hbck,hmk->hbcm',
    x_HBCK,
    projection_HMK.astype(x_HBCK.dtype),
    precision=lax.Precision.HIGHEST,
  )


def num_rows(projection_HMK: jax.Array | None) -> int | None:
  """M, or None where there is no matrix."""
  return None if projection_HMK is None else projection_HMK.shape[-2]
