"""JAX made strict for every test: eight CPU devices, no rank promotion.

Compiled programs are shared, for the length of a run, by its workers and by
the trainers that tests start.
"""

import atexit
import logging
import os
import shutil
import tempfile

_flags = os.environ.get('XLA_FLAGS', '')
_flags += ' --xla_force_host_platform_device_count=8'
if 'xla_backend_optimization_level' not in _flags:
  # Most of the time of the tests is compilation, and this halves it; with
  # scripts/test.sh --all programs are compiled as users' are.
  _flags += ' --xla_backend_optimization_level=0'
os.environ['XLA_FLAGS'] = _flags
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('MPLBACKEND', 'Agg')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # a worker inherits it
  _cache_dir = tempfile.mkdtemp(prefix='jax_cache_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache_dir
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  atexit.register(shutil.rmtree, _cache_dir, ignore_errors=True)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import logging as absl_logging  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def fasta_60(tmp_path_factory):
  """A FASTA file of 60 random proteins, of 20 to 79 residues."""
  generator = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('fasta') / 'random.fasta'
  letters = list('ACDEFGHIKLMNPQRSTVWY')
  with path.open('w') as file:
    for i in range(60):
      file.write(f'>P{i}\n{"".join(generator.choice(letters, 20 + i))}\n')
  return path


class Clock:
  """A clock that is moved by hand."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  """Seconds that pass when a test says so."""
  return Clock()


@pytest.fixture
def rng():
  """The key every test starts from."""
  return jax.random.key(0)


@pytest.fixture
def warned():
  """The warnings logged during the test."""
  records: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: records.append(record.getMessage())
  absl_logging.get_absl_logger().addHandler(handler)
  yield records
  absl_logging.get_absl_logger().removeHandler(handler)
