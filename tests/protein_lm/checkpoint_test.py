"""Checkpoints: complete or absent, verified, and never outside work_dir."""

import itertools
import json
import logging
import os
import pathlib
import resource
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging

from protein_lm import checkpoint, checkpoint_files, work_dir_lock


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


@pytest.fixture
def warned():
  """The warnings logged during the test."""
  records: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: records.append(record.getMessage())
  absl_logging.get_absl_logger().addHandler(handler)
  yield records
  absl_logging.get_absl_logger().removeHandler(handler)


def files_of(step_dir):
  return sorted(p for p in step_dir.rglob('*') if p.is_file())


def rewrite(step_dir, **changes):
  """Changes a manifest as an attacker would, with a matching hash."""
  path = step_dir / 'manifest.json'
  content = {**json.loads(path.read_text()), **changes}
  content.pop('sha256')
  path.write_text(checkpoint_files.manifest_text(content))


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


# Damage.


def damage_each(run, change):
  """Yields each file of step 20 while `change` has hold of it."""
  for path in files_of(run / 'checkpoints' / '20'):
    good = path.read_bytes()
    path.write_bytes(change(good))
    if path.read_bytes() != good:
      yield path
    path.write_bytes(good)


def test_truncation_of_each_file_is_named(run):
  for path in damage_each(run, lambda data: data[: len(data) // 2]):
    with pytest.raises(checkpoint.CheckpointError, match=path.name):
      checkpoint.verify(run, 20)


def test_bit_flip_in_each_file_is_named(run):
  def flip(data):
    middle = len(data) // 2
    return (
      data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
      if data
      else b'\0'
    )

  for path in damage_each(run, flip):
    with pytest.raises(checkpoint.CheckpointError, match=path.name):
      checkpoint.verify(run, 20)


def test_any_bit_flip_in_the_manifest_is_found(run):
  path = run / 'checkpoints' / '20' / 'manifest.json'
  good = path.read_bytes()
  for i in range(0, len(good), 3):
    path.write_bytes(good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :])
    with pytest.raises(checkpoint.CheckpointError):
      checkpoint.manifest(run, 20)


def test_each_missing_file_is_named(run):
  for path in files_of(run / 'checkpoints' / '20'):
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(checkpoint.CheckpointError, match='missing|of step 20'):
      checkpoint.verify(run, 20)
    path.write_bytes(good)


def test_fallback_warns_with_both_steps(run, warned):
  (run / 'checkpoints' / '20' / 'config.gin').write_text('x')
  state, manifest = read(run)
  assert_equal(state, make_state(10))
  assert manifest['step'] == 10
  (warning,) = warned
  assert all(word in warning for word in ('20', 'config.gin', 'step 10'))


def test_best_falls_back_to_the_next_best(run, warned):
  (run / 'checkpoints' / '10' / 'config.gin').write_text('x')
  assert read(run, 'best')[1]['step'] == 20
  assert len(warned) == 1


def test_a_bad_step_asked_for_by_number_is_an_error(run):
  (run / 'checkpoints' / '20' / 'config.gin').write_text('x')
  with pytest.raises(checkpoint.CheckpointError, match='config.gin'):
    read(run, 20)


def test_none_good_is_an_error(run):
  for step in ('10', '20'):
    (run / 'checkpoints' / step / 'config.gin').write_text('x')
  with pytest.raises(checkpoint.CheckpointError, match='10.*') as error:
    read(run)
  assert not isinstance(error.value, checkpoint.NotFoundError)


def test_nothing_there_is_not_found(tmp_path):
  assert checkpoint.steps(tmp_path / 'absent') == []
  for step in ('latest', 'best', 3):
    with pytest.raises(checkpoint.NotFoundError):
      read(tmp_path, step)


def test_best_without_metrics_names_the_steps(tmp_path):
  save(tmp_path, 7)
  with pytest.raises(checkpoint.NotFoundError, match=r'\[7\]'):
    read(tmp_path, 'best')


def test_stray_and_partial_entries_are_absent(run, warned):
  root = run / 'checkpoints'
  for name in ('30', '040', 'notes', '.writing-50', '60.orbax-tmp', '²'):
    (root / name).mkdir()
  (root / '70').write_text('a file')
  (root / '040' / 'manifest.json').write_text('{}')
  assert checkpoint.steps(run) == [10, 20]
  assert read(run)[1]['step'] == 20 and not warned


def test_stray_files_inside_do_no_harm(run):
  (run / 'checkpoints' / '20' / '.DS_Store').write_text('x')
  (run / 'checkpoints' / '20' / 'state' / '.DS_Store').write_text('x')
  assert_equal(read(run)[0], make_state(20))


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


# Saving under trouble.


@pytest.mark.parametrize('max_bytes', [64, 2000])
def test_full_disk_leaves_the_old_and_no_temporary(run, capfd, max_bytes):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
  try:
    with pytest.raises(
      checkpoint.CheckpointError,
      match='cannot save step 30 in .*run a/checkpoints: File too large$',
    ):
      save(run, 30)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert capfd.readouterr() == ('', '')
  assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['10', '20']
  assert_equal(read(run)[0], make_state(20))
  save(run, 30)
  assert_equal(read(run)[0], make_state(30))


def test_unwritable_work_dir_is_named(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(checkpoint.CheckpointError, match='file/run'):
    save(tmp_path / 'file' / 'run', 1)
  with (
    pytest.raises(checkpoint.CheckpointError, match='file/run'),
    checkpoint.lock(tmp_path / 'file' / 'run'),
  ):
    pass


def test_metadata_that_is_not_json_leaves_nothing(tmp_path):
  with pytest.raises(TypeError):
    checkpoint.save(
      tmp_path, 1, make_state(1), config='', metadata={'a': object()}
    )
  assert list((tmp_path / 'checkpoints').iterdir()) == []


@pytest.mark.parametrize(
  'module, function, call',
  [
    (checkpoint_files, 'sync_and_hash', 1),
    (checkpoint_files, 'manifest_text', 1),
    (checkpoint_files, 'sync_directory', 1),
    (checkpoint, '_remove', 2),  # before the two renames
    (checkpoint, '_remove', 3),  # after them
  ],
)
def test_interrupt_in_a_save_keeps_a_good_one(
  run, monkeypatch, module, function, call
):
  calls = itertools.count(1)
  real = getattr(module, function)

  def interrupted(*args):
    if next(calls) == call:
      raise KeyboardInterrupt
    return real(*args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(module, function, interrupted)
    save(run, 20, metric=1.0)
  checkpoint.clean(run)
  assert sorted(p.name for p in (run / 'checkpoints').iterdir()) == ['10', '20']
  assert_equal(read(run, 20)[0], make_state(20))


def test_clean_removes_only_unfinished_work(run):
  root = run / 'checkpoints'
  for name in ('.writing-30', '.deleting-5', '.replaced-20', '.mine-1'):
    (root / name).mkdir()
  (root / '.replaced-20' / 'x').write_text('x')
  checkpoint.clean(run)
  assert sorted(p.name for p in root.iterdir()) == ['.mine-1', '10', '20']


def test_clean_brings_back_a_half_replaced_step(run):
  root = run / 'checkpoints'
  (root / '20').rename(root / '.replaced-20')
  checkpoint.clean(run)
  assert_equal(read(run)[0], make_state(20))


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


# Hostile manifests.


@pytest.mark.parametrize(
  'name',
  ['../../../secret', '/etc/passwd', 'state/../../x', 'state//x', 'state', ''],
)
def test_names_cannot_leave_the_checkpoint(run, name):
  step_dir = run / 'checkpoints' / '20'
  files = json.loads((step_dir / 'manifest.json').read_text())['files']
  rewrite(step_dir, files={**files, name: {'sha256': '0', 'size': 0}})
  with pytest.raises(checkpoint.CheckpointError, match='names'):
    checkpoint.verify(run, 20)


@pytest.mark.parametrize(
  'changes',
  [
    {'files': {}},
    {'files': []},
    {'files': {'config.gin': 3}},
    {'step': 10},
    {'format': 99},
    {'metric': 'low'},
  ],
)
def test_malformed_manifest_is_a_clean_error(run, changes):
  rewrite(run / 'checkpoints' / '20', **changes)
  with pytest.raises(checkpoint.CheckpointError, match='manifest.json'):
    checkpoint.verify(run, 20)


@pytest.mark.parametrize(
  'text', [b'', b'[]', b'{' * 9000, b'[' * 99999, b'\xff', b'1' * 9999]
)
def test_manifest_that_is_no_json_is_a_clean_error(run, text):
  (run / 'checkpoints' / '20' / 'manifest.json').write_bytes(text)
  with pytest.raises(checkpoint.CheckpointError, match='manifest.json'):
    checkpoint.manifest(run, 20)


def test_symlinked_file_is_refused(run):
  config = run / 'checkpoints' / '20' / 'config.gin'
  config.rename(run / 'elsewhere')
  config.symlink_to(run / 'elsewhere')
  with pytest.raises(checkpoint.CheckpointError, match='config.gin'):
    checkpoint.config(run, 20)


# One trainer.


def test_second_trainer_is_refused_by_host_and_pid(tmp_path):
  with (
    checkpoint.lock(tmp_path),
    pytest.raises(checkpoint.CheckpointError, match=f'pid {os.getpid()}'),
    checkpoint.lock(tmp_path),
  ):
    pass
  with checkpoint.lock(tmp_path):
    pass


def test_stale_lock_is_recovered(tmp_path):
  (tmp_path / 'trainer.lock').write_text('host gone, pid 1\n')
  with checkpoint.lock(tmp_path):
    text = (tmp_path / 'trainer.lock').read_text()
  assert 'gone' not in text and 'pid' in text


@pytest.mark.filterwarnings('ignore:.*fork')
def test_forked_worker_does_not_hold_the_lock(tmp_path):
  with checkpoint.lock(tmp_path):
    child = os.fork()
    if not child:
      os._exit(len(work_dir_lock._held_locks))
  assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize('leaf', [3, jax.random.key(0)])
def test_only_arrays_of_numbers_are_saved(tmp_path, leaf):
  with pytest.raises(TypeError, match='params/x'):
    checkpoint.save(
      tmp_path, 1, {'params': {'x': leaf}}, config='', metadata={}
    )
