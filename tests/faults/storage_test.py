"""Storage that fails: torn, flipped, full, hostile, contested, killed saves.

What is left is the last good checkpoint, or one sentence that names the file.
"""

import contextlib
import ctypes
import itertools
import json
import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from protein_lm import (
  checkpoint,
  checkpoint_arrays,
  checkpoint_files,
  checkpoint_folder,
  work_dir_lock,
)


def make_state(step):
  weight = jax.random.normal(jax.random.key(step), (21, 40))
  return {'params': {'w': weight, 'b': jnp.full(3, step)}}


def save(work_dir, step, metric=None):
  state = make_state(step)
  text = 'FlaxModel.num_layers = 2\n'
  checkpoint.save(
    work_dir, step, state, config=text, metadata={}, metric=metric
  )


def read(work_dir, step='latest'):
  return checkpoint.restore(work_dir, make_state(0), step)


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def names(run):
  return sorted(path.name for path in (run / 'checkpoints').iterdir())


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


def files_of(step_dir):
  return sorted(p for p in step_dir.rglob('*') if p.is_file())


def rewrite(step_dir, **changes):
  """Changes a manifest as an attacker would, with a matching hash."""
  path = step_dir / 'manifest.json'
  content = {**json.loads(path.read_text()), **changes}
  content.pop('sha256')
  path.write_text(checkpoint_files.manifest_text(content))


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
  for i in range(0, len(good), 7):
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
  assert names(run) == ['10', '20']
  assert_equal(read(run)[0], make_state(20))
  save(run, 30)
  assert_equal(read(run)[0], make_state(30))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 1 MB."""
  libc = ctypes.CDLL(None, use_errno=True)
  path = os.fsencode(tmp_path)
  if libc.mount(b'tmpfs', path, b'tmpfs', 0, b'size=1m'):
    pytest.skip(f'mounting: {os.strerror(ctypes.get_errno())}')
  yield tmp_path
  libc.umount2(path, 2)


def test_a_disk_that_is_full_in_truth(small_disk):
  save(small_disk, 10)
  filler = small_disk / 'filler'
  with pytest.raises(OSError), filler.open('wb', buffering=0) as file:
    while file.write(bytes(1000)):
      pass
  with pytest.raises(
    checkpoint.CheckpointError, match='step 20 .*No space left on device'
  ):
    save(small_disk, 20)
  assert names(small_disk) == ['10']
  assert_equal(read(small_disk)[0], make_state(10))
  filler.unlink()
  save(small_disk, 20)
  assert_equal(read(small_disk)[0], make_state(20))


def test_unwritable_work_dir_is_named(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(checkpoint.CheckpointError, match='file/run'):
    save(tmp_path / 'file' / 'run', 1)
  with (
    pytest.raises(checkpoint.CheckpointError, match='file/run'),
    checkpoint.lock(tmp_path / 'file' / 'run'),
  ):
    pass


@pytest.mark.parametrize(
  'module, function, call',
  [
    (checkpoint_files, 'sync_and_hash', 1),
    (checkpoint_files, 'manifest_text', 1),
    (checkpoint_files, 'sync_directory', 1),
    (checkpoint_folder, '_remove', 1),  # before the two renames
    (checkpoint_folder, '_remove', 2),  # after them
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
  assert names(run) == ['10', '20']
  assert_equal(read(run, 20)[0], make_state(20))


def test_a_kill_anywhere_in_a_save_leaves_a_good_checkpoint(
  run, tmp_path, monkeypatch
):
  """Copies the folder at each change of it, as a kill there would leave it."""
  copies = []

  def copy():
    copies.append(tmp_path / f'killed {len(copies)}')
    # Files that orbax renames meanwhile are missing, as in a kill.
    with contextlib.suppress(shutil.Error):
      shutil.copytree(run, copies[-1])

  def copying(function):
    def wrapped(*args, **kwargs):
      copy()
      result = function(*args, **kwargs)
      copy()
      return result

    return wrapped

  with monkeypatch.context() as patch:
    for owner, name in (
      (checkpoint_arrays, 'start_writing'),
      (checkpoint_arrays, 'finish_writing'),
      (checkpoint_files, 'write_manifest'),
      (pathlib.Path, 'rename'),
      (pathlib.Path, 'write_text'),
      (checkpoint_folder, '_remove'),
    ):
      patch.setattr(owner, name, copying(getattr(owner, name)))
    with checkpoint.Saver(run, keep=1) as saver:
      saver.save(20, make_state(21), config='x = 1', metadata={}, metric=1.0)
  assert names(run) == ['20']
  num_old = 0
  for copy in map(pathlib.Path, copies):
    checkpoint.clean(copy)
    state, manifest = read(copy)
    assert manifest['step'] == 20
    is_old = manifest['metric'] == 2.75
    assert_equal(state, make_state(20 if is_old else 21))
    assert all(name.isdecimal() for name in names(copy))
    num_old += is_old
  assert 0 < num_old < len(copies)


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


# Hostile descriptions of arrays.


def claim(run, shape, chunks):
  """Rewrites step 20 so that params/w claims a shape, and hashes agree."""
  step_dir = run / 'checkpoints' / '20'
  spec = {
    'driver': 'zarr',
    'kvstore': {
      'driver': 'ocdbt',
      'base': f'file://{step_dir}/state/',
      'path': 'params/w/',
    },
    'metadata': {'shape': shape, 'chunks': chunks, 'dtype': '<f4'},
  }
  tensorstore.open(spec, create=True, delete_existing=True).result()
  (step_dir / 'manifest.json').unlink()
  checkpoint_files.write_manifest(step_dir, 20, None, {})


def test_a_claim_of_a_petabyte_is_refused_unread(run):
  claim(run, [10**8, 10**7], [1, 1])
  assert checkpoint.stored_shapes(run, 20)['params/w'].shape == (10**8, 10**7)
  with pytest.raises(checkpoint.CheckpointError, match='4,000,000 GB'):
    checkpoint.read_arrays(run, 20)
  with pytest.raises(checkpoint.MismatchError, match='params/w'):
    read(run, 20)
  huge = {'params': {**make_state(0)['params']}}
  huge['params']['w'] = jax.ShapeDtypeStruct((10**8, 10**7), jnp.float32)
  with pytest.raises(checkpoint.CheckpointError, match='4,000,000 GB'):
    checkpoint.restore(run, huge, 20)


def test_a_chunk_larger_than_its_array_is_refused(run):
  claim(run, [21, 40], [10**8, 10**7])
  with pytest.raises(checkpoint.CheckpointError, match='claims chunks'):
    read(run, 20)


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


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
  (tmp_path / 'mine').write_text('precious')
  (tmp_path / 'trainer.lock').symlink_to(tmp_path / 'mine')
  with (
    pytest.raises(checkpoint.CheckpointError, match='cannot use work_dir'),
    checkpoint.lock(tmp_path),
  ):
    pass
  assert (tmp_path / 'mine').read_text() == 'precious'


@pytest.mark.filterwarnings('ignore:.*fork')
def test_forked_worker_does_not_hold_the_lock(tmp_path):
  with checkpoint.lock(tmp_path):
    child = os.fork()
    if not child:
      os._exit(len(work_dir_lock._held_locks))
  assert os.waitpid(child, 0)[1] == 0
