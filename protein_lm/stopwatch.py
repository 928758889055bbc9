"""Where the wall time of a run goes: training, and named parts beside it."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

PARTS = ('data', 'evaluation', 'checkpoint')


class Lap(NamedTuple):
  """Seconds of wall time since the last lap, and of them those in each part."""

  seconds: float
  data: float
  evaluation: float
  checkpoint: float

  @property
  def training(self) -> float:
    """Seconds that were neither evaluation nor checkpoint."""
    return self.seconds - self.evaluation - self.checkpoint

  def shares(self) -> dict[str, float]:
    """Share of each part in the lap; 'compute' is what no part took."""
    parts = {name: getattr(self, name) for name in PARTS}
    parts['compute'] = self.seconds - sum(parts.values())
    return {
      name: seconds / self.seconds if self.seconds else 0.0
      for name, seconds in parts.items()
    }


class Stopwatch:
  """Measures laps; stands still until `start`.

  Example:
    watch = Stopwatch()
    watch.start()
    with watch.timing('data'):
      batch = next(batches)
    watch.lap().data
  """

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    """Takes a function that returns seconds, from any origin."""
    self._clock, self.started, self.total = clock, None, Lap(0, 0, 0, 0)
    self._parts = dict.fromkeys(PARTS, 0.0)

  def start(self) -> None:
    """Begins the first lap; a second call changes nothing."""
    if self.started is None:
      self.started = self._since = self._clock()

  @property
  def seconds(self) -> float:
    """Seconds since `start`, 0 before it."""
    return 0.0 if self.started is None else self._clock() - self.started

  @contextlib.contextmanager
  def timing(self, part: str):
    """Counts the time inside for 'data', 'evaluation' or 'checkpoint'.

    Raises:
      ValueError: for another part.
    """
    if part not in PARTS:
      raise ValueError(f'{part!r} is no part of {", ".join(PARTS)}.')
    start = self._clock()
    try:
      yield
    finally:
      if self.started is not None and start >= self.started:
        self._parts[part] += self._clock() - start

  def lap(self) -> Lap:
    """The lap that ends now; the next one begins."""
    self.start()
    now = self._clock()
    lap = Lap(now - self._since, **self._parts)
    self._since, self._parts = now, dict.fromkeys(PARTS, 0.0)
    self.total = Lap(*map(sum, zip(self.total, lap, strict=True)))
    return lap
