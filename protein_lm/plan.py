"""What a run would take, printed before it runs (`--dry_run`)."""

import dataclasses
import datetime
import time
from collections.abc import Callable
from typing import Any

import jax

from protein_lm import allocator, memory, models, sharding, time_budget
from protein_lm import timings as timings_lib
from protein_lm.train_step import weights_of

_MEASURED_SECONDS = 5.0  # of timed steps


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run consists of.

  data: the Data of the run.
  counted_share: of the tokens of a batch, those that count (objective).
  make_state: makes the TrainState from scratch, placed as in the run.
  train_step: jitted, see train_step.make_train_step.
  batch_of: step -> Batch, placed as in the run.
  rng: key of the steps.
  evaluate: (state, num_batches), see timings.measure; None for no validation.
  save: (state), see timings.measure.
  num_eval_batches: of an evaluation.
  eval_every_steps: steps between two evaluations.
  checkpoint_every_steps: steps between two checkpoints.
  flops_of: operations of (num_unpadded, sum_positions), see flops.of_step.
  peak_flops: operations a second of all devices together.
  num_microbatches: parts that a batch is computed in.
  multiple_of: what rows are a multiple of: devices that share them.
  abstract_state: shapes of what make_state gives; None asks it.
  """

  data: Any
  counted_share: float
  make_state: Callable[[], Any]
  train_step: Callable
  batch_of: Callable[[int], Any]
  rng: jax.Array
  evaluate: Callable[[Any, int], Any] | None = None
  save: Callable[[Any], Any] | None = timings_lib.save_seconds
  num_eval_batches: int = 0
  eval_every_steps: int = 1
  checkpoint_every_steps: int = 1
  flops_of: Callable[[float, float], float] | None = None
  peak_flops: float | None = None
  num_microbatches: int = 1
  multiple_of: int = 1
  abstract_state: Any = None

  @classmethod
  def of(
    cls,
    recipe,
    data,
    seed: int,
    validation,
    eval_every_steps: int,
    checkpoint_every_steps: int,
  ) -> 'Run':
    """The Run of a recipe.Recipe on its Data and validation.Validation."""

    def batch_of(step):
      return sharding.put(recipe.mesh, data.train_batch(seed, step))

    def evaluate(state, num_batches):
      return validation(weights_of(state), num_batches)

    return cls(
      data=data,
      counted_share=recipe.objective.counted_share,
      make_state=recipe.make_state,
      train_step=recipe.train_step,
      batch_of=batch_of,
      rng=recipe.step_rng,
      evaluate=evaluate if validation.batches else None,
      # Of several processes each would save into a folder of its own.
      save=timings_lib.save_seconds if jax.process_count() == 1 else None,
      num_eval_batches=len(validation.batches),
      eval_every_steps=eval_every_steps,
      checkpoint_every_steps=checkpoint_every_steps,
      flops_of=recipe.flops_of,
      peak_flops=recipe.peak_flops(),
      num_microbatches=recipe.num_microbatches,
      multiple_of=recipe.mesh.shape['data'] * recipe.mesh.shape['fsdp'],
      abstract_state=recipe.abstract_state,
    )

  def measure(self, seconds: float) -> timings_lib.Timings:
    """Runs it for so long, on a state that is thrown away; see timings."""
    return timings_lib.measure(
      self.train_step,
      self.make_state(),
      self.batch_of,
      self.rng,
      evaluate=self.evaluate,
      num_eval_batches=self.num_eval_batches,
      save=self.save,
      seconds=seconds,
    )

  def explaining_memory(self, state):
    """A context that names the batch that fits where memory ends."""
    return memory.explaining(
      self.train_step,
      memory.abstract(state),
      memory.abstract(self.batch_of(0)),
      self.rng,
      self.num_microbatches,
      self.multiple_of,
    )


def print_plan(
  run: Run,
  num_train_steps: int | None,
  budget: time_budget.TimeBudget | None = None,
  age: Callable[[], float] = time_budget.process_age,
) -> float:
  """Prints parameters, memory, FLOPs, steps and a measured duration.

  Compiles the step and runs it a few times, evaluates on a few batches, and
  saves the state among the temporary files; nothing is written to work_dir.

  Args:
    run: what is planned.
    num_train_steps: of the run; None takes what the budget allows.
    budget: needed if num_train_steps is None.
    age: seconds since the process was started, what comes before the first
      compilation included; the run will need as long to come here.

  Returns:
    The estimated duration in seconds, from the start of the process.

  Raises:
    memory.OutOfMemoryError: the step does not fit; names the batch that does.
  """
  startup_seconds = age()
  abstract_state = run.abstract_state
  if abstract_state is None:
    abstract_state = jax.eval_shape(run.make_state)
  batch = run.batch_of(0)
  rows, max_len = batch.tokens.shape
  _print('parameters', f'{models.num_params(abstract_state.params):,}')
  residues = '{:,} ({:,} residues)'.format(*run.data.splits['train'])
  _print('train proteins', residues)
  _print('batch', f'{rows} rows of {max_len} tokens')

  start = time.perf_counter()
  state = _make_state(run, abstract_state)  # its shardings are known then
  abstract_state = memory.abstract(state)
  with memory.explaining(
    run.train_step,
    abstract_state,
    memory.abstract(batch),
    run.rng,
    run.num_microbatches,
    run.multiple_of,
  ):
    compiled = run.train_step.lower(state, batch, run.rng).compile()
    compile_seconds = time.perf_counter() - start
    _check_memory(run, state, batch, compiled)
    timings = timings_lib.measure(
      compiled,
      state,
      run.batch_of,
      run.rng,
      evaluate=run.evaluate,
      num_eval_batches=run.num_eval_batches,
      save=run.save,
      seconds=_MEASURED_SECONDS,
    )
  compile_seconds += timings.compilation
  intervals = run.eval_every_steps, run.checkpoint_every_steps
  if num_train_steps is None:
    num_train_steps = budget.num_steps(timings, *intervals)

  _print_work(run, timings, num_train_steps)
  _print('compilation', f'{compile_seconds:.1f} s')
  _print('a step', f'{timings.step:.3f} s')
  _print('an evaluation', f'{timings.evaluation:.2f} s')
  _print('a checkpoint', f'{timings.checkpoint:.2f} s')
  seconds = startup_seconds + compile_seconds
  seconds += timings_lib.seconds_of(num_train_steps, timings, *intervals)
  end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
  named = (('evaluation', run.evaluate), ('checkpoints', run.save))
  left_out = [name for name, function in named if function is None]
  included = f'without {" and ".join(left_out)}' if left_out else 'all included'
  _print(
    'estimated duration',
    f'{_duration(seconds)}, {included}; started now it ends at '
    f'{end:%Y-%m-%d %H:%M}',
  )
  return seconds


def _make_state(run, abstract_state):
  try:
    return jax.block_until_ready(run.make_state())
  except Exception as error:
    if not memory.is_out_of_memory(error):
      raise
    needed = sum(
      x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_state)
    )
    raise memory.OutOfMemoryError(
      f'out of memory: parameters and moments alone take {needed:,} bytes over '
      'all devices; make the model smaller, or use more devices (mesh).'
    ) from error


def _check_memory(run, state, batch, compiled):
  """Prints what a device holds; raises if it cannot."""
  needed = memory.compiled_bytes(compiled)
  limit = memory.available_bytes()
  working = getattr(compiled.memory_analysis(), 'temp_size_in_bytes', 0)
  state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
  _print('state in memory', f'{_megabytes(state_bytes)} over all devices')
  _print('working memory of a step', f'{_megabytes(working)} a device')
  there = 'unknown' if limit is None else _megabytes(limit)
  _print('memory', f'{_megabytes(needed)} of {there} a device')
  if jax.default_backend() == 'cpu':
    _print('allocator', allocator.describe())
  if limit is None or needed <= limit:
    return
  abstract_state = memory.abstract(state)
  largest = memory.largest_batch(
    lambda rows: memory.step_bytes(
      run.train_step, abstract_state, memory.with_rows(batch, rows), run.rng
    ),
    limit,
    batch.tokens.shape[0],
    run.multiple_of * run.num_microbatches,
  )
  raise memory.OutOfMemoryError(
    f'out of memory: {needed:,} bytes needed and {limit:,} there on a device: '
    + memory.advice(
      batch.tokens.shape[0], largest, run.num_microbatches, run.multiple_of
    )
  )


def _print_work(run, timings, num_train_steps):
  """Prints steps, tokens, epochs and operations."""
  epochs = num_train_steps / run.data.steps_per_epoch
  tokens = epochs * run.data.tokens_per_epoch * run.counted_share
  _print('steps', f'{num_train_steps:,}')
  _print('counted tokens', f'{tokens:,.0f}')
  _print('epochs', f'{epochs:.2f} of {run.data.steps_per_epoch:,.1f} steps')
  if run.flops_of is None:
    return
  sums = timings.sums
  flops = run.flops_of(sums['num_unpadded'], sums['sum_positions'])
  mfu = flops / (timings.step * run.peak_flops)
  _print(
    'FLOPs', f'{flops:.3g} a step, {flops * num_train_steps:.3g} in the run'
  )
  peak = f'{run.peak_flops:.3g} FLOP/s of all devices'
  _print('mfu', f'{mfu:.1%} of {peak}')


def _print(name, text):
  print(f'{name:<24}  {text}', flush=True)


def _megabytes(num_bytes):
  return f'{num_bytes / 1e6:,.1f} MB'


def _duration(seconds):
  hours, seconds = divmod(round(seconds), 3600)
  return f'{hours}:{seconds // 60:02}:{seconds % 60:02} (h:mm:ss)'
