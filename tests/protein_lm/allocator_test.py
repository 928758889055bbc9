"""A command starts again, once, with the allocator that suits a CPU."""

import subprocess
import sys

import pytest

from protein_lm import allocator


@pytest.fixture
def command(monkeypatch):
  """A command on Linux, JAX on a CPU, jemalloc there: what is started again."""
  started = []
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'x', '--a=1'])
  monkeypatch.setattr(sys, 'argv', ['/there/x.py', '--a=1'])
  monkeypatch.setattr(allocator.os, 'environ', {'JAX_PLATFORMS': 'cpu'})
  monkeypatch.setattr(allocator.os, 'execv', lambda *args: started.append(args))
  find_library(monkeypatch, 'libx.so.2')
  return started


def find_library(monkeypatch, library):
  monkeypatch.setattr(allocator.ctypes.util, 'find_library', lambda _: library)


@pytest.mark.parametrize(
  'library, chosen',
  [
    ('libx.so.2', 'LD_PRELOAD=libx.so.2'),
    (None, 'GLIBC_TUNABLES=glibc.malloc.hugetlb=1'),
  ],
)
def test_starts_again_once(command, monkeypatch, library, chosen):
  find_library(monkeypatch, library)
  assert allocator.describe() == "the system's"
  for _ in range(2):
    allocator.take()
  arguments = [sys.executable, '-m', 'x', '--a=1']
  assert command == [(sys.executable, arguments)]
  assert allocator.describe() == chosen
  assert ('MALLOC_CONF' in allocator.os.environ) == bool(library)


def test_options_of_the_user_are_kept(command):
  allocator.os.environ['MALLOC_CONF'] = 'thp:never'
  allocator.take()
  assert command and allocator.os.environ['MALLOC_CONF'] == 'thp:never'


@pytest.mark.parametrize(
  'module, name, value',
  [
    (sys, 'platform', 'darwin'),
    (sys, 'executable', ''),
    (sys, 'argv', ['/there/x.py', '--a=2']),
    (sys, 'argv', ['x', '-m', 'y', '-m', 'x', '--a=1']),
    (allocator.os, 'environ', {'JAX_PLATFORMS': 'cuda,cpu'}),
    (allocator.os, 'environ', {'JAX_PLATFORMS': 'cpu', 'LD_PRELOAD': 'y.so'}),
    (allocator.os, 'environ', {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': ''}),
  ],
)
def test_else_nothing_happens(command, monkeypatch, module, name, value):
  monkeypatch.setattr(module, name, value)
  allocator.take()
  assert not command


def test_an_accelerator_is_known_by_its_plugin(command, monkeypatch):
  allocator.os.environ.clear()
  monkeypatch.setattr(
    allocator.importlib.util,
    'find_spec',
    lambda name: name if name == 'jax_plugins' else None,
  )
  allocator.take()
  assert not command
  monkeypatch.setattr(allocator.importlib.util, 'find_spec', lambda _: None)
  allocator.take()
  assert command


def test_nothing_is_a_choice_of_the_system(command):
  allocator.os.environ['GLIBC_TUNABLES'] = ''
  assert allocator.describe() == "the system's"


@pytest.mark.slow
def test_the_process_stays_the_same(tmp_path, monkeypatch):
  script = tmp_path / 'script.py'
  script.write_text(
    'import os, sys\n'
    'from protein_lm import allocator\n'
    'allocator.take()\n'
    'print(os.getpid(), sys.argv[1], allocator.describe(), sep="\\n")\n'
  )
  for name in ('LD_PRELOAD', 'GLIBC_TUNABLES'):
    monkeypatch.delenv(name, raising=False)
  process = subprocess.Popen(
    [sys.executable, script, 'a b'], stdout=subprocess.PIPE, text=True
  )
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  pid, argument, chosen = out.splitlines()
  assert (int(pid), argument) == (process.pid, 'a b')
  is_taken = chosen.startswith(('LD_PRELOAD=', 'GLIBC_TUNABLES='))
  assert is_taken == (sys.platform == 'linux')
