"""Layer normalisation gives what flax's gives, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from protein_lm.layer_norm import LayerNorm


def normalised(cls, x, g, dtype):
  """Output and gradients of x, scale and bias, after a change of both."""
  layer = cls(x.shape[-1], epsilon=1e-5, dtype=dtype, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(layer)
  params = jax.tree.map(lambda p: p + jnp.linspace(-1, 1, p.size), params)

  @jax.jit
  def run(params, x):
    out, pull_back = jax.vjp(lambda p, x: nnx.merge(graphdef, p)(x), params, x)
    d_params, d_x = pull_back(g.astype(out.dtype))
    return out, nnx.to_pure_dict(d_params), d_x

  return run(params, x)


@pytest.mark.parametrize('shape', [(1, 63, 8), (3, 5, 257), (7, 1), (2, 1, 32)])
@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 2e-5), ('bfloat16', 2e-2)]
)
def test_layer_and_gradients_are_those_of_flax(shape, dtype, tolerance):
  rng = np.random.default_rng(0)
  x, g = jnp.asarray(rng.normal(1, 2, size=(2, *shape)), dtype)
  actual = normalised(LayerNorm, x, g, dtype)
  expected = normalised(nnx.LayerNorm, x, g, dtype)
  assert jax.tree.map(jnp.dtype, actual) == jax.tree.map(jnp.dtype, expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max())
    )


def test_parameters_bear_the_names_of_flax():
  names = [
    list(nnx.to_pure_dict(nnx.state(cls(4, rngs=nnx.Rngs(0)))))
    for cls in (LayerNorm, nnx.LayerNorm)
  ]
  assert names[0] == names[1]


def test_a_backend_other_than_cpu_takes_the_layer_of_flax(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  layer = LayerNorm(4, rngs=nnx.Rngs(0))
  jaxpr = str(jax.make_jaxpr(lambda x: layer(x))(jnp.ones((2, 4))))
  assert 'custom_vjp' not in jaxpr
