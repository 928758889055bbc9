"""`experiment.max_minutes`: as many steps as end, evaluated and saved, in time.

The speed is measured on a state that is thrown away, then the number of steps,
and so the schedule, is fixed and kept with the checkpoints: a run that is
stopped goes on to the same number. What is measured may change; a run that
would pass the limit stops before it, and its schedule is then cut.
"""

import functools
import os
import pathlib
import time
from collections.abc import Callable

from protein_lm import timings as timings_lib
from protein_lm.timings import Timings

# What is planned for, of the limit: the rest is for a machine that slows down.
_PLANNED_SHARE = 0.96
# What is spent on measuring, of the limit, and at most, in seconds.
_MEASURED_SHARE, _MAX_MEASURED = 0.03, 20.0
_IMPORTED = time.monotonic()


def process_age() -> float:
  """Seconds since this process was started; since its import if not Linux."""
  return time.monotonic() - _process_start()


@functools.cache
def _process_start():
  """When the process was started, by time.monotonic."""
  try:
    # Fields after the name, which may hold blanks; the 22nd is the start.
    stat = pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2]
    ticks = int(stat.split()[19])
    uptime = float(pathlib.Path('/proc/uptime').read_text().split()[0])
  except (OSError, ValueError, IndexError):
    return _IMPORTED
  age = uptime - ticks / os.sysconf('SC_CLK_TCK')
  return time.monotonic() - max(age, 0.0)


class TimeBudget:
  """The time that a run may take, counted from the start of its process.

  Example:
    budget = TimeBudget(max_minutes=10)
    timings = timings.measure(..., seconds=budget.measuring_seconds)
    num_train_steps = budget.num_steps(timings, 500, 500)
    ...
    while not budget.is_over(timings, progress.step_seconds):
      step()
  """

  def __init__(
    self,
    max_minutes: float | None,
    age: Callable[[], float] = process_age,
  ):
    """Takes the limit.

    Args:
      max_minutes: None for no limit.
      age: seconds since the process was started.

    Raises:
      ValueError: a limit that is not positive.
    """
    if max_minutes is not None and not max_minutes > 0:
      raise ValueError(
        f'experiment.max_minutes must be positive, got {max_minutes}.'
      )
    self._limit = None if max_minutes is None else 60.0 * max_minutes
    self._age = age

  @property
  def measuring_seconds(self) -> float:
    """Seconds to spend on timed steps."""
    return min(_MEASURED_SHARE * self._limit, _MAX_MEASURED)

  def num_steps(
    self, timings: Timings, eval_every: int, checkpoint_every: int
  ) -> int:
    """Steps that end in time, with their evaluations and checkpoints.

    Once more is set aside the compilation: another number of steps is another
    schedule, and so another program.

    Args:
      timings: as measured just now.
      eval_every: steps between two evaluations.
      checkpoint_every: steps between two checkpoints.

    Raises:
      ValueError: not even one step ends in time.
    """
    left = _PLANNED_SHARE * self._limit - self._age() - timings.compilation
    found = timings_lib.steps_within(
      left, timings, eval_every, checkpoint_every
    )
    if not found:
      one = timings_lib.seconds_of(1, timings, eval_every, checkpoint_every)
      needed = (self._limit * _PLANNED_SHARE - left + one) / _PLANNED_SHARE
      raise ValueError(
        f'experiment.max_minutes = {self._limit / 60:g} ends before the first '
        f'step would; it takes at least {needed / 60:.1f} minutes.'
      )
    return found

  def is_over(
    self, timings: Timings, step_seconds: float | None = None
  ) -> bool:
    """Whether one step more would leave no time to evaluate and save.

    Args:
      timings: as measured.
      step_seconds: what a step takes of late, if known: where it is slower
        than measured, evaluating and saving will be too.
    """
    if self._limit is None:
      return False
    ending = timings.step + timings.evaluation + timings.checkpoint
    if step_seconds is not None:
      ending *= max(step_seconds / timings.step, 1.0)
    return self._age() + ending > self._limit
