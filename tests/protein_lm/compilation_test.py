"""The folder of compiled programs, and the count of new ones."""

import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import compilation

OPTIONS = (
  'jax_enable_compilation_cache',
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
  """Where the folder is to be; JAX is told of none, and put back afterwards."""
  before = {name: getattr(jax.config, name) for name in OPTIONS}
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv(compilation.VARIABLE, raising=False)
  yield tmp_path / 'protein_lm'
  for name, value in before.items():
    jax.config.update(name, value)


def mode(path):
  return os.stat(path).st_mode & 0o777


def test_folder_is_private(cache):
  path = compilation.enable_cache()
  assert path == jax.config.jax_compilation_cache_dir
  assert os.path.dirname(path) == str(cache)
  assert mode(path) == mode(cache) == 0o700


def test_folder_that_others_read_is_closed(cache):
  cache.mkdir(mode=0o755)
  compilation.enable_cache()
  assert mode(cache) == 0o700


def test_folder_that_others_write_is_refused(cache, capsys):
  cache.mkdir()
  cache.chmod(0o770)
  assert compilation.enable_cache() is None
  assert f'{cache}: the folder is writable by others' in capsys.readouterr().out
  assert jax.config.jax_compilation_cache_dir is None
  assert not os.listdir(cache)


def test_folder_of_another_user_is_refused(cache, capsys, monkeypatch):
  cache.mkdir()
  monkeypatch.setattr(os, 'getuid', lambda: os.stat(cache).st_uid + 1)
  assert compilation.enable_cache() is None
  assert 'belongs to another user' in capsys.readouterr().out


def test_link_is_refused(cache, capsys, tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir(mode=0o700)
  cache.symlink_to(elsewhere)
  assert compilation.enable_cache() is None
  assert 'not a link' in capsys.readouterr().out
  assert not os.listdir(elsewhere)


def test_unusable_place_is_a_warning(cache, capsys):
  cache.write_text('')
  assert compilation.enable_cache() is None
  assert capsys.readouterr().out.startswith(
    'warning: compiled programs are not'
  )


def test_relative_cache_home_is_ignored(cache, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  path = compilation.enable_cache()
  assert path.startswith(str(tmp_path / 'home' / '.cache' / 'protein_lm'))


def test_folder_that_jax_was_given_wins(cache, tmp_path):
  given = str(tmp_path / 'given')
  jax.config.update('jax_compilation_cache_dir', given)
  assert compilation.enable_cache() == given
  assert not cache.exists()


def test_cache_can_be_turned_off(cache, monkeypatch):
  monkeypatch.setenv(compilation.VARIABLE, 'off')
  assert compilation.enable_cache() is None
  assert not jax.config.jax_enable_compilation_cache
  assert not cache.exists()


def test_oldest_files_are_removed(cache, monkeypatch):
  path = compilation.enable_cache()
  for age, name in enumerate(('new', 'empty', 'middle', 'old')):
    file = os.path.join(path, name)
    with open(file, 'w') as stream:
      stream.write('' if name == 'empty' else 'four')
    os.utime(file, (1e9 - age, 1e9 - age))
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setattr(compilation, 'MAX_BYTES', 8)
  compilation.enable_cache()
  assert sorted(os.listdir(path)) == ['middle', 'new']


@pytest.fixture
def counter():
  with compilation.Counter() as counter:
    yield counter


@pytest.fixture
def double():
  """A function of its own, so that each test compiles."""

  @jax.jit
  def double(x):
    return 2 * x

  return double


def array(length):
  return jax.device_put(np.ones(length, np.float32))


def test_counts_programs_not_calls(counter, double):
  double(array(3))
  double(array(3))
  double(array(4))
  assert counter.count == 2
  assert counter.seconds > 0
  assert counter.recompilations == 0


def test_program_from_the_cache_counts(counter):
  # Two functions of one program: the second is read from the cache, if any.
  for _ in range(2):
    jax.jit(lambda x: x + 0.5)(array(3))
  assert counter.count == 2


def test_new_shape_after_warm_up_is_named(counter, double):
  double(array(3))
  counter.mark_warm()
  double(array(3))
  assert counter.recompilations == 0 and counter.take_warning() == ''
  double(array(4))
  double(array(5))
  assert counter.recompilations == 2
  assert 'jit(double) (2 times)' in counter.take_warning()
  assert counter.take_warning() == ''


def test_expected_programs_are_no_recompilations(counter, double):
  counter.mark_warm()
  with counter.expected():
    double(array(3))
  assert counter.count == 1
  assert counter.recompilations == 0


def test_only_the_first_of_a_kind_is_expected(counter, double):
  counter.mark_warm()
  for length in (3, 4):
    with counter.first('evaluation'):
      double(array(length))
  assert counter.recompilations == 1


def test_what_one_thread_expects_another_does_not(counter, double):
  counter.mark_warm()
  with counter.expected():
    thread = threading.Thread(target=double, args=(array(3),))
    thread.start()
    thread.join()
  assert counter.recompilations == 1


def test_stops_counting(double):
  with compilation.Counter() as counter:
    pass
  double(array(3))
  assert counter.count == 0


def test_counters_do_not_disturb_each_other(counter, double):
  with compilation.Counter():
    pass
  double(jnp.ones(()))
  assert counter.count >= 1


def test_program_that_runs_once_gives_the_same(rng):
  once = jax.jit(
    lambda rng: jax.random.normal(rng, (64,)),
    compiler_options=compilation.run_once_options(),
  )
  often = jax.jit(lambda rng: jax.random.normal(rng, (64,)))
  np.testing.assert_array_equal(once(rng), often(rng))
