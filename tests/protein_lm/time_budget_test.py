"""A run of so many minutes ends within them, and not long before."""

import time

import pytest

from protein_lm import time_budget, timings
from protein_lm.time_budget import TimeBudget
from protein_lm.timings import Timings

TIMINGS = Timings(step=0.5, evaluation=8.0, checkpoint=1.0, compilation=10.0)


class World:
  """A process and a machine, `slowdown` times slower than measured."""

  def __init__(self, age, slowdown=1.0):
    self.age, self.slowdown = age, slowdown

  def run(self, budget, num_steps, measured, every=100):
    """Trains; returns the steps done."""
    took = Timings(*(self.slowdown * x for x in measured[:4]))
    self.age += took.compilation
    for step in range(1, num_steps + 1):
      self.age += took.step
      is_last = step == num_steps or budget.is_over(measured, took.step)
      if step % every == 0 or is_last:
        self.age += took.evaluation + took.checkpoint
      if is_last:
        return step


@pytest.mark.parametrize('slowdown', [0.95, 1.0, 1.2, 3.0])
def test_a_run_of_ten_minutes_ends_between_nine_and_ten_and_a_half(slowdown):
  world = World(age=45.0, slowdown=slowdown)
  budget = TimeBudget(10, lambda: world.age)
  num_steps = budget.num_steps(TIMINGS, 100, 100)
  done = world.run(budget, num_steps, TIMINGS)
  assert 9 * 60 <= world.age <= 10.5 * 60
  assert (done == num_steps) == (slowdown <= 1)


def test_time_before_the_first_step_counts():
  late, early = (
    TimeBudget(10, lambda age=age: age).num_steps(TIMINGS, 10**6, 10**6)
    for age in (100.0, 50.0)
  )
  assert early - late == 100


def test_without_a_limit_time_is_never_over():
  assert not TimeBudget(None, lambda: 1e9).is_over(TIMINGS)


def test_too_few_minutes_say_how_many_would_do():
  budget = TimeBudget(0.5, lambda: 20.0)
  with pytest.raises(ValueError, match='it takes at least 0.7 minutes'):
    budget.num_steps(TIMINGS, 100, 100)
  assert TimeBudget(0.7, lambda: 20.0).num_steps(TIMINGS, 100, 100)


@pytest.mark.parametrize('minutes', [0, -1, float('nan')])
def test_a_limit_must_be_positive(minutes):
  with pytest.raises(ValueError, match='max_minutes must be positive'):
    TimeBudget(minutes)


def test_little_of_the_time_is_spent_on_measuring():
  assert TimeBudget(1).measuring_seconds == pytest.approx(1.8)
  assert TimeBudget(600).measuring_seconds == 20


def test_a_process_ages():
  first = time_budget.process_age()
  time.sleep(0.01)
  second = time_budget.process_age()
  assert 0.01 <= second - first < 60
  assert first > 0


def test_number_of_steps_is_the_most_that_fits():
  budget = TimeBudget(10, lambda: 30.0)
  found = budget.num_steps(TIMINGS, 100, 100)
  left = 0.96 * 600 - 30 - TIMINGS.compilation
  assert timings.seconds_of(found, TIMINGS, 100, 100) <= left
  assert timings.seconds_of(found + 1, TIMINGS, 100, 100) > left
