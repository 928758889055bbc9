"""What was measured, and the duration of a run that follows from it."""

import jax.numpy as jnp
import pytest

from protein_lm import timings
from protein_lm.timings import Timings


def measure(clock, **arguments):
  """Timings of a step of 0.5 s that compiles in 8 s and counts 2 tokens."""
  done = []

  def train_step(state, batch, rng):
    clock.now += 0.5 if done else 8.5
    done.append(batch)
    return state, {'num_tokens': jnp.float32(2)}

  found = timings.measure(
    train_step,
    'state',
    lambda step: step,
    jnp.uint32([0, 0]),
    clock=clock,
    **arguments,
  )
  return found, done


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
  monkeypatch.setattr('jax.random.fold_in', lambda rng, step: rng)


def test_a_step_is_timed_without_its_compilation(clock):
  found, done = measure(clock, seconds=2.0)
  assert found.step == 0.5
  assert found.compilation == 8
  assert found.sums == {'num_tokens': 2}
  assert done == list(range(5))


def test_three_steps_are_timed_even_if_they_are_slow(clock):
  assert len(measure(clock, seconds=0.0)[1]) == 1 + 3


def test_an_evaluation_is_extrapolated_from_a_few_batches(clock):
  counts = []

  def evaluate(state, num_batches):
    clock.now += 0.25 * num_batches + (0 if counts else 3)
    counts.append(num_batches)

  found, _ = measure(clock, evaluate=evaluate, num_eval_batches=16)
  assert counts == [1, 4]
  assert found.evaluation == 4
  assert found.compilation == 8 + 3


def test_a_save_is_timed(clock):
  def save(state):
    clock.now += 1.5

  assert measure(clock, save=save)[0].checkpoint == 1.5


TIMINGS = Timings(step=2.0, evaluation=10.0, checkpoint=5.0)


@pytest.mark.parametrize(
  'num_steps, seconds',
  [
    (1, 2 + 10 + 5),
    (10, 20 + 10 + 5),
    (11, 22 + 20 + 5),
    (50, 100 + 50 + 10),
  ],
)
def test_a_run_evaluates_and_saves_at_its_intervals_and_end(num_steps, seconds):
  assert timings.seconds_of(num_steps, TIMINGS, 10, 25) == seconds


@pytest.mark.parametrize('seconds', [17, 18.9, 19, 34, 35, 47, 1000, 86400])
def test_the_most_steps_that_fit_fit_and_one_more_does_not(seconds):
  found = timings.steps_within(seconds, TIMINGS, 10, 25)
  assert timings.seconds_of(found, TIMINGS, 10, 25) <= seconds
  assert timings.seconds_of(found + 1, TIMINGS, 10, 25) > seconds


@pytest.mark.parametrize('seconds', [-5, 0, 16.9])
def test_no_step_fits_into_too_little(seconds):
  assert timings.steps_within(seconds, TIMINGS, 10, 25) == 0


def test_a_save_is_timed_and_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  assert timings.save_seconds({'a': jnp.ones((3, 4))}) > 0
  assert list(tmp_path.iterdir()) == []


def test_a_large_state_is_saved_in_part_and_the_time_scaled(monkeypatch):
  saved = []
  monkeypatch.setattr(timings, '_SAVED_BYTES', 100)
  monkeypatch.setattr(
    'protein_lm.checkpoint.save',
    lambda folder, step, state, **_: saved.append(len(state)),
  )
  times = iter((0.0, 3.0))
  state = [jnp.ones(20, jnp.float32)] * 5  # of 80 bytes
  assert timings.save_seconds(state, lambda: next(times)) == 15
  assert saved == [1]
