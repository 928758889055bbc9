"""JAX made strict for every test: eight CPU devices, no rank promotion."""

import os

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('MPLBACKEND', 'Agg')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def rng():
  """The key every test starts from."""
  return jax.random.key(0)
