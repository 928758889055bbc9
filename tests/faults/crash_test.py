"""Runs that are killed, or asked to stop, end like the ones that were not."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from protein_lm import checkpoint, metrics

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 120
BINDINGS = (
  f'experiment.num_train_steps = {NUM_STEPS}',
  'experiment.log_every_steps = 7',
  'experiment.eval_every_steps = 40',
  'experiment.checkpoint_every_steps = 40',
  'FlaxModel.attention_fn = @make_fast_softmax_attention()',
  'make_fast_softmax_attention.nb_features = 16',
  'FlaxModel.dropout_rate = 0.1',
)


@pytest.fixture(scope='module')
def fasta(tmp_path_factory):
  generator = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('fasta') / 'random.fasta'
  letters = list('ACDEFGHIKLMNPQRSTVWY')
  with path.open('w') as file:
    for i in range(60):
      file.write(f'>P{i}\n{"".join(generator.choice(letters, 20 + 2 * i))}\n')
  return path


def start(work_dir, fasta):
  """The trainer in a process of its own, its output in a file beside."""
  command = [sys.executable, '-m', 'protein_lm.train', f'--work_dir={work_dir}']
  command += ['--gin_files=tiny.gin']
  command += [f'--gin_bindings={b}' for b in BINDINGS]
  command += [f"--gin_bindings=data.source = '{fasta}'"]
  flags = os.environ['XLA_FLAGS'].split()
  flags = [f for f in flags if 'device_count' not in f]  # one device
  environment = {**os.environ, 'XLA_FLAGS': ' '.join(flags)}
  with work_dir.with_suffix('.out').open('a') as out:
    return subprocess.Popen(
      command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
    )


def run(work_dir, fasta):
  """Runs to the end; returns what it printed."""
  process = start(work_dir, fasta)
  process.wait(120)
  out = work_dir.with_suffix('.out').read_text()
  assert process.returncode == 0, out
  return out


def signal_when(process, number, condition):
  """Sends a signal as soon as condition() holds."""
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None, 'the run ended before the signal'
    assert time.monotonic() < deadline
    time.sleep(0.001)
  process.send_signal(number)
  process.wait(60)


def final_files(work_dir):
  """The arrays of the last checkpoint by name, and the records of the log."""
  import orbax.checkpoint as ocp

  path = work_dir.resolve() / 'checkpoints' / str(NUM_STEPS) / 'state'
  with ocp.StandardCheckpointer() as checkpointer:
    arrays = jax.tree.map(np.asarray, checkpointer.restore(path))
  records = [
    {k: v for k, v in record.items() if not metrics.is_timed(k)}
    for record in metrics.read(work_dir)
  ]
  return arrays, records


@pytest.fixture(scope='module')
def straight(tmp_path_factory, fasta):
  work_dir = tmp_path_factory.mktemp('runs') / 'straight'
  run(work_dir, fasta)
  return final_files(work_dir)


def test_kill_9_at_three_moments_changes_no_bit(tmp_path, fasta, straight):
  work_dir = tmp_path / 'killed'
  out = work_dir.with_suffix('.out')
  folder = work_dir / 'checkpoints'
  moments = (
    # Compiling the first step.
    lambda: out.exists() and 'from scratch' in out.read_text(),
    # Writing a checkpoint: a temporary folder stands beside the others.
    lambda: (
      folder.is_dir() and any(not p.name.isdecimal() for p in folder.iterdir())
    ),
    # Between two checkpoints.
    lambda: any(r['step'] > 41 for r in metrics.read(work_dir)),
  )
  for moment in moments:
    signal_when(start(work_dir, fasta), signal.SIGKILL, moment)
    assert checkpoint.steps(work_dir)[-1:] != [NUM_STEPS]
  run(work_dir, fasta)

  arrays, records = final_files(work_dir)
  np.testing.assert_equal(arrays, straight[0])
  assert records == straight[1]


@pytest.mark.parametrize(
  'number',
  [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_a_signal_saves_the_step_and_exits_0(tmp_path, fasta, straight, number):
  work_dir = tmp_path / 'stopped'
  process = start(work_dir, fasta)
  signal_when(
    process,
    number,
    lambda: any(r['step'] > 7 for r in metrics.read(work_dir)),
  )
  assert process.returncode == 0
  step = checkpoint.steps(work_dir)[-1]
  assert 7 < step < NUM_STEPS
  out = work_dir.with_suffix('.out').read_text()
  assert f'interrupted: step {step} of {NUM_STEPS} saved' in out
  run(work_dir, fasta)

  arrays, records = final_files(work_dir)
  np.testing.assert_equal(arrays, straight[0])
  assert records == straight[1]
