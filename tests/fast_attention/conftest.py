"""Fixtures: random inputs, and the float64 quadratic reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _with_gradients(attention, kwargs):
  """(q, k, v, cotangent) -> output and gradients of q, k, v."""

  def run(q, k, v, cotangent):
    out, vjp = jax.vjp(lambda *qkv: attention(*qkv, **kwargs), q, k, v)
    return out, *vjp(cotangent)

  return jax.jit(run)


@pytest.fixture
def normal():
  """Standard normal numbers; of numpy, as compiling JAX's takes a second."""
  generator = np.random.default_rng(0)
  return lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)


@pytest.fixture
def qkvg(normal):
  """Makes q, k of a standard deviation, and v and a cotangent of 1."""

  def make(B, L, H, K, std=1.0):
    q, k, v, g = normal(4, B, L, H, K)
    return std * q, std * k, v, g

  return make


@pytest.fixture
def with_gradients():
  """(attention, arguments) -> compiled (q, k, v, cotangent) -> gradients."""
  return lambda attention, **kwargs: _with_gradients(attention, kwargs)


@pytest.fixture
def run_with_gradients():
  """Output and gradients of q, k, v, compiled."""

  def run(attention, qkvg, **kwargs):
    return _with_gradients(attention, kwargs)(*qkvg)

  return run


@pytest.fixture
def run_reference():
  """The same in float64, by the quadratic definition."""

  def run(attention, qkvg, **kwargs):
    attention = dataclasses.replace(attention, implementation='reference')
    with jax.enable_x64(True):
      qkvg = [jnp.asarray(np.asarray(x), jnp.float64) for x in qkvg]
      return [np.asarray(x) for x in _with_gradients(attention, kwargs)(*qkvg)]

  return run


@pytest.fixture
def assert_close():
  """Relative L2 distance of each array, at most `tolerance`.

  Relative to a root mean square of `floor` where an array vanishes (L = 1).
  """

  def check(actual, expected, tolerance=5e-6, floor=0.05):
    for a, b in zip(actual, expected, strict=True):
      a, b = (np.asarray(x, np.float64) for x in (a, b))
      error = np.linalg.norm(a - b)
      assert error <= tolerance * max(np.linalg.norm(b), floor * b.size**0.5)

  return check
