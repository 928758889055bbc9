"""A trace of the steps asked for, or an error before the run."""

import jax
import jax.numpy as jnp
import pytest

from protein_lm import profiler
from protein_lm.profiler import Profiler


def test_two_numbers_are_read():
  assert profiler.parse('100, 110') == (100, 110)


@pytest.mark.parametrize('text', [None, ''])
def test_nothing_asked_for_is_nothing(text):
  assert profiler.parse(text) is None


@pytest.mark.parametrize('text', ['100', '5,5', '9,3', 'a,b', '-1,3', '1,2,3'])
def test_other_texts_are_refused(text):
  with pytest.raises(ValueError, match='give two step numbers'):
    profiler.parse(text)


@pytest.mark.parametrize('steps', [(0, 5), (40, 51), (60, 70)])
def test_steps_outside_the_run_are_refused(tmp_path, steps):
  with pytest.raises(ValueError, match='goes from step 10 to 50'):
    Profiler(tmp_path, steps, 10, 50)


def run(work_dir, steps, num_steps=6):
  """Which steps were traced."""
  traced = []
  with Profiler(work_dir, steps, 0, 6) as profile:
    for step in range(num_steps):
      profile.at(step, jnp.ones(3) * step)
      if profile.is_tracing:
        traced.append(step + 1)
    profile.at(num_steps, jnp.ones(3))
  return traced


def test_the_steps_between_are_traced_and_the_file_named(tmp_path, capsys):
  assert run(tmp_path, (2, 4)) == [3, 4]
  (trace,) = (tmp_path / 'profile').rglob('*.xplane.pb')
  out = capsys.readouterr().out
  assert str(trace) in out and 'steps 2 to 4' in out
  planes = jax.profiler.ProfileData.from_file(str(trace)).planes
  events = [e for plane in planes for line in plane.lines for e in line.events]
  numbers = [dict(e.stats)['step_num'] for e in events if e.name == 'step']
  assert numbers == [3, 4]
  # Tracing Python's functions, '$file:line name', kills a run now and then.
  assert not [e.name for e in events if e.name.startswith('$')]


@pytest.fixture
def faked(monkeypatch):
  """The calls of jax.profiler, which writes nothing."""
  calls = []
  monkeypatch.setattr(
    'jax.profiler.start_trace',
    lambda folder, profiler_options: calls.append(folder),
  )
  monkeypatch.setattr('jax.profiler.stop_trace', lambda: calls.append('stop'))
  return calls


def test_a_trace_may_end_with_the_run(tmp_path, faked):
  with pytest.raises(OSError, match='the profiler wrote no trace'):
    run(tmp_path, (5, 6))
  assert faked == [str(tmp_path / 'profile'), 'stop']


def test_a_run_that_fails_inside_stops_the_trace(tmp_path, faked):
  with (
    pytest.raises(FloatingPointError),
    Profiler(tmp_path, (0, 3), 0, 6) as profile,
  ):
    profile.at(0, ())
    raise FloatingPointError
  assert faked[-1] == 'stop'


def test_without_steps_nothing_is_traced(tmp_path, faked):
  assert run(tmp_path, None) == []
  assert faked == []
