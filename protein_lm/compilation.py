"""Compiled programs: kept from run to run, and counted.

A training step is compiled once; a run that compiles again in its middle has
batches of changing shapes or types, and loses seconds each time.
"""

import collections
import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import threading

import jax
from jax import monitoring

from protein_lm import cores

# Any value of these turns the cache off.
VARIABLE, _OFF = 'PROTEIN_LM_COMPILE_CACHE', ('off', '0', 'false', 'no')
MAX_BYTES = 5 * 10**9

# Sent by jax for each new program, whether it is compiled or read from the
# cache; fun_name says of which function.
_EVENT = '/jax/core/compile/backend_compile_duration'


def enable_cache() -> str | None:
  """Keeps compiled programs on disk; call it before anything is compiled.

  They are code that later runs execute. So they lie in a folder of mode 0700,
  `$XDG_CACHE_HOME/protein_lm/jax-...` (by default in ~/.cache), which must
  belong to this user, be no link, and not be writable by others: else there is
  a warning, and no cache. Each kind of CPU and number of cores has its own, as
  programs are made for both. Of more than MAX_BYTES the oldest are removed.

  A folder that JAX was already given (JAX_COMPILATION_CACHE_DIR) is used
  instead, unchecked; PROTEIN_LM_COMPILE_CACHE=off turns the cache off.

  Returns:
    The folder, or None without a cache.
  """
  if os.environ.get(VARIABLE, '').lower() in _OFF:
    jax.config.update('jax_enable_compilation_cache', False)
    return None
  if not jax.config.jax_enable_compilation_cache:
    return None
  path = jax.config.jax_compilation_cache_dir
  if not path:
    try:
      path = _default_path()
      _make_private(path.parent)
      _make_private(path)
      _remove_oldest(path, MAX_BYTES)
    except (OSError, RuntimeError) as error:  # the latter: no home folder
      print(
        f'warning: compiled programs are not kept: {error}; mend it, or set '
        f'{VARIABLE}=off.',
        flush=True,
      )
      return None
    jax.config.update('jax_compilation_cache_dir', str(path))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    # Small programs too: a run starts with dozens of them.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  if 'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES' not in os.environ:
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  return str(path)


def run_once_options() -> dict[str, int]:
  """`compiler_options` of jax.jit for a function that is called once.

  On CPU a lower level of optimization: initial weights were compiled in 1.6 s
  of processor time instead of 3.8, and came out bit-equal. ({} elsewhere.)
  """
  if jax.default_backend() != 'cpu':
    return {}
  return {'xla_backend_optimization_level': 1}


def _default_path() -> pathlib.Path:
  # The standard says to ignore a path that is not absolute.
  root = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
  if not root.is_absolute():
    root = pathlib.Path('~/.cache').expanduser()
  return root / 'protein_lm' / f'jax-{_machine()}'


def _machine() -> str:
  """A name of what a program for the CPU depends on."""
  parts = [platform.machine(), str(cores.available())]
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    parts += sorted(
      {line for line in lines if line.startswith(('flags', 'Features'))}
    )
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:12]


def _make_private(path: pathlib.Path) -> None:
  """Makes a folder that this user alone can write; OSError if it cannot be."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.suppress(FileExistsError):
    path.mkdir(mode=0o700)
  found = path.lstat()
  if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
    raise PermissionError(f'{path}: a folder is wanted, not a link or a file')
  if hasattr(os, 'getuid') and found.st_uid != os.getuid():
    raise PermissionError(f'{path}: the folder belongs to another user')
  if found.st_mode & 0o022:
    raise PermissionError(f'{path}: the folder is writable by others')
  if found.st_mode & 0o077:
    path.chmod(0o700)


def _remove_oldest(path: pathlib.Path, max_bytes: int) -> None:
  """Removes the oldest files beyond max_bytes, and those that are empty."""
  files = []
  for entry in os.scandir(path):
    with contextlib.suppress(FileNotFoundError):  # another run removed it
      found = entry.stat(follow_symlinks=False)
      files.append((found.st_mtime, entry.path, found.st_size))
  total = 0
  for _, name, size in sorted(files, reverse=True):
    total += size
    if total > max_bytes or not size:  # empty: a run died as it wrote
      pathlib.Path(name).unlink(missing_ok=True)


class Counter:
  """Counts new programs while it is entered, in all threads.

  Example:
    with Counter() as counter:
      train_step(...)
      counter.mark_warm()
      with counter.expected():  # the first evaluation compiles too
        score_step(...)
      train_step(...)
      assert not counter.recompilations

  Attributes:
    count: programs so far, compiled or read from the cache.
    recompilations: those since mark_warm that were not expected.
    seconds: that all of them took.
  """

  def __init__(self):
    self.count, self.recompilations, self.seconds = 0, 0, 0.0
    self._is_warm, self._seen = False, set()
    self._unreported = collections.Counter()
    self._expecting = threading.local()
    self._lock = threading.Lock()

  def __enter__(self):
    # The very object: unregistering asks for it.
    self._listener = self._on_event
    monitoring.register_event_duration_secs_listener(self._listener)
    return self

  def __exit__(self, *exception):
    # Else monitoring.clear_event_listeners was called, as tests do.
    with contextlib.suppress(AssertionError, ValueError):
      monitoring.unregister_event_duration_listener(self._listener)

  def mark_warm(self) -> None:
    """From here on a new program is a recompilation."""
    with self._lock:
      self._is_warm = True

  @contextlib.contextmanager
  def expected(self):
    """New programs of this thread inside are no recompilations."""
    self._expecting.depth = getattr(self._expecting, 'depth', 0) + 1
    try:
      yield
    finally:
      self._expecting.depth -= 1

  def first(self, key):
    """`expected()` the first time that a key is given, else nothing."""
    if key in self._seen:
      return contextlib.nullcontext()
    self._seen.add(key)
    return self.expected()

  def take_warning(self) -> str:
    """What was recompiled since the last call, in one line; '' if nothing."""
    with self._lock:
      unreported, self._unreported = self._unreported, collections.Counter()
    if not unreported:
      return ''
    names = ', '.join(
      name if times == 1 else f'{name} ({times} times)'
      for name, times in unreported.items()
    )
    return (
      f'warning: compiled after the warm-up: {names}; shapes or types of its '
      'arguments change, which costs the time of a compilation each time.'
    )

  def _on_event(self, event, duration, *, fun_name='a program', **_):
    if event != _EVENT:
      return
    is_expected = getattr(self._expecting, 'depth', 0) > 0
    with self._lock:
      self.count += 1
      self.seconds += duration
      if self._is_warm and not is_expected:
        self.recompilations += 1
        self._unreported[fun_name] += 1
