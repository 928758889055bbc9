"""Named elementwise kernels of generalized attention, known to gin.

Each can be given as a string or as a gin reference:

    make_fast_generalized_attention.kernel_fn = 'jrequ'
    make_fast_generalized_attention.kernel_fn = @jrequ

Both name the same function, so both give equal attentions, and the operative
config keeps either. Any other elementwise function of an array works too.
"""

from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp

KernelFn = Callable[[jax.Array], jax.Array]
KERNELS: dict[str, KernelFn] = {'relu': jax.nn.relu}


def _kernel(fn: KernelFn) -> KernelFn:
  """Registers a kernel under its own name, here and in gin."""
  KERNELS[fn.__name__] = fn
  return gin.register(fn, module='fast_attention')


@_kernel
def jcos(x: jax.Array) -> jax.Array:
  """cos(x); signed."""
  return jnp.cos(x)


@_kernel
def jsin(x: jax.Array) -> jax.Array:
  """sin(x); signed."""
  return jnp.sin(x)


@_kernel
def jtanh(x: jax.Array) -> jax.Array:
  """tanh(x); signed."""
  return jnp.tanh(x)


@_kernel
def jsigmoid(x: jax.Array) -> jax.Array:
  """1 / (1 + exp(-x)); positive."""
  return jax.nn.sigmoid(x)


@_kernel
def jgelu(x: jax.Array) -> jax.Array:
  """x Phi(x), exact, not the tanh approximation; signed."""
  return jax.nn.gelu(x, approximate=False)


@_kernel
def jrequ(x: jax.Array) -> jax.Array:
  """max(x, 0)^2; nonnegative."""
  return jnp.square(jax.nn.relu(x))


@_kernel
def jexp(x: jax.Array) -> jax.Array:
  """exp(x); positive. Attention computes it with log-scales: no overflow."""
  return jnp.exp(x)


@_kernel
def jidentity(x: jax.Array) -> jax.Array:
  """x; signed."""
  return x


@_kernel
def jshiftedelu(x: jax.Array) -> jax.Array:
  """elu(x) + 1; positive, with a finite gradient everywhere."""
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


NONNEGATIVE = frozenset([jax.nn.relu, jsigmoid, jrequ, jexp, jshiftedelu])
# exp overflows at 89 in float32: these go by jexp, which carries log-scales.
_SYNONYMS: dict[KernelFn, KernelFn] = {jnp.exp: jexp, jax.lax.exp: jexp}


def find_kernel(kernel_fn: str | KernelFn) -> KernelFn:
  """The function a name, a gin reference or a function stands for.

  Raises:
    ValueError: no kernel has that name.
    TypeError: neither a name nor a function.
  """
  if isinstance(kernel_fn, str):
    if kernel_fn not in KERNELS:
      raise ValueError(
        f'kernel_fn {kernel_fn!r} is unknown: use one of '
        f'{", ".join(sorted(KERNELS))}, or pass a function.'
      )
    return KERNELS[kernel_fn]
  if not callable(kernel_fn):
    raise TypeError(
      f'kernel_fn must be a name or an elementwise function, got {kernel_fn!r}.'
    )
  # A gin reference arrives as a wrapper; equal kernels must compare equal.
  original = getattr(kernel_fn, '__wrapped__', None)
  if any(original is known for known in KERNELS.values()):
    return original
  return _SYNONYMS.get(kernel_fn, kernel_fn)


def kernel_name(kernel_fn: KernelFn) -> str:
  """Name of a kernel for printing."""
  for name, fn in KERNELS.items():
    if fn is kernel_fn:
      return name
  return getattr(kernel_fn, '__name__', repr(kernel_fn))
