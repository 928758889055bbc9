"""Two processes, two devices each, write one checkpoint and agree on it."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
WORKER = r"""
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
port, index, work_dir = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(f'localhost:{port}', 2, index)
from protein_lm import checkpoint, checkpoint_folder

mesh = jax.make_mesh((4,), ('fsdp',))
split, whole = NamedSharding(mesh, P('fsdp')), NamedSharding(mesh, P())
make = jax.jit(
  lambda step: {'params': {'w': jnp.arange(40.0).reshape(8, 5) + step},
                'step': jnp.int32(step)},
  out_shardings={'params': {'w': split}, 'step': whole})

def error_of(function):
  try:
    function()
  except checkpoint.CheckpointError as error:
    return str(error)

with checkpoint.lock(work_dir), checkpoint.Saver(work_dir, keep=2) as saver:
  checkpoint.clean(work_dir)
  assert checkpoint.latest(work_dir) is None
  for step in (1, 2, 3):
    saver.save(step, make(step), config='x = 1', metadata={})
  saver.wait()
  assert checkpoint.steps(work_dir) == [2, 3], checkpoint.steps(work_dir)
  # Another sharding, the same arrays.
  asked = {'params': {'w': jax.ShapeDtypeStruct((8, 5), jnp.float32,
                      sharding=NamedSharding(mesh, P()))},
           'step': jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)}
  state, manifest = checkpoint.restore(work_dir, asked)
  np.testing.assert_array_equal(
    state['params']['w'], np.arange(40.0).reshape(8, 5) + 3)
  assert manifest['step'] == 3
  # What the first process meets, all are told.
  def full(*args):
    raise OSError(28, 'No space left on device')
  real, checkpoint_folder.publish = checkpoint_folder.publish, full
  saver.save(4, make(4), config='', metadata={})
  assert 'No space left' in error_of(saver.wait)
  checkpoint_folder.publish = real
  assert 'no checkpoint of step 9' in error_of(
    lambda: checkpoint.choose(work_dir, 9))
  saver.save(5, make(5), config='', metadata={})
assert checkpoint.latest(work_dir) == 5
print('done')
"""


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    'PYTHONPATH': str(ROOT),
  }
  command = [sys.executable, '-W', 'ignore', '-c', WORKER, str(port)]
  workers = [
    subprocess.Popen(
      [*command, str(index), str(tmp_path / 'run')],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  try:
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  assert all(text.endswith('done\n') for text in outputs), '\n'.join(outputs)

  asked = {
    'params': {'w': jax.ShapeDtypeStruct((8, 5), jnp.float32)},
    'step': jax.ShapeDtypeStruct((), jnp.int32),
  }
  state, _ = checkpoint.restore(tmp_path / 'run', asked, 5)
  np.testing.assert_array_equal(
    state['params']['w'], np.arange(40.0).reshape(8, 5) + 5
  )
  assert int(state['step']) == 5
  assert sorted(p.name for p in (tmp_path / 'run/checkpoints').iterdir()) == [
    '3',
    '5',
  ]
