"""Saves while training goes on: the run waits only for the copy of its state.

`Saver.save` copies the state off the devices and returns. A thread writes,
syncs, hashes, reads back, renames, and then deletes old checkpoints. Of several
processes each writes the parts of the arrays that it holds; the first one does
the rest, on the file system that all of them see.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from typing import Any

from absl import logging

from protein_lm import checkpoint_arrays as arrays_lib
from protein_lm import checkpoint_files as files
from protein_lm import checkpoint_folder as folder
from protein_lm import checkpoint_processes as processes

_SLOW_SECONDS = 2.0  # a longer wait for the save before is worth a warning


class Saver:
  """Writes the checkpoints of a run in the background, one at a time.

  Used in a `with`, whose end waits for the last save. An error that a save
  meets is raised once, by the next `check`, `save` or `wait`; nothing of that
  save is left behind, the older checkpoints are untouched, and the saver can
  go on. An error of the body is never hidden by one of a save.

  Attributes:
    blocked_seconds: how long the caller has waited for saves, in all.

  Example:
    with checkpoint.Saver(work_dir, keep=2) as saver:
      for step in range(1, 1001):
        state, sums = train_step(state, next(batches), rng)
        saver.check()
        if step % 100 == 0:
          saver.save(step, state, config=config.operative(), metadata={})
  """

  def __init__(
    self, work_dir: str | os.PathLike, keep: int | None, best: bool = True
  ):
    """Prepares nothing on disk.

    Args:
      work_dir: the run's directory; made if absent.
      keep: how many of the newest checkpoints to keep, >= 1; None for all.
      best: keep the one of lowest metric too.
    """
    if keep is not None:
      folder.check_keep(keep)
    self.blocked_seconds = 0.0
    self._work_dir, self._keep, self._best = work_dir, keep, best
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    self._saving: int | None = None

  def __enter__(self) -> Saver:
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if error is None:
      self.wait()
      return
    try:
      self.wait()
    except Exception as saves:  # the body's own error is what is raised
      logging.warning('%s', saves)

  @property
  def latest(self) -> int | None:
    """The newest step that is completely saved."""
    return max(folder.steps(self._work_dir), default=None)

  @property
  def is_saving(self) -> bool:
    """Whether a save is under way."""
    return self._thread is not None and self._thread.is_alive()

  def save(
    self,
    step: int,
    state: Any,
    *,
    config: str,
    metadata: dict[str, Any],
    metric: float | None = None,
  ) -> None:
    """Copies a state and begins to write it; it exists completely or not.

    Waits first for a save that is still under way. Every process calls it.

    Args:
      step: training steps taken, >= 0. A checkpoint of the same step is
        replaced.
      state: pytree of arrays, which may be donated on return. PRNG keys go in
        as their key_data, or not at all.
      config: the operative gin config, kept beside the weights.
      metadata: JSON values, such as the data's fingerprint and versions.
      metric: validation loss in nats per token, lower is better; None if
        unknown.

    Raises:
      CheckpointError: the save before failed, or the directory cannot be made.
      TypeError: the state or metadata holds what cannot be saved.
    """
    step = int(step)
    if step < 0:
      raise ValueError(f'step must be at least 0, got {step}.')
    arrays = arrays_lib.by_name(state)
    json.dumps(metadata, allow_nan=False)
    if metric is not None and not math.isfinite(metric):
      metric = None  # a NaN is never the best
    start = time.perf_counter()
    try:
      self._wait(step)
      self.check()
      self._begin(step, arrays, config, metadata, metric)
    finally:
      self.blocked_seconds += time.perf_counter() - start

  def check(self) -> None:
    """Raises, once, what the save in the background met; costs nothing."""
    error, self._error = self._error, None
    if error is not None:
      raise error

  def wait(self) -> None:
    """Waits until the save under way is complete, then checks."""
    start = time.perf_counter()
    try:
      self._wait(None)
    finally:
      self.blocked_seconds += time.perf_counter() - start
    self.check()

  def _wait(self, next_step: int | None) -> None:
    if self._thread is None:
      return
    start = time.perf_counter()
    self._thread.join()
    self._thread = None
    waited = time.perf_counter() - start
    if next_step is not None and waited > _SLOW_SECONDS:
      logging.warning(
        'Training waited %.1f s at step %d for the checkpoint of step %d: save '
        'less often, or on a faster disk.',
        waited,
        next_step,
        self._saving,
      )

  def _begin(self, step, arrays, *facts) -> None:
    with contextlib.ExitStack() as stack:
      stack.enter_context(arrays_lib.quiet_log())
      try:
        writing = folder.writing_of(self._work_dir, step)
        if processes.is_first():
          # The others wait for it at the start of start_writing.
          folder.begin(self._work_dir, step)
        checkpointer = arrays_lib.start_writing(writing, arrays)
      except BaseException as error:
        failed = self._failed(step, error)
        if failed is error:
          raise
        raise failed from error
      self._saving = step
      self._thread = threading.Thread(
        target=self._finish,
        args=(stack.pop_all(), checkpointer, step, *facts),
        name=f'checkpoint {step}',
      )
      self._thread.start()

  def _finish(self, stack, checkpointer, step, *facts) -> None:
    """Runs in the thread."""
    with stack:
      try:
        arrays_lib.finish_writing(checkpointer)
        processes.from_first('save', lambda: self._publish(step, *facts))
      except BaseException as error:
        self._error = self._failed(step, error)

  def _publish(self, step, *facts) -> None:
    folder.publish(self._work_dir, step, *facts)
    if self._keep is None:
      return
    try:
      folder.retain(self._work_dir, self._keep, self._best, verified=step)
    except OSError as error:  # the new one is safe; the next save tries again
      logging.warning('Cannot delete an old checkpoint: %s', error)

  def _failed(self, step: int, error: BaseException) -> BaseException:
    """Leaves nothing of a save behind; returns the error to raise."""
    if processes.is_first():
      folder.undo(self._work_dir, step)
    # Orbax reports a full disk as ValueError, OSError or XlaRuntimeError.
    if not isinstance(error, Exception) or isinstance(error, TypeError):
      return error
    wrapped = files.CheckpointError(
      f'cannot save step {step} in {folder.root_of(self._work_dir)}: '
      f'{files.reason(error)}'
    )
    wrapped.__cause__ = error
    return wrapped
