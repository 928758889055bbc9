"""Checkpoints: complete or absent, verified, and never outside work_dir."""

import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protein_lm import (
  checkpoint,
)


class State(NamedTuple):
  step: Any
  params: Any
  opt_state: Any
  attention_stats: Any
  ema_params: Any


def make_state(step: int, width: int = 4) -> State:
  params = {
    'embed': {'table': jax.random.normal(jax.random.key(step), (21, width))},
    'layers': {
      0: {'w': jnp.full((width, 3), 1 / 3, jnp.bfloat16), 'unused': {}},
      1: {'w': jnp.arange(3, dtype=jnp.int32), 'none': jnp.zeros((0, 3))},
    },
  }
  opt_state = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
  return State(jnp.int32(step), params, opt_state, (), {})


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def save(work_dir, step, metric=None):
  return pathlib.Path(
    checkpoint.save(
      work_dir,
      step,
      make_state(step),
      config='FlaxModel.num_layers = 2\n',
      metadata={'data': 'abc', 'note': 'naïve'},
      metric=metric,
    )
  )


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def read(work_dir, step='latest'):
  return checkpoint.restore(work_dir, abstract(make_state(0)), step)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run with steps 10 and 20, for tests that copy or only read it."""
  work_dir = tmp_path_factory.mktemp('saved')
  save(work_dir, 10, metric=2.5)
  save(work_dir, 20, metric=2.75)
  return work_dir


@pytest.fixture
def run(saved, tmp_path):
  """A copy of `saved` to damage."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'run a'))


# Round trip.


def test_round_trip_is_bit_exact(saved, warned):
  state, manifest = read(saved)
  assert_equal(state, make_state(20))
  assert manifest['step'] == 20 and manifest['metric'] == 2.75
  assert manifest['metadata'] == {'data': 'abc', 'note': 'naïve'}
  assert checkpoint.config(saved, 20) == 'FlaxModel.num_layers = 2\n'
  assert not warned


def test_params_alone(saved):
  params, manifest = checkpoint.restore_params(
    saved, abstract(make_state(0).params), 10
  )
  assert_equal(params, make_state(10).params)
  assert manifest['step'] == 10


def test_restores_to_the_asked_sharding(saved):
  mesh = jax.make_mesh((3,), ('data',))
  split = jax.sharding.NamedSharding(mesh, jax.P('data'))
  whole = jax.sharding.NamedSharding(mesh, jax.P())
  asked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=split if x.shape[:1] == (21,) else whole
    ),
    make_state(0),
  )
  state, _ = checkpoint.restore(saved, asked)
  assert state.params['embed']['table'].sharding == split
  assert_equal(state, make_state(20))


def test_best_is_the_lowest_metric(saved):
  assert read(saved, 'best')[1]['step'] == 10


def test_nan_is_never_best(run):
  save(run, 30, metric=float('nan'))
  assert read(run, 'best')[1]['step'] == 10


def test_saving_a_step_again_replaces_it(run):
  save(run, 20, metric=1.0)
  assert read(run, 'best')[1]['step'] == 20
  assert len(list((run / 'checkpoints').iterdir())) == 2


def test_logs_of_orbax_stay_quiet(tmp_path, capfd, warned):
  save(tmp_path, 1)
  read(tmp_path)
  assert not warned and capfd.readouterr() == ('', '')


def test_best_falls_back_to_the_next_best(run, warned):
  (run / 'checkpoints' / '10' / 'config.gin').write_text('x')
  assert read(run, 'best')[1]['step'] == 20
  assert len(warned) == 1


def test_nothing_there_is_not_found(tmp_path):
  assert checkpoint.steps(tmp_path / 'absent') == []
  for step in ('latest', 'best', 3):
    with pytest.raises(checkpoint.NotFoundError):
      read(tmp_path, step)


def test_best_without_metrics_names_the_steps(tmp_path):
  save(tmp_path, 7)
  with pytest.raises(checkpoint.NotFoundError, match=r'\[7\]'):
    read(tmp_path, 'best')


def test_metadata_that_is_not_json_leaves_nothing(tmp_path):
  with pytest.raises(TypeError):
    checkpoint.save(
      tmp_path, 1, make_state(1), config='', metadata={'a': object()}
    )
  assert list(tmp_path.iterdir()) == []


# Architecture.


@pytest.mark.parametrize(
  'change, words',
  [
    (
      lambda p: p['embed'].update(table=jnp.zeros((21, 8))),
      ['params/embed/table', r'\(21, 4\)', r'\(21, 8\)'],
    ),
    (
      lambda p: p['embed'].update(table=jnp.zeros((21, 4), jnp.bfloat16)),
      ['params/embed/table', 'float32', 'bfloat16'],
    ),
    (
      lambda p: p.update(extra=jnp.zeros(2)),
      ['params/extra', 'not in the checkpoint'],
    ),
    (
      lambda p: p.pop('embed'),
      ['params/embed/table', 'checkpoint only'],
    ),
  ],
)
def test_other_architecture_is_one_sentence(saved, change, words):
  params = make_state(0).params
  change(params)
  with pytest.raises(checkpoint.MismatchError, match='.*'.join(words)) as error:
    checkpoint.restore_params(saved, abstract(params))
  assert '\n' not in str(error.value)


def test_mismatch_does_not_fall_back(saved, warned):
  with pytest.raises(checkpoint.MismatchError, match='more such'):
    checkpoint.restore(saved, abstract(make_state(0, width=5)))
  assert not warned


# Retention.


def test_retention_keeps_newest_and_best(run):
  save(run, 30, metric=2.6)
  save(run, 40, metric=2.7)
  assert checkpoint.retain(run, 1) == [20, 30]
  assert checkpoint.steps(run) == [10, 40]
  assert checkpoint.retain(run, 1, best=False) == [10]
  assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['40']


def test_retention_waits_until_the_newest_verifies(run, warned):
  config = run / 'checkpoints' / '20' / 'config.gin'
  config.write_text('x')
  assert checkpoint.retain(run, 1, best=False) == []
  assert checkpoint.steps(run) == [10, 20] and 'config.gin' in warned[0]


@pytest.mark.parametrize('leaf', [3, jax.random.key(0)])
def test_only_arrays_of_numbers_are_saved(tmp_path, leaf):
  with pytest.raises(TypeError, match='params/x'):
    checkpoint.save(
      tmp_path, 1, {'params': {'x': leaf}}, config='', metadata={}
    )
