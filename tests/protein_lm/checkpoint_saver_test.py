"""Saves in the background: what the caller sees, waits for and is told."""

import hashlib
import pathlib
import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import (
  checkpoint,
  checkpoint_files,
  checkpoint_folder,
  checkpoint_saver,
)


def make_state(step):
  return {'params': {'w': jnp.full((300, 40), step), 'b': jnp.arange(3.0)}}


def save(saver, step, metric=None):
  state = make_state(step)
  saver.save(step, state, config='', metadata={}, metric=metric)


def stored(work_dir, step='latest'):
  return checkpoint.read_arrays(work_dir, step)['w'][0, 0]


@pytest.fixture
def gate(monkeypatch):
  """Holds back the renaming of checkpoints until it is set."""
  event, publish = threading.Event(), checkpoint_folder.publish

  def gated(*args):
    assert event.wait(60)
    publish(*args)

  monkeypatch.setattr(checkpoint_folder, 'publish', gated)
  yield event
  event.set()


def test_the_state_may_be_donated_at_once(tmp_path):
  step = jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)
  state = {'params': {str(i): jnp.full(99_999, i + 1.0) for i in range(9)}}
  with checkpoint.Saver(tmp_path, keep=1) as saver:
    saver.save(1, state, config='', metadata={})
    for _ in range(3):
      state = jax.block_until_ready(step(state))
  for name, array in checkpoint.read_arrays(tmp_path).items():
    np.testing.assert_array_equal(array, int(name) + 1.0)


def test_save_returns_before_the_checkpoint_exists(tmp_path, gate):
  with checkpoint.Saver(tmp_path, keep=1) as saver:
    save(saver, 1)
    saver.check()
    assert saver.is_saving and saver.latest is None
    gate.set()
    saver.wait()
    assert not saver.is_saving and saver.latest == 1


def test_a_second_save_waits_and_says_so(tmp_path, gate, warned, monkeypatch):
  monkeypatch.setattr(checkpoint_saver, '_SLOW_SECONDS', 0.05)
  with checkpoint.Saver(tmp_path, keep=2) as saver:
    save(saver, 1)
    threading.Timer(0.2, gate.set).start()
    save(saver, 2)
    assert checkpoint.steps(tmp_path)[0] == 1
    assert saver.blocked_seconds > 0.05
  assert checkpoint.steps(tmp_path) == [1, 2]
  (warning,) = warned
  assert 'at step 2 for the checkpoint of step 1' in warning


def test_newest_and_best_are_kept(tmp_path):
  with checkpoint.Saver(tmp_path, keep=2) as saver:
    for step, metric in [(1, 3.0), (2, 2.0), (3, 2.5), (4, 2.6), (5, None)]:
      save(saver, step, metric)
  assert checkpoint.steps(tmp_path) == [2, 4, 5]


def test_keep_below_one_is_refused(tmp_path):
  with pytest.raises(ValueError, match='keep must be at least 1, got 0'):
    checkpoint.Saver(tmp_path, keep=0)


def test_a_full_disk_is_told_once_and_saving_goes_on(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with checkpoint.Saver(tmp_path, keep=2) as saver:
    save(saver, 1)
    saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
      save(saver, 2)
      saver._thread.join()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(
      checkpoint.CheckpointError, match='cannot save step 2 .*File too large'
    ):
      saver.check()
    saver.check()
    assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['1']
    assert stored(tmp_path) == 1
    save(saver, 3)
  assert checkpoint.steps(tmp_path) == [1, 3]


def test_storage_that_gives_back_something_else_is_told(tmp_path, monkeypatch):
  with checkpoint.Saver(tmp_path, keep=1) as saver:
    save(saver, 1)
    saver.wait()
    real = checkpoint_files.sync_and_hash

    def lying(path):
      facts = real(path)
      if path.name == 'config.gin':
        path.write_text('y')
      return facts

    monkeypatch.setattr(checkpoint_files, 'sync_and_hash', lying)
    saver.save(2, make_state(2), config='x', metadata={})
    with pytest.raises(checkpoint.CheckpointError, match='config.gin differs'):
      saver.wait()
  assert checkpoint.steps(tmp_path) == [1]


def test_the_end_waits_and_raises(tmp_path):
  (tmp_path / 'file').write_text('')
  saver = checkpoint.Saver(tmp_path, keep=1)
  with saver:
    save(saver, 1)
  assert checkpoint.steps(tmp_path) == [1]
  with (
    pytest.raises(checkpoint.CheckpointError, match='file/run'),
    checkpoint.Saver(tmp_path / 'file' / 'run', keep=1) as saver,
  ):
    save(saver, 1)


@pytest.mark.parametrize('error', [KeyError('mine'), KeyboardInterrupt()])
def test_an_error_of_the_body_is_not_hidden(
  tmp_path, monkeypatch, warned, error
):
  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(checkpoint_files, 'write_manifest', full)
  with (
    pytest.raises(type(error)),
    checkpoint.Saver(tmp_path, keep=1) as saver,
  ):
    save(saver, 1)
    raise error
  (warning,) = warned
  assert 'cannot save step 1' in warning and 'No space left' in warning
  assert list((tmp_path / 'checkpoints').iterdir()) == []


def test_metadata_is_checked_before_anything_is_written(tmp_path):
  with checkpoint.Saver(tmp_path, keep=1) as saver:
    for metadata in ({'a': object()}, {'a': float('nan')}):
      with pytest.raises((TypeError, ValueError)):
        saver.save(1, make_state(1), config='', metadata=metadata)
  assert list(tmp_path.iterdir()) == []


def test_a_settled_file_is_hashed_once(tmp_path, monkeypatch):
  with checkpoint.Saver(tmp_path, keep=1) as saver:
    save(saver, 1)
  monkeypatch.setattr(checkpoint_files, '_SETTLED_NS', 0)
  hashed, digest = [], hashlib.file_digest

  def counting(file, kind):
    hashed.append(file.name)
    return digest(file, kind)

  monkeypatch.setattr(hashlib, 'file_digest', counting)
  checkpoint.choose(tmp_path)
  checkpoint.config(tmp_path, 1)
  checkpoint.restore(tmp_path, make_state(0))
  assert len(hashed) == len(set(hashed)) > 3
  path = pathlib.Path(tmp_path, 'checkpoints', '1', 'config.gin')
  path.write_text('x')
  with pytest.raises(checkpoint.CheckpointError, match='config.gin'):
    checkpoint.choose(tmp_path, 1)
