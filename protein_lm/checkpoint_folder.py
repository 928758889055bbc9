"""Which checkpoints a folder has, what proves them, which ones are deleted.

    work_dir/checkpoints/<step>/       present only when complete
    work_dir/checkpoints/.writing-<step>    being written
    work_dir/checkpoints/.replaced-<step>   a newer save of the step came
    work_dir/checkpoints/.deleting-<step>   being deleted

All of it is plain file work of one process, the first of several.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import time
from typing import Any

from absl import logging

from protein_lm import checkpoint_files as files
from protein_lm import checkpoint_processes as processes

_WRITING, _REPLACED, _DELETING = '.writing-', '.replaced-', '.deleting-'


def root_of(work_dir: str | os.PathLike) -> pathlib.Path:
  """Returns the directory that holds a run's checkpoints."""
  return pathlib.Path(work_dir) / 'checkpoints'


# Reading.


def steps(work_dir: str | os.PathLike) -> list[int]:
  """Returns the steps of the complete checkpoints, ascending."""
  root = root_of(work_dir)
  if not root.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in root.iterdir()
    if path.name.isdecimal()
    and path.name == str(int(path.name))
    and (path / files.MANIFEST).is_file()
  )


def manifest(work_dir: str | os.PathLike, step: int) -> dict[str, Any]:
  """Returns a checkpoint's manifest, checked against its own hash.

  Raises:
    NotFoundError: there is no such checkpoint.
    CheckpointError: the manifest is damaged or names files outside.
  """
  directory = root_of(work_dir) / str(int(step))
  if not (directory / files.MANIFEST).is_file():
    raise files.NotFoundError(
      f'no checkpoint of step {step} in {directory.parent}; there are '
      f'{steps(work_dir) or "none"}.'
    )
  return files.read_manifest(directory, int(step))


def config(work_dir: str | os.PathLike, step: int) -> str:
  """Returns the gin config saved with a checkpoint, checked by its hash."""
  entry = manifest(work_dir, step)['files'][files.CONFIG]
  path = root_of(work_dir) / str(int(step)) / files.CONFIG
  files.check_file(path, entry)
  return path.read_text(encoding='utf-8')


def verify(work_dir: str | os.PathLike, step: int) -> None:
  """Compares every file of a checkpoint with its manifest.

  Raises:
    NotFoundError: there is no such checkpoint.
    CheckpointError: a file is missing or differs; the message names it.
  """
  directory = root_of(work_dir) / str(int(step))
  files.check_files(directory, manifest(work_dir, step))


def ranked(work_dir: str | os.PathLike) -> list[int]:
  """Returns the steps that have a metric, best first, newer before older."""
  metrics = {}
  for step in steps(work_dir)[::-1]:
    with contextlib.suppress(files.CheckpointError):
      metrics[step] = manifest(work_dir, step)['metric']
  metrics = {k: v for k, v in metrics.items() if v is not None}
  return sorted(metrics, key=metrics.__getitem__)


# Writing: `begin`, then the caller fills the directory, then `publish`.


def begin(work_dir: str | os.PathLike, step: int) -> pathlib.Path:
  """Returns an empty directory to write a checkpoint in."""
  root = root_of(work_dir)
  if not root.is_dir():
    root.mkdir(parents=True)
    files.sync_directory(root.parent)
  # A failed save's last writes may have come after `undo`.
  for leftover in root.glob(f'{_WRITING}*'):
    _remove(leftover)
  writing = writing_of(work_dir, step)
  writing.mkdir()
  return writing


def writing_of(work_dir: str | os.PathLike, step: int) -> pathlib.Path:
  return root_of(work_dir) / f'{_WRITING}{step}'


def publish(
  work_dir: str | os.PathLike,
  step: int,
  config: str,
  metadata: dict[str, Any],
  metric: float | None,
) -> None:
  """Syncs, hashes and reads back what was written, then gives it its name.

  A checkpoint of the same step is replaced.

  Raises:
    CheckpointError: the storage gave back something else.
    OSError: the disk is full.
  """
  root, writing = root_of(work_dir), writing_of(work_dir, step)
  replaced, final = root / f'{_REPLACED}{step}', root / str(step)
  (writing / files.CONFIG).write_text(config, encoding='utf-8')
  files.write_manifest(writing, step, metric, metadata)
  files.check_files(writing, files.read_manifest(writing, step))
  if final.exists():
    _remove(replaced)
    final.rename(replaced)
  writing.rename(final)
  files.sync_directory(root)
  _remove(replaced)


def undo(work_dir: str | os.PathLike, step: int) -> None:
  """Takes back an unfinished save; must not hide the error that led here."""
  root, writing = root_of(work_dir), writing_of(work_dir, step)
  for seconds in (0.1, 0.5, 1.0, 0.0):
    try:
      _remove(writing)
      break
    except OSError as error:
      if error.errno != errno.ENOTEMPTY:  # else threads still write there
        break
      time.sleep(seconds)
  with contextlib.suppress(OSError):
    replaced = root / f'{_REPLACED}{step}'
    if replaced.exists() and not (root / str(step)).exists():
      replaced.rename(root / str(step))


def clean(work_dir: str | os.PathLike) -> None:
  """Removes what a killed save or deletion left; call it under `lock`.

  Of several processes the first one does it.
  """
  if not processes.is_first():
    return
  root = root_of(work_dir)
  for path in sorted(root.glob('.*-*')):
    kind, _, step = path.name.partition('-')
    if f'{kind}-' not in (_WRITING, _REPLACED, _DELETING):
      continue
    # Killed between the two renames of a replacement: the old one comes back.
    if f'{kind}-' == _REPLACED and not (root / step).exists():
      path.rename(root / step)
    else:
      _remove(path)


def retain(
  work_dir: str | os.PathLike,
  keep: int,
  best: bool = True,
  *,
  verified: int | None = None,
) -> list[int]:
  """Deletes all but the newest `keep` checkpoints and the best one.

  Nothing is deleted unless the newest checkpoint verifies.

  Args:
    work_dir: the run's directory.
    keep: how many of the newest to keep, >= 1.
    best: keep the one of lowest metric too.
    verified: a step just verified, not to be hashed again.

  Returns:
    The deleted steps.
  """
  check_keep(keep)
  present = steps(work_dir)
  old = present[:-keep]
  if best:
    best_steps = ranked(work_dir)[:1]
    old = [step for step in old if step not in best_steps]
  if not old:
    return []
  try:
    if present[-1] != verified:
      verify(work_dir, present[-1])
  except files.CheckpointError as error:
    logging.warning('Keeping every old checkpoint: %s', error)
    return []
  root = root_of(work_dir)
  for step in old:
    # The rename makes it vanish in one stroke; a kill leaves no half of it.
    deleting = root / f'{_DELETING}{step}'
    _remove(deleting)
    (root / str(step)).rename(deleting)
    _remove(deleting)
  return old


def check_keep(keep: int) -> None:
  if keep < 1:
    raise ValueError(f'keep must be at least 1, got {keep}.')


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
