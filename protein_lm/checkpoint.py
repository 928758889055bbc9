"""Verified checkpoints: orbax holds the arrays, a manifest proves the files.

    work_dir/trainer.lock              host and pid of the one trainer
    work_dir/checkpoints/<step>/       present only when complete
      state/                           arrays by path name, 'params/...' (orbax)
      config.gin                       operative gin config
      manifest.json                    step, metric, metadata; sha256 and size
                                       of every other file, and of itself

A checkpoint is written beside its place, synced to disk, read back, and
renamed: a kill or a full disk leaves the older checkpoints as they were. Names
in a checkpoint directory that start with a dot are unfinished work; `clean`
ends it. This module reads and chooses; `Saver` (checkpoint_saver.py) writes.

Of several processes, all call `choose`, `latest`, the functions that restore,
and those of Saver, on a file system that they share.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from absl import logging

from protein_lm import checkpoint_arrays as arrays_lib
from protein_lm import checkpoint_folder as folder
from protein_lm import checkpoint_processes as processes
from protein_lm.checkpoint_files import (
  CheckpointError,
  MismatchError,
  NotFoundError,
)
from protein_lm.checkpoint_folder import (
  clean,
  config,
  manifest,
  retain,
  steps,
  verify,
)
from protein_lm.checkpoint_saver import Saver
from protein_lm.work_dir_lock import lock

__all__ = [
  'CheckpointError',
  'MismatchError',
  'NotFoundError',
  'Saver',
  'choose',
  'clean',
  'config',
  'has_attention_stats',
  'latest',
  'lock',
  'manifest',
  'read_arrays',
  'restore',
  'restore_params',
  'retain',
  'save',
  'steps',
  'stored_shapes',
  'verify',
]


def save(
  work_dir: str | os.PathLike,
  step: int,
  state: Any,
  *,
  config: str,
  metadata: dict[str, Any],
  metric: float | None = None,
) -> str:
  """Writes a checkpoint and waits until it is complete; see Saver.save.

  Returns:
    The path of the checkpoint.

  Raises:
    CheckpointError: the disk is full or not writable. Nothing is left behind
      and the older checkpoints are untouched.
  """
  with Saver(work_dir, keep=None) as saver:
    saver.save(step, state, config=config, metadata=metadata, metric=metric)
  return str(folder.root_of(work_dir) / str(int(step)))


# Choosing.


def choose(work_dir: str | os.PathLike, step: int | str = 'latest') -> int:
  """Returns the step to use, whose checkpoint verifies; see `restore`."""
  if step not in ('latest', 'best'):
    if isinstance(step, str) and not step.isdecimal():
      raise ValueError(f"step must be 'latest', 'best' or int, got {step!r}.")
    step = int(step)
  return processes.from_first('choose', lambda: _choose(work_dir, step))


def latest(work_dir: str | os.PathLike) -> int | None:
  """Returns the newest step whose checkpoint verifies, None if there is none.

  Raises:
    CheckpointError: there are checkpoints, and none is good.
  """
  try:
    return choose(work_dir, 'latest')
  except NotFoundError:
    return None


def _choose(work_dir: str | os.PathLike, step: int | str) -> int:
  if isinstance(step, int):
    verify(work_dir, step)
    return step
  root = folder.root_of(work_dir)
  candidates = steps(work_dir)[::-1]
  if not candidates:
    raise NotFoundError(f'no checkpoint in {root}.')
  failures: list[str] = []
  if step == 'best':
    candidates, everything = folder.ranked(work_dir), candidates
    if not candidates:
      raise NotFoundError(
        f"no checkpoint in {root} has a metric, so none is 'best'; "
        f"use 'latest' or one of {everything}."
      )
  for candidate in candidates:
    try:
      verify(work_dir, candidate)
    except CheckpointError as error:
      failures.append(f'step {candidate}: {error}')
      continue
    for failure in failures:
      logging.warning(
        'Damaged checkpoint at %s. Using step %d instead.', failure, candidate
      )
    return candidate
  raise CheckpointError(f'no good checkpoint in {root}: {"; ".join(failures)}')


# Reading.


def restore(
  work_dir: str | os.PathLike, abstract_state: Any, step: int | str = 'latest'
) -> tuple[Any, dict[str, Any]]:
  """Reads a verified checkpoint.

  Args:
    work_dir: the run's directory.
    abstract_state: pytree of arrays or jax.ShapeDtypeStruct, with the shapes,
      dtypes and (where the struct has one) the sharding to restore to, whatever
      the devices and processes that saved it.
    step: 'latest', 'best' (lowest metric) or a step. The first two fall back
      to the next good checkpoint, with a warning that names both.

  Returns:
    The state, in the structure of abstract_state, and the manifest. Statistics
    of an attention (`attention_stats`) are zeros, with a warning, if the run
    had another attention until then.

  Raises:
    NotFoundError: there is no checkpoint.
    MismatchError: the shapes, dtypes or names differ.
    CheckpointError: there are checkpoints, and none is good.
  """
  step = choose(work_dir, step)
  state = arrays_lib.load(_directory(work_dir, step), abstract_state, '')
  return state, manifest(work_dir, step)


def restore_params(
  work_dir: str | os.PathLike,
  abstract_params: Any,
  step: int | str = 'latest',
  field: str = 'params',
) -> tuple[Any, dict[str, Any]]:
  """Like restore, for one field of the state, such as `params`."""
  step = choose(work_dir, step)
  directory = _directory(work_dir, step)
  params = arrays_lib.load(directory, abstract_params, f'{field}/')
  return params, manifest(work_dir, step)


def stored_shapes(
  work_dir: str | os.PathLike, step: int | str = 'latest'
) -> dict[str, Any]:
  """Returns what a verified checkpoint holds, without reading the arrays.

  Args:
    work_dir: the run's directory.
    step: see `restore`.

  Returns:
    Full path name, such as 'params/...', -> jax.ShapeDtypeStruct. Arrays of no
    elements are not stored.

  Raises:
    CheckpointError: see `restore`.
  """
  return arrays_lib.stored(_directory(work_dir, choose(work_dir, step)))


def read_arrays(
  work_dir: str | os.PathLike,
  step: int | str = 'latest',
  prefix: str = 'params/',
) -> dict[str, Any]:
  """Returns arrays of a verified checkpoint without knowing its model.

  Args:
    work_dir: the run's directory.
    step: see `restore`.
    prefix: of the path names: 'params/', 'ema_params/', '' for everything.

  Returns:
    Path name without the prefix -> np.ndarray; empty if there is none.

  Raises:
    CheckpointError: see `restore`; or they do not fit the memory.

  Example:
    arrays = checkpoint.read_arrays('runs/a')  # {'embed/embedding': ...}
  """
  directory = _directory(work_dir, choose(work_dir, step))
  return arrays_lib.read(directory, arrays_lib.stored(directory), prefix)


def has_attention_stats(work_dir: str | os.PathLike, step: int) -> bool:
  """Whether a checkpoint holds statistics of an attention."""
  names = arrays_lib.stored(_directory(work_dir, step))
  return any(name.startswith(arrays_lib.STATISTICS) for name in names)


def _directory(work_dir: str | os.PathLike, step: int) -> pathlib.Path:
  return (folder.root_of(work_dir) / str(int(step))).resolve()
