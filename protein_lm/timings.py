"""How long a step, an evaluation and a checkpoint take, and so a run."""

import math
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_MIN_STEPS = 3  # timed after one that warms up
_MAX_EVAL_BATCHES = 4  # timed after one that compiles
_SAVED_BYTES = 256 * 2**20  # of a larger state only so much is saved


class Timings(NamedTuple):
  """Seconds of wall time.

  step: mean, with its share of making batches.
  evaluation: one whole evaluation.
  checkpoint: one save, as if the run waited for all of it.
  compilation: of the step, and of the evaluation.
  sums: of the timed steps, a step: means by name.
  """

  step: float
  evaluation: float = 0.0
  checkpoint: float = 0.0
  compilation: float = 0.0
  sums: dict[str, float] = {}


def measure(
  train_step: Callable,
  state: Any,
  batch_of: Callable[[int], Any],
  rng: jax.Array,
  *,
  evaluate: Callable[[Any, int], Any] | None = None,
  num_eval_batches: int = 0,
  save: Callable[[Any], Any] | None = None,
  seconds: float = 2.0,
  clock: Callable[[], float] = time.perf_counter,
) -> Timings:
  """Runs some steps, an evaluation and a save, and throws the state away.

  Args:
    train_step: (state, batch, rng) -> (state, sums), jitted or compiled.
    state: donated to the first step.
    batch_of: step -> Batch, where it will be in the run.
    rng: key of the steps.
    evaluate: (state, num_batches): evaluates on so many batches of validation.
    num_eval_batches: of an evaluation of the run.
    save: (state): one save, to its end; None if the run saves nothing.
    seconds: to spend on timed steps; 3 of them are taken anyway.
    clock: seconds from any origin.
  """
  start = clock()
  state, sums = train_step(state, batch_of(0), rng)
  jax.block_until_ready(sums)
  compilation = clock() - start

  done, start, total, waiting = 0, clock(), {}, {}
  batch = batch_of(1)
  while done < _MIN_STEPS or clock() - start < seconds:
    state, sums = train_step(state, batch, jax.random.fold_in(rng, done))
    done += 1
    batch = batch_of(1 + done)  # made while the step runs, as in the run
    _add(total, waiting)  # and so are the sums fetched, one step late
    waiting = sums
  _add(total, waiting)
  step_seconds = (clock() - start) / done

  evaluation = 0.0
  if evaluate is not None and num_eval_batches:
    start = clock()
    evaluate(state, 1)
    first = clock() - start
    timed = min(num_eval_batches, _MAX_EVAL_BATCHES)
    start = clock()
    evaluate(state, timed)
    a_batch = (clock() - start) / timed
    evaluation = a_batch * num_eval_batches
    compilation += max(first - a_batch, 0.0)

  checkpoint = 0.0
  if save is not None:
    start = clock()
    save(state)
    checkpoint = clock() - start
  return Timings(
    step_seconds,
    evaluation,
    checkpoint,
    max(compilation - step_seconds, 0.0),
    {name: value / done for name, value in total.items()},
  )


def seconds_of(
  num_steps: int, timings: Timings, eval_every: int, checkpoint_every: int
) -> float:
  """Seconds of a run of so many steps, both at the end too."""
  num_evals = math.ceil(num_steps / eval_every)
  num_checkpoints = math.ceil(num_steps / checkpoint_every)
  return (
    num_steps * timings.step
    + num_evals * timings.evaluation
    + num_checkpoints * timings.checkpoint
  )


def steps_within(
  seconds: float, timings: Timings, eval_every: int, checkpoint_every: int
) -> int:
  """The most steps that `seconds_of` lets a run have, 0 if not even one."""

  def fits(num_steps):
    return (
      seconds_of(num_steps, timings, eval_every, checkpoint_every) <= seconds
    )

  low, high = 0, math.ceil(max(seconds, 0) / timings.step) + 1
  while high - low > 1:
    middle = (low + high) // 2
    if fits(middle):
      low = middle
    else:
      high = middle
  return low


def _add(total, sums):
  for name, value in sums.items():
    total[name] = total.get(name, 0.0) + float(value)


def save_seconds(state, clock=time.perf_counter) -> float:
  """Seconds of one verified save, in the folder of temporary files.

  Of a state above 256 MiB a part is saved, and the time scaled.
  """
  from protein_lm import checkpoint

  leaves, taken, total = [], 0, 0
  for leaf in jax.tree.leaves(state):
    total += leaf.nbytes
    if not leaves or taken + leaf.nbytes <= _SAVED_BYTES:
      leaves.append(leaf)
      taken += leaf.nbytes
  with tempfile.TemporaryDirectory(prefix='protein_lm_') as folder:
    start = clock()
    checkpoint.save(pathlib.Path(folder), 0, leaves, config='', metadata={})
    return (clock() - start) * max(total / max(taken, 1), 1.0)
