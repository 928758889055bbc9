"""Named kernels: values, gradients, names in gin."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fast_attention import kernels, make_fast_generalized_attention


@pytest.fixture(autouse=True)
def clean_gin():
  yield
  gin.clear_config()


@pytest.mark.parametrize(
  'name, expected',
  [
    ('relu', lambda x: np.maximum(x, 0)),
    ('jcos', np.cos),
    ('jsin', np.sin),
    ('jtanh', np.tanh),
    ('jsigmoid', lambda x: 1 / (1 + np.exp(-x))),
    ('jrequ', lambda x: np.maximum(x, 0) ** 2),
    ('jexp', np.exp),
    ('jidentity', lambda x: x),
    ('jshiftedelu', lambda x: np.where(x > 0, x + 1, np.exp(x))),
  ],
)
def test_kernel_is_what_its_name_says(name, expected):
  x = np.linspace(-5, 5, 101, dtype=np.float32)
  actual = kernels.KERNELS[name](jnp.asarray(x))
  np.testing.assert_allclose(actual, expected(x), rtol=2e-5, atol=1e-6)


def test_gelu_is_exact():
  # 3 Phi(3); the tanh approximation gives 2.99636.
  assert kernels.jgelu(jnp.float32(3)) == pytest.approx(2.995950, abs=2e-6)


@pytest.mark.parametrize('name', sorted(set(kernels.KERNELS) - {'jexp'}))
def test_kernel_and_gradient_are_finite_everywhere(name):
  x = jnp.array([-1e4, -200.0, -1.0, 0.0, 1.0, 200.0, 1e4])
  out, grads = jax.vmap(jax.value_and_grad(kernels.KERNELS[name]))(x)
  assert np.all(np.isfinite(out)) and np.all(np.isfinite(grads))


@pytest.mark.parametrize('binding', ["'jrequ'", '@jrequ'])
def test_gin_takes_strings_and_references(binding):
  gin.parse_config(f'make_fast_generalized_attention.kernel_fn = {binding}')
  attention = make_fast_generalized_attention()
  assert attention == make_fast_generalized_attention(kernel_fn=kernels.jrequ)
  assert hash(attention) == hash(
    make_fast_generalized_attention(kernel_fn='jrequ')
  )
  assert binding in gin.operative_config_str()


def test_any_function_is_a_kernel(normal):
  attention = make_fast_generalized_attention(kernel_fn=jax.nn.softplus)
  q, k, v = normal(3, 1, 5, 1, 8)
  assert attention(q, k, v).shape == v.shape


def test_exp_is_computed_as_jexp():
  attention = make_fast_generalized_attention(kernel_fn=jnp.exp)
  assert attention.kernel_fn is kernels.jexp


def test_unknown_name_lists_the_known():
  with pytest.raises(ValueError, match="'jreku' is unknown: use one of jcos"):
    make_fast_generalized_attention(kernel_fn='jreku')


def test_number_is_no_kernel():
  with pytest.raises(TypeError, match='must be a name or an elementwise'):
    make_fast_generalized_attention(kernel_fn=3)
