"""Layer normalisation whose backward pass on a CPU is made of products.

With h = (x - mean) / std and g the cotangent of the output times the scale,

    dx = (g - mean(g) - h mean(g h)) / std

and the cotangents of scale and bias are sums over all positions of dy h and dy.
As a product with ones each of them takes a fraction of the time that XLA on a
CPU takes for the sum, which it cuts in small pieces if there is one row of a
batch (scripts/BENCHMARKS.md, section 8). Elsewhere flax's layer is as good.

Axes: D width; `...` any others.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx


class LayerNorm(nnx.LayerNorm):
  """nnx.LayerNorm with scale and bias: arguments, parameters, result."""

  def __call__(self, x):
    """Normalises `[..., D]` over its last axis."""
    if jax.default_backend() != 'cpu':
      return super().__call__(x)
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    scale, bias = (p[...].reshape(shape) for p in (self.scale, self.bias))
    y = _normalise(x, scale, bias, self.epsilon)
    return y.astype(self.dtype or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x, scale, bias, epsilon):
  return _normalise_fwd(x, scale, bias, epsilon)[0]


def _normalise_fwd(x, scale, bias, epsilon):
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  mean_of_squares = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  # As flax computes it, and like it never below zero by rounding.
  variance = jnp.maximum(0.0, mean_of_squares - jnp.square(mean))
  inverse = jax.lax.rsqrt(variance + epsilon)
  y = (wide - mean) * (inverse * scale) + bias
  return y, (x, mean, inverse, scale, bias)


def _normalise_bwd(epsilon, residuals, dy):
  del epsilon
  x, mean, inverse, scale, bias = residuals
  h = (x - mean) * inverse
  g = dy * scale
  dx = inverse * (g - _mean_last(g) - h * _mean_last(g * h))
  return (
    dx.astype(x.dtype),
    _sum_like(scale, dy * h),
    _sum_like(bias, dy),
  )


_normalise.defvjp(_normalise_fwd, _normalise_bwd)


def _mean_last(x):
  """The mean over the last axis, which stays with size 1."""
  weights_D = jnp.full(x.shape[-1], 1 / x.shape[-1], x.dtype)
  return jnp.matmul(x, weights_D, precision='highest')[..., None]


def _sum_like(parameter, x):
  """The sum over all axes but the last, in the parameter's shape and dtype."""
  ones = jnp.ones(x.shape[:-1], x.dtype)
  axes = tuple(range(x.ndim - 1))
  sum_D = jax.lax.dot_general(
    ones, x, ((axes, axes), ((), ())), precision='highest'
  )
  return sum_D.reshape(parameter.shape).astype(parameter.dtype)
