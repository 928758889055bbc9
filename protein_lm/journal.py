"""What a run tells while it goes on: log, status, bar, trace, warnings."""

import contextlib
import functools

from protein_lm.metrics import MetricsLog
from protein_lm.profiler import Profiler
from protein_lm.progress import Progress


class Journal:
  """The observers of a training loop, asked once for each thing that happens.

  Entered, it opens the log; of several processes only the first one writes.
  """

  def __init__(
    self,
    work_dir,
    recipe,
    status,
    compiled,
    saver,
    *,
    step,
    num_train_steps,
    saved,
    is_primary=True,
    profile_steps=None,
    wandb_project=None,
    config_text='',
  ):
    """Takes what there is to watch.

    Args:
      work_dir: folder of the run.
      recipe: recipe.Recipe of the run, on its mesh.
      status: status.Status of the run.
      compiled: compilation.Counter of the run.
      saver: checkpoint.Saver of the run.
      step: steps already done.
      num_train_steps: steps of the whole run.
      saved: metadata of the checkpoint at that step; empty from scratch.
      is_primary: whether this process is the one that tells.
      profile_steps: see profiler.Profiler.
      wandb_project: see metrics.MetricsLog.
      config_text: likewise.
    """
    self._status, self._compiled, self._saver = status, compiled, saver
    self._learning_rate_fn = recipe.learning_rate_fn
    self._is_primary = is_primary
    self._profiler = Profiler(work_dir, profile_steps, step, num_train_steps)
    self.progress = Progress(
      step,
      num_train_steps,
      recipe.model.objective,
      saved,
      flops_of=recipe.flops_of,
      peak_flops=recipe.peak_flops(),
      recompilations=lambda: compiled.recompilations,
      is_primary=is_primary,
    )
    self._open_log = functools.partial(
      MetricsLog,
      work_dir,
      step,
      is_primary=is_primary,
      wandb_project=wandb_project,
      config_text=config_text,
    )

  def __enter__(self):
    with contextlib.ExitStack() as stack:
      self.log = stack.enter_context(self._open_log())
      stack.enter_context(self.progress)
      stack.enter_context(self._profiler)
      self._stack = stack.pop_all()
    self._status.update(state='compiling')
    return self

  def __exit__(self, *exception):
    return self._stack.__exit__(*exception)

  def at(self, step, state):
    """To be called before each step and after the last one."""
    self._profiler.at(step, state)

  def waiting(self):
    """A context in which the run waits for data."""
    return self.progress.timing('data')

  @contextlib.contextmanager
  def evaluating(self, step):
    """A context in which it evaluates."""
    self._status.update(state='evaluating', step=step)
    with (
      self.progress.timing('evaluation'),
      self._compiled.first('evaluation'),
    ):
      yield

  @contextlib.contextmanager
  def saving(self, step):
    """A context in which it begins a checkpoint; the log is on disk before."""
    self._status.update(state='saving', step=step)
    with (
      self.progress.timing('checkpoint'),
      self._compiled.first('checkpoint'),
    ):
      self.log.flush()
      yield
    self._status.update(state='running')

  def training_record(self):
    """The `train/` metrics of the steps since the last record."""
    with self._compiled.first('record'):
      rate = self.progress.learning_rate(self._learning_rate_fn)
    return self.progress.take_record() | {'train/learning_rate': rate}

  def write(self, step, record):
    """Logs and shows metrics, and what was compiled that should not be."""
    self.log.write(step, record)
    self.progress.show(record)
    self._status.update(
      state='running',
      step=step,
      metrics=record,
      eta_seconds=self.progress.seconds_left,
      last_checkpoint_step=self._saver.latest,
    )
    warning = self._compiled.take_warning()
    if warning and self._is_primary:
      print(warning, flush=True)
