"""JAX made strict for every test: eight CPU devices, no rank promotion.

Compiled programs are shared, for the length of a run, by its workers and by
the trainers that tests start.
"""

import atexit
import os
import shutil
import tempfile

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('MPLBACKEND', 'Agg')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # a worker inherits it
  _cache_dir = tempfile.mkdtemp(prefix='jax_cache_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache_dir
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  atexit.register(shutil.rmtree, _cache_dir, ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def rng():
  """The key every test starts from."""
  return jax.random.key(0)
