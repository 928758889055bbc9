"""Learning rates: the rise, the rule after it, and numbers nobody reads."""

import jax
import jax.numpy as jnp
import pytest

from protein_lm.schedules import make_schedule


@pytest.mark.parametrize(
  'name, at_end',
  [
    ('constant', 1.0),
    ('rsqrt', 0.5),
    ('cosine', 0.0),
    ('linear', 0.0),
    ('wsd', 0.0),
  ],
)
def test_schedules_rise_to_the_peak_then_follow_their_rule(name, at_end):
  schedule = make_schedule(name, 1.0, 100, 400)
  assert schedule(0) == 0
  assert schedule(50) == pytest.approx(0.5)
  assert schedule(100) == pytest.approx(1.0)
  assert schedule(400) == pytest.approx(at_end, abs=1e-6)
  assert jax.jit(schedule)(jnp.int32(250)) == pytest.approx(schedule(250))


@pytest.mark.parametrize('name', ['cosine', 'linear', 'wsd'])
def test_a_final_share_is_where_the_run_ends_and_stays(name):
  schedule = make_schedule(name, 2.0, 100, 400, final_share=0.1)
  assert schedule(100) == pytest.approx(2.0)
  assert schedule(400) == pytest.approx(0.2)
  assert schedule(500) == pytest.approx(0.2)


@pytest.mark.parametrize(
  'numbers', [{}, {'decay_share': 0.2}, {'decay_steps': 80}]
)
def test_wsd_is_stable_then_falls_in_a_line(numbers):
  schedule = make_schedule('wsd', 1.0, 100, 400, **numbers)
  assert schedule(320) == 1
  assert schedule(360) == pytest.approx(0.5)


def test_wsd_decays_after_a_warm_up_longer_than_its_share():
  schedule = make_schedule('wsd', 1.0, 90, 100)
  assert schedule(89) < 1
  assert schedule(95) == pytest.approx(0.5)


def test_no_warm_up_starts_at_the_peak():
  assert make_schedule('linear', 1.0, 0, 10)(0) == 1


@pytest.mark.parametrize(
  'name, numbers, words',
  [
    ('cosin', {}, "constant, rsqrt, .*, got 'cosin'"),
    ('rsqrt', {'final_share': 0.1}, "by the schedule cosine or .* 'rsqrt'"),
    ('linear', {'decay_steps': 3}, 'decay_steps=3 is read by .* wsd, not by'),
    ('wsd', {'decay_share': 1.5}, r'decay_share must be within \[0, 1\]'),
    ('wsd', {'decay_share': 0.1, 'decay_steps': 3}, 'unset one of them'),
    ('wsd', {'decay_steps': 401}, r'within \[0, 400\]'),
  ],
)
def test_numbers_that_make_no_schedule_are_refused(name, numbers, words):
  with pytest.raises(ValueError, match=words):
    make_schedule(name, 1.0, 100, 400, **numbers)
