"""One trainer per work_dir: a lock that the kernel frees, after kill -9 too."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

from absl import logging

from protein_lm import checkpoint_processes as processes
from protein_lm.checkpoint_files import CheckpointError, reason

_held_locks: set[int] = set()


def _drop_locks_in_child() -> None:
  # A forked data worker that outlives a killed trainer must not hold its lock.
  for descriptor in _held_locks:
    os.close(descriptor)
  _held_locks.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


@contextlib.contextmanager
def lock(work_dir: str | os.PathLike) -> Iterator[None]:
  """Holds work_dir for this process; the kernel frees it, even after kill -9.

  Of the several processes of one run the first holds it for all.

  Raises:
    CheckpointError: another trainer holds it, or work_dir cannot be written.
  """
  if not processes.is_first():
    yield
    return
  path = pathlib.Path(work_dir) / 'trainer.lock'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A link in a folder from elsewhere would have its target emptied.
    how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(path, how, 0o644)
  except OSError as error:
    raise CheckpointError(
      f'cannot use work_dir {work_dir}: {reason(error)}'
    ) from error
  try:
    _lock_file(descriptor, work_dir)
  except BaseException:
    os.close(descriptor)
    raise
  _held_locks.add(descriptor)
  try:
    os.ftruncate(descriptor, 0)
    owner = f'host {socket.gethostname()}, pid {os.getpid()}\n'
    os.pwrite(descriptor, owner.encode(), 0)
    yield
  finally:
    if descriptor in _held_locks:  # not so in a forked child
      _held_locks.remove(descriptor)
      # Emptied, not deleted: another may have opened this very file.
      with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
      os.close(descriptor)


def _lock_file(descriptor: int, work_dir: str | os.PathLike) -> None:
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    owner = os.pread(descriptor, 200, 0).decode(errors='replace').strip()
    raise CheckpointError(
      f'another trainer ({owner or "starting"}) is using {work_dir}; stop it '
      'or choose another work_dir.'
    ) from None
  except OSError as error:
    if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
      raise
    logging.warning(
      'The file system of %s has no locks: make sure that no second trainer '
      'writes there.',
      work_dir,
    )
