"""metrics.jsonl holds each step once, whatever interrupted the run."""

import math
import struct
import sys
import types

import pytest

from protein_lm import metrics


def test_records_come_back(tmp_path):
  with metrics.MetricsLog(tmp_path, 0) as log:
    log.write(5, {'train/loss': 2.5})
    log.write(10, {'train/loss': 2.25, 'validation/loss': 2.75})
  assert metrics.read(tmp_path) == [
    {'step': 5, 'train/loss': 2.5},
    {'step': 10, 'train/loss': 2.25, 'validation/loss': 2.75},
  ]


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
  with metrics.MetricsLog(tmp_path, 0) as log:
    for step in (1, 2, 3):
      log.write(step, {'train/loss': 1.0})
  with metrics.MetricsLog(tmp_path, 2) as log:
    log.write(3, {'train/loss': 0.5})
  assert [r['step'] for r in metrics.read(tmp_path)] == [1, 2, 3]
  assert metrics.read(tmp_path)[-1]['train/loss'] == 0.5


def test_a_torn_last_line_is_dropped(tmp_path):
  (tmp_path / metrics.FILE_NAME).write_text('{"step": 1}\n{"step": 2, "tra')
  with metrics.MetricsLog(tmp_path, 2) as log:
    log.write(3, {})
  assert [r['step'] for r in metrics.read(tmp_path)] == [1, 3]


def test_ratios_of_known_sums():
  sums = {
    'loss': 8 * math.log(4),
    'correct': 2,
    'num_tokens': 8,
    'residue_loss': 6 * math.log(5),
    'num_residues': 6,
  }
  found = metrics.ratios(sums, 'causal')
  assert found['perplexity'] == pytest.approx(4)
  assert found['residue_perplexity'] == pytest.approx(5)
  assert found['accuracy'] == 0.25


def test_a_masked_number_never_bears_a_causal_name():
  sums = {
    'loss': 1.0,
    'correct': 0,
    'num_tokens': 1,
    'residue_loss': 1.0,
    'num_residues': 1,
  }
  found = metrics.ratios(sums, 'masked')
  assert found['masked_residue_perplexity'] == pytest.approx(math.e)
  assert 'perplexity' not in found and 'residue_perplexity' not in found


@pytest.mark.parametrize(
  'name', ['train/tokens_per_sec', 'train/mfu', 'train/device_memory_bytes']
)
def test_what_the_machine_decides_is_timed(name):
  assert metrics.is_timed(name)


@pytest.mark.parametrize('name', ['train/loss', 'step', 'train/skipped_steps'])
def test_what_training_decides_is_not_timed(name):
  assert not metrics.is_timed(name)


def test_a_process_that_is_not_primary_writes_nothing(tmp_path):
  with metrics.MetricsLog(tmp_path, 0, is_primary=False) as log:
    log.write(1, {'train/loss': 1.0})
    log.flush()
  assert list(tmp_path.iterdir()) == []


def events(work_dir):
  """(step, scalars) of TensorBoard's files, oldest file first, then START."""
  from tensorboardX.proto import event_pb2

  for path in sorted((work_dir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      scalars = {v.tag: v.simple_value for v in event.summary.value}
      if event.session_log.status == event_pb2.SessionLog.START:
        scalars = 'START'
      if scalars:
        yield event.step, scalars


def test_tensorboard_forgets_the_steps_after_the_one_resumed_from(
  tmp_path,
):
  with metrics.MetricsLog(tmp_path, 0) as log:
    for step in (1, 2, 3):
      log.write(step, {'train/loss': 1.0})
  for path in (tmp_path / 'tensorboard').iterdir():
    path.rename(path.with_name('events.out.tfevents.0'))  # an older file
  with metrics.MetricsLog(tmp_path, 2) as log:
    log.write(3, {'train/loss': 0.5})
  assert list(events(tmp_path))[-2:] == [
    (3, 'START'),  # what TensorBoard purges from
    (3, {'train/loss': 0.5}),
  ]


def test_weights_and_biases_get_a_copy_under_one_id(tmp_path, monkeypatch):
  runs, logged, finished = [], [], []

  def init(**arguments):
    runs.append(arguments)
    return types.SimpleNamespace(
      log=lambda record, step: logged.append((step, record)),
      finish=lambda exit_code: finished.append(exit_code),
    )

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  for step in (0, 1):
    with metrics.MetricsLog(
      tmp_path, step, wandb_project='p', config_text='a.b = 1'
    ) as log:
      log.write(step + 1, {'train/loss': 1.0})
  assert logged == [(1, {'train/loss': 1.0}), (2, {'train/loss': 1.0})]
  assert finished == [0, 0]
  assert runs[0] == runs[1]
  assert runs[0]['config'] == {'gin': 'a.b = 1'}
  assert len(runs[0]['id']) == 8


def test_weights_and_biases_that_are_not_installed_are_one_sentence(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match='wandb is not installed: pip install'):
    metrics.MetricsLog(tmp_path, 0, wandb_project='p')


def test_writer_does_not_import_torch(monkeypatch):
  for name in [n for n in sys.modules if n.split('.')[0] == 'tensorboardX']:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.delitem(sys.modules, 'torch', raising=False)
  assert metrics._summary_writer().__name__ == 'SummaryWriter'
  assert 'torch' not in sys.modules
