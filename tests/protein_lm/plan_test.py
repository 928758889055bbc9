"""A plan says what a run takes, or which batch would fit, before it runs."""

import types

import jax
import jax.numpy as jnp
import pytest

from protein_lm import memory, plan
from protein_lm.data import Batch
from protein_lm.time_budget import TimeBudget
from protein_lm.train_step import TrainState


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
  monkeypatch.setattr(plan, '_MEASURED_SECONDS', 0.0)


@jax.jit
def train_step(state, batch, rng):
  """A step that needs some memory for each row."""
  x_BLL = jnp.sin(batch.tokens[:, :, None] * batch.tokens[:, None, :])
  sums = {
    'num_unpadded': jnp.sum(batch.weights),
    'sum_positions': jnp.sum(x_BLL @ x_BLL) * 0,
  }
  return state._replace(step=state.step + 1), sums


def make_run(**changes):
  tokens = jnp.ones((8, 64), jnp.float32)
  run = {
    'data': types.SimpleNamespace(
      splits={'train': (3, 500)}, steps_per_epoch=10.0, tokens_per_epoch=400
    ),
    'counted_share': 0.5,
    'make_state': lambda: TrainState(
      jnp.int32(0), {'kernel': jnp.ones((3, 5))}, ()
    ),
    'train_step': train_step,
    'batch_of': lambda step: Batch(tokens, tokens, tokens, tokens),
    'rng': jax.random.key(0),
    'save': None,
    'eval_every_steps': 50,
    'checkpoint_every_steps': 50,
  }
  return plan.Run(**(run | changes))


def lines(out):
  return dict(line.split('  ', 1) for line in out.splitlines() if '  ' in line)


def test_the_plan_counts_what_the_run_will_do(capsys):
  run = make_run(flops_of=lambda tokens, positions: 4 * tokens, peak_flops=1e9)
  plan.print_plan(run, 100)
  found = {k: v.strip() for k, v in lines(capsys.readouterr().out).items()}
  assert found['parameters'] == '15'
  assert found['counted tokens'] == '2,000'
  assert found['epochs'].startswith('10.00 of')
  assert found['FLOPs'] == '2.05e+03 a step, 2.05e+05 in the run'
  assert 'mfu' in found


def test_evaluations_checkpoints_and_the_start_are_in_the_duration(monkeypatch):
  from protein_lm import timings

  measured = timings.Timings(2.0, 30.0, 5.0, 7.0)
  monkeypatch.setattr(timings, 'measure', lambda *_, **__: measured)
  seconds = plan.print_plan(make_run(), 100, age=lambda: 11.0)
  exact = 100 * 2 + 2 * 30 + 2 * 5 + 7 + 11
  assert exact <= seconds < exact + 60  # and a compilation that was real


def test_minutes_become_steps(monkeypatch, capsys):
  from protein_lm import timings

  measured = timings.Timings(1.0)
  monkeypatch.setattr(timings, 'measure', lambda *_, **__: measured)
  plan.print_plan(make_run(), None, TimeBudget(10, lambda: 76.0))
  assert lines(capsys.readouterr().out)['steps'].strip() == '500'


def test_a_batch_that_does_not_fit_is_refused_with_the_one_that_does(
  monkeypatch,
):
  run = make_run()
  abstract = memory.abstract((run.make_state(), run.batch_of(0)))
  limit = memory.step_bytes(
    train_step, abstract[0], memory.with_rows(abstract[1], 3), run.rng
  )
  monkeypatch.setattr(memory, 'available_bytes', lambda: limit)
  with pytest.raises(
    memory.OutOfMemoryError, match='the largest that fits is 3'
  ):
    plan.print_plan(run, 100)


def test_a_state_that_does_not_fit_is_refused():
  def make_state():
    if not isinstance(jnp.ones(()), jax.core.Tracer):
      raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return TrainState(jnp.int32(0), {'kernel': jnp.ones((3, 5))}, ())

  with pytest.raises(memory.OutOfMemoryError, match='moments alone take 64'):
    plan.print_plan(make_run(make_state=make_state), 100)
