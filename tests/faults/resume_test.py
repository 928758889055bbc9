"""A run that goes on elsewhere, or after any step, ends as the straight one."""

import shutil

import jax
import numpy as np
import pytest

from protein_lm import checkpoint, config, metrics
from protein_lm.experiment import run_experiment

NUM_STEPS = 6
# Everything that a step carries on: moments, schedule, redrawn features, an
# average, parts of batches, dropout, evaluations.
BINDINGS = (
  f'experiment.num_train_steps = {NUM_STEPS}',
  'experiment.log_every_steps = 2',
  'experiment.eval_every_steps = 3',
  'experiment.checkpoint_every_steps = 1',
  f'experiment.keep_checkpoints = {NUM_STEPS}',
  'experiment.ema_decay = 0.9',
  'make_train_step.num_microbatches = 2',
  "make_optimizer.schedule = 'wsd'",
  'FlaxModel.attention_fn = @make_fast_softmax_attention()',
  'make_fast_softmax_attention.nb_features = 8',
  'make_fast_softmax_attention.redraw_features = True',
  'FlaxModel.dropout_rate = 0.1',
)


@pytest.fixture(autouse=True)
def _clear_gin():
  config.register()
  yield
  config.clear()


def train(work_dir, fasta_60, *bindings):
  config.clear()
  config.parse(
    ['configs/tiny.gin'], [f"data.source = '{fasta_60}'", *BINDINGS, *bindings]
  )
  run_experiment(str(work_dir))
  return work_dir


@pytest.fixture(scope='module')
def straight(tmp_path_factory, fasta_60):
  config.register()
  return train(tmp_path_factory.mktemp('runs') / 'straight', fasta_60)


def cut_after(step, straight, work_dir):
  """The folder of the run as if it had ended after a step."""
  shutil.copytree(straight, work_dir)
  for later in checkpoint.steps(work_dir):
    if later > step:
      shutil.rmtree(work_dir / 'checkpoints' / str(later))
  return work_dir


def records(work_dir):
  return [
    {k: v for k, v in record.items() if not metrics.is_timed(k)}
    for record in metrics.read(work_dir)
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  'step',
  range(1, 6),
)
def test_resuming_after_any_step_changes_no_bit(
  tmp_path, fasta_60, straight, step
):
  work_dir = cut_after(step, straight, tmp_path / 'run')
  train(work_dir, fasta_60)
  found, expected = (
    checkpoint.read_arrays(folder, NUM_STEPS, prefix='')
    for folder in (work_dir, straight)
  )
  assert found.keys() == expected.keys()
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert records(work_dir) == records(straight)


@pytest.mark.slow
@pytest.mark.parametrize(
  'bindings',
  [
    ('mesh.data = 2', 'data.num_workers = 1'),
    pytest.param(('mesh.fsdp = 2', 'mesh.tensor = 2'), marks=pytest.mark.slow),
    pytest.param(('mesh.sequence = 4',), marks=pytest.mark.slow),
  ],
)
def test_other_devices_and_workers_go_on_with_the_same_examples(
  tmp_path, fasta_60, straight, bindings
):
  work_dir = cut_after(3, straight, tmp_path / 'run')
  dropout = 'FlaxModel.dropout_rate = 0.1'
  train(work_dir, fasta_60, *bindings, dropout)
  for found, expected in zip(records(work_dir), records(straight), strict=True):
    assert found == pytest.approx(expected, rel=1e-4)
