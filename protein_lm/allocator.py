"""What gives a process its memory: on a CPU, what keeps it between steps.

XLA takes the working memory of every step from the system and gives it back,
page by page. In large pages that are kept, a step of configs/quickstart.gin
takes three quarters of the time (scripts/BENCHMARKS.md, section 8).
"""

import ctypes.util
import importlib.util
import os
import sys

# Where one of these is set, if to nothing, the choice has been made.
_VARIABLES = 'LD_PRELOAD', 'GLIBC_TUNABLES'
# Large arrays as any others: free pages go back to the system after 10 s.
_JEMALLOC_OPTIONS = 'thp:always,oversize_threshold:0'
_LARGE_PAGES = 'glibc.malloc.hugetlb=1'


def take() -> None:
  """Starts this process again, once, with the allocator that suits a CPU.

  That is jemalloc where it is installed, else the system's with large pages;
  what allocates is settled when a process begins. The process keeps its number
  and its arguments. Call it from a command, before anything else is done.

  Nothing happens but on Linux, nor where JAX has an accelerator, where a user
  has set LD_PRELOAD or GLIBC_TUNABLES, or where what runs is not what the
  process was started for, as in a test.
  """
  arguments = sys.argv[1:]
  is_command = sys.orig_argv[len(sys.orig_argv) - len(arguments) :] == arguments
  if sys.platform != 'linux' or not sys.executable or not is_command:
    return
  if any(name in os.environ for name in _VARIABLES) or _is_accelerated():
    return
  if jemalloc := ctypes.util.find_library('jemalloc'):
    os.environ['LD_PRELOAD'] = jemalloc
    os.environ.setdefault('MALLOC_CONF', _JEMALLOC_OPTIONS)
  else:
    os.environ['GLIBC_TUNABLES'] = _LARGE_PAGES
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def describe() -> str:
  """What was chosen, for a reader: 'LD_PRELOAD=libjemalloc.so.2'."""
  named = [
    f'{name}={os.environ[name]}' for name in _VARIABLES if os.environ.get(name)
  ]
  return ', '.join(named) or "the system's"


def _is_accelerated() -> bool:
  """Whether JAX, which is not loaded yet, computes elsewhere than on a CPU."""
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms.split(',')[0] != 'cpu'
  return any(map(importlib.util.find_spec, ('jax_plugins', 'libtpu')))
