"""`--profile_steps=100,110`: a trace of those steps in work_dir/profile."""

import contextlib
import pathlib
import re

import jax


def parse(text: str | None) -> tuple[int, int] | None:
  """(first, last) of '100,110'; None of None or nothing.

  Raises:
    ValueError: the text is no such pair.
  """
  if not text:
    return None
  match = re.fullmatch(r'\s*(\d+)\s*,\s*(\d+)\s*', text)
  if match is None or int(match[1]) >= int(match[2]):
    raise ValueError(
      f'--profile_steps={text}: give two step numbers, the first the smaller, '
      'such as --profile_steps=100,110.'
    )
  return int(match[1]), int(match[2])


class Profiler:
  """Traces the steps between two steps done; without any, does nothing.

  Call `at(step, state)` with the number of steps done, before each step and
  after the last. The device finishes its work at both ends, so the trace holds
  whole steps only, each under the name `step` and its number.

  Python's functions are not traced: JAX's tracer of them writes into the state
  of every thread, also of one that is ending, and a run, whose threads come
  and go, may die of it (SIGSEGV, about 1 trace in 80).
  """

  def __init__(
    self,
    work_dir: str,
    steps: tuple[int, int] | None,
    first_step: int,
    num_train_steps: int,
  ):
    """Checks that the run comes by.

    Args:
      work_dir: folder of the run.
      steps: (first, last): the trace begins when `first` steps are done and
        ends when `last` are.
      first_step: steps done when the run starts or goes on.
      num_train_steps: steps of the whole run.

    Raises:
      ValueError: the steps are not inside the run.
    """
    self._folder = pathlib.Path(work_dir) / 'profile'
    self._steps, self.is_tracing = steps, False
    self._traced_step = contextlib.ExitStack()
    if steps and not first_step <= steps[0] < steps[1] <= num_train_steps:
      raise ValueError(
        f'--profile_steps={steps[0]},{steps[1]} is not inside the run, which '
        f'goes from step {first_step} to {num_train_steps}.'
      )

  def __enter__(self):
    return self

  def __exit__(self, error_type, *exception):
    if self.is_tracing:  # the run ended inside
      self._stop(must_exist=error_type is None)

  def at(self, step: int, state) -> None:
    """Starts or stops the trace, if this is the step.

    Raises:
      OSError: no trace was written.
    """
    if self._steps is None:
      return
    if self.is_tracing and step >= self._steps[1]:
      jax.block_until_ready(state)
      self._stop(must_exist=True)
    elif step == self._steps[0]:
      jax.block_until_ready(state)
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0
      jax.profiler.start_trace(str(self._folder), profiler_options=options)
      self.is_tracing = True
    if self.is_tracing:
      self._traced_step.close()  # the one before
      name = jax.profiler.StepTraceAnnotation('step', step_num=step + 1)
      self._traced_step.enter_context(name)

  def _stop(self, must_exist):
    self._traced_step.close()
    self.is_tracing = False
    jax.profiler.stop_trace()
    traces = sorted(self._folder.rglob('*.xplane.pb'))
    if traces:
      print(
        f'trace of steps {self._steps[0]} to {self._steps[1]}: {traces[-1]}; '
        f'open it with `xprof --logdir={self._folder}` (pip install xprof).',
        flush=True,
      )
    elif must_exist:
      raise OSError(f'the profiler wrote no trace into {self._folder}.')
