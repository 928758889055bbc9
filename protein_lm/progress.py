"""How far a run is: sums one step late, records of training metrics."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from protein_lm import metrics
from protein_lm.early_stop import Best
from protein_lm.progress_bar import ProgressBar
from protein_lm.stopwatch import Stopwatch

# A run stops after so many skipped steps in a row.
MAX_SKIPPED_STEPS = 10

# Counted over the whole run: why a step changed nothing. A step may say less.
_COUNTS = ('skipped_steps', 'spiked_steps', 'nonfinite_steps')
_NORMS = ('grad_norm', 'param_norm', 'update_norm')


class Progress:
  """Adds up the sums of the steps since the last record.

  The sums of a step are fetched when the next one is under way, so that the
  device never waits for the host.
  """

  def __init__(
    self,
    step: int,
    num_steps: int,
    objective: str,
    saved: dict[str, Any],
    *,
    flops_of: Callable[[float, float], float] | None = None,
    peak_flops: float | None = None,
    recompilations: Callable[[], int] | None = None,
    is_primary: bool = True,
    clock: Callable[[], float] = time.perf_counter,
  ):
    """Starts at a step.

    Args:
      step: steps already done.
      num_steps: steps of the whole run.
      objective: 'causal' or 'masked'.
      saved: what `saved()` gave at that step; empty from scratch.
      flops_of: operations of steps with so many unpadded tokens and such a sum
        of positions (flops.of_step); None leaves `mfu` out.
      peak_flops: operations a second of all devices together.
      recompilations: how many programs were compiled after warm-up, so far;
        None leaves the metric out.
      is_primary: False shows nothing; of several processes one does.
      clock: seconds from any origin.
    """
    self.num_tokens = saved.get('num_tokens', 0.0)
    self.counts = {name: saved.get(name, 0.0) for name in _COUNTS}
    self._window = dict(saved.get('window', {}))
    self._skipped_in_a_row = saved.get('skipped_in_a_row', 0)
    self._objective = objective
    self._flops_of, self._peak_flops = flops_of, peak_flops
    self._recompilations = recompilations
    self._pending = None
    self._first_step = self._step = step
    self._num_steps = num_steps
    self._lap_sums, self._total_sums = {}, {}
    self.step_seconds = None  # of training, in the last record
    self._watch = Stopwatch(clock)
    self._bar = ProgressBar(step, num_steps, is_primary)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._bar.close()

  @property
  def skipped_steps(self) -> float:
    """Steps of the run that changed nothing."""
    return self.counts['skipped_steps']

  @property
  def seconds_left(self) -> float | None:
    """By what the steps took so far, evaluation and checkpoints included."""
    done = self._step - self._first_step
    if not done:
      return None
    return self._watch.seconds * (self._num_steps - self._step) / done

  def add(self, sums) -> None:
    """Takes the sums of the step just started, adds up the one before.

    Raises:
      FloatingPointError: after MAX_SKIPPED_STEPS skipped steps in a row.
    """
    self._fetch()
    self._watch.start()  # the first step compiles; it is not timed
    self._pending = sums
    self._step += 1
    self._bar.advance()

  def timing(self, part: str):
    """Counts the time inside for 'data', 'evaluation' or 'checkpoint'.

    The last two wait for the device anyway; what it still owes to the step is
    waited for first, and counts as training.
    """
    if part != 'data':
      self._fetch()
    return self._watch.timing(part)

  def take_record(self) -> dict[str, float]:
    """The `train/` metrics of the steps since the last record.

    Rates and mfu are over the time of training, without evaluation and
    checkpoints; data_wait, compute, evaluation and checkpoint `_per_sec` are
    shares of all the time.
    """
    self._fetch()
    window, self._window = self._window, {}
    num_steps = max(window.pop('num_steps') - window['skipped_steps'], 1)
    record = metrics.ratios(window, self._objective)
    for name in _NORMS:
      if name in window:
        record[name] = window[name] / num_steps
    record |= self.counts
    record |= self._rates()
    record |= memory_bytes()
    if self._recompilations is not None:
      record['recompilations'] = self._recompilations()
    return {f'train/{name}': value for name, value in record.items()}

  def learning_rate(self, learning_rate_fn) -> float:
    """The rate of the last step: skipped steps do not move the schedule."""
    return float(learning_rate_fn(self._step - 1 - self.skipped_steps))

  def show(self, record: dict[str, float]) -> None:
    """Puts a record on the bar, or on a line where there is no terminal."""
    self._bar.show(record, self.seconds_left or 0.0)

  def saved(self) -> dict[str, Any]:
    """What a checkpoint needs to go on with the same records."""
    self._fetch()
    return {
      'num_tokens': self.num_tokens,
      **self.counts,
      'skipped_in_a_row': self._skipped_in_a_row,
      'window': dict(self._window),
    }

  def summary(
    self,
    how: str,
    work_dir: str,
    steps_per_epoch: float,
    best: Best,
  ) -> str:
    """The one line that ends a run.

    Args:
      how: it ended, such as 'done'.
      work_dir: where it is saved.
      steps_per_epoch: of the data.
      best: what evaluations showed.
    """
    self._fetch()
    self._watch.lap()
    parts = [
      f'{how}: step {self._step} of {self._num_steps} saved in {work_dir}',
      f'{self._step - self._first_step} steps in {self._watch.seconds:,.0f} s',
      f'{self.num_tokens:,.0f} tokens seen in all, '
      f'{self._step / steps_per_epoch:.2f} epochs',
    ]
    seconds = self._watch.total.training
    if seconds and self._total_sums:
      speed = f'{self._total_sums["num_tokens"] / seconds:,.0f} tokens/s'
      mfu = self._mfu(self._total_sums, seconds)
      parts.append(speed if mfu is None else f'{speed}, mfu {mfu:.1%}')
    if best.loss is not None:
      found = f'best validation loss {best.loss:.4f} at step {best.step}'
      parts.append(found)
    parts.append(f'{self.skipped_steps:.0f} steps skipped')
    if self._recompilations is not None:
      parts.append(f'{self._recompilations()} recompilations')
    return '; '.join(parts) + '.'

  def _rates(self):
    """Of the lap that ends here; nothing in it means nothing to tell."""
    lap = self._watch.lap()
    sums, self._lap_sums = self._lap_sums, {}
    if not sums or lap.training <= 0:
      return {}
    self.step_seconds = lap.training / sums['num_steps']
    shares = lap.shares()
    rates = {
      'tokens_per_sec': sums['num_tokens'] / lap.training,
      'steps_per_sec': sums['num_steps'] / lap.training,
      'data_wait_per_sec': shares.pop('data'),
      **{f'{name}_per_sec': share for name, share in shares.items()},
    }
    mfu = self._mfu(sums, lap.training)
    return rates if mfu is None else rates | {'mfu': mfu}

  def _mfu(self, sums, seconds):
    if self._flops_of is None:
      return None
    done = self._flops_of(sums['num_unpadded'], sums['sum_positions'])
    return done / (seconds * self._peak_flops)

  def _fetch(self):
    if self._pending is None:
      return
    sums = {name: float(value) for name, value in self._pending.items()}
    self._pending = None
    for total in (self._window, self._lap_sums, self._total_sums):
      for name, value in {**sums, 'num_steps': 1.0}.items():
        total[name] = total.get(name, 0.0) + value
    self.num_tokens += sums['num_tokens']
    for name in _COUNTS:
      self.counts[name] += sums.get(name, 0.0)
    if not sums['skipped_steps']:
      self._skipped_in_a_row = 0
    elif sums.get('nonfinite_steps', 1) or sums.get('spiked_steps'):
      self._skipped_in_a_row += 1  # not where no token counts
    if self._skipped_in_a_row >= MAX_SKIPPED_STEPS:
      raise FloatingPointError(
        f'{self._skipped_in_a_row} steps in a row before step {self._step} '
        'were skipped: the loss or gradient was not finite, or a spike; lower '
        'make_optimizer.learning_rate or set make_optimizer.grad_clip_norm. '
        'The last good checkpoint is kept.'
      )


def memory_bytes() -> dict[str, float]:
  """Most memory in use so far, in bytes.

  `memory_bytes` is that of this process on the host, without its data workers;
  `device_memory_bytes`, where devices tell, that of the fullest device here.
  """
  unit = 1 if sys.platform == 'darwin' else 1024  # getrusage(2)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  result = {'memory_bytes': float(peak)}
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  device_peaks = [s['peak_bytes_in_use'] for s in stats if s]
  if device_peaks:
    result['device_memory_bytes'] = float(max(device_peaks))
  return result
