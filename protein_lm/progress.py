"""How far a run is: sums one step late, a bar, records of training metrics."""

import contextlib
import sys
import time

from protein_lm import metrics

# A run stops after so many steps in a row without a finite gradient.
MAX_SKIPPED_STEPS = 10


class Progress:
  """Adds up the sums of the steps since the last record.

  The sums of a step are fetched when the next one is under way, so that the
  device never waits for the host.
  """

  def __init__(self, step, num_steps, objective, saved):
    """Starts at a step.

    Args:
      step: steps already done.
      num_steps: steps of the whole run.
      objective: 'causal' or 'masked'.
      saved: what `saved()` gave at that step; empty from scratch.
    """
    from tqdm import tqdm

    self.num_tokens = saved.get('num_tokens', 0.0)
    self.skipped_steps = saved.get('skipped_steps', 0.0)
    self._window = dict(saved.get('window', {}))
    self._skipped_in_a_row = saved.get('skipped_in_a_row', 0)
    self._objective = objective
    self._pending = None
    self._first_step = self._step = step
    self._num_steps = num_steps
    self._timed_tokens, self._since = 0.0, None
    self._waited = 0.0
    self._bar = tqdm(
      total=num_steps,
      initial=step,
      unit='step',
      file=sys.stderr,
      disable=not sys.stderr.isatty(),
      dynamic_ncols=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._bar.close()

  def add(self, sums):
    """Takes the sums of the step just started, adds up the one before.

    Raises:
      FloatingPointError: after MAX_SKIPPED_STEPS steps in a row without a
        finite gradient.
    """
    self._fetch()
    if self._since is None:  # the first step compiles; it is not timed
      self._started = time.perf_counter()
      self.restart_clock()
    self._pending = sums
    self._step += 1
    self._bar.update()

  def take_record(self):
    """The `train/` metrics of the steps since the last record."""
    self._fetch()
    window, self._window = self._window, {}
    num_steps = max(window.pop('num_steps') - window['skipped_steps'], 1)
    record = metrics.ratios(window, self._objective)
    record['grad_norm'] = window['grad_norm'] / num_steps
    record['skipped_steps'] = self.skipped_steps
    now = time.perf_counter()
    if self._timed_tokens:
      record['tokens_per_sec'] = self._timed_tokens / (now - self._since)
      record['data_wait_per_sec'] = self._waited / (now - self._since)
    self._restart_clock(now)
    return {f'train/{name}': value for name, value in record.items()}

  def learning_rate(self, learning_rate_fn):
    """The rate of the last step: skipped steps do not move the schedule."""
    return float(learning_rate_fn(self._step - 1 - self.skipped_steps))

  def restart_clock(self):
    """Leaves out of tokens_per_sec what was not training."""
    self._restart_clock(time.perf_counter())

  def _restart_clock(self, now):
    self._timed_tokens, self._waited, self._since = 0.0, 0.0, now

  @contextlib.contextmanager
  def waiting_for_data(self):
    """Counts the time inside for data_wait_per_sec, its share of all time."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  def show(self, record):
    """Puts a record on the bar, or on a line where there is no terminal."""
    parts = []
    for name, value in record.items():
      split, metric = name.split('/')
      if metric in ('loss', 'masked_residue_perplexity', 'residue_perplexity'):
        parts.append(f'{split} {metric.replace("_", " ")} {value:.3f}')
      elif metric == 'tokens_per_sec':
        parts.append(f'{value:,.0f} tokens/s')
    if self._bar.disable:
      parts.insert(0, f'step {self._step}/{self._num_steps}')
      print(', '.join([*parts, f'{self._time_left()} left']), flush=True)
    elif any(name.startswith('validation/') for name in record):
      self._bar.write(f'step {self._step}: ' + ', '.join(parts))
    else:
      self._bar.set_postfix_str(', '.join(parts))

  def saved(self):
    """What a checkpoint needs to go on with the same records."""
    self._fetch()
    return {
      'num_tokens': self.num_tokens,
      'skipped_steps': self.skipped_steps,
      'skipped_in_a_row': self._skipped_in_a_row,
      'window': dict(self._window),
    }

  def _time_left(self):
    seconds = time.perf_counter() - self._started
    seconds *= (self._num_steps - self._step) / (self._step - self._first_step)
    return self._bar.format_interval(seconds)

  def _fetch(self):
    if self._pending is None:
      return
    sums = {name: float(value) for name, value in self._pending.items()}
    self._pending = None
    for name, value in {**sums, 'num_steps': 1.0}.items():
      self._window[name] = self._window.get(name, 0.0) + value
    self.num_tokens += sums['num_tokens']
    self._timed_tokens += sums['num_tokens']
    self.skipped_steps += sums['skipped_steps']
    self._skipped_in_a_row += 1
    if not sums['skipped_steps']:
      self._skipped_in_a_row = 0
    if self._skipped_in_a_row >= MAX_SKIPPED_STEPS:
      raise FloatingPointError(
        f'{self._skipped_in_a_row} steps in a row before step {self._step} had '
        'no finite gradient and were skipped; lower '
        'make_optimizer.learning_rate or set make_optimizer.grad_clip_norm. '
        'The last good checkpoint is kept.'
      )
