"""How a run ends: at its last step, in time, or for want of progress."""

import pytest

from protein_lm import checkpoint, config, cores, experiment, metrics, status
from protein_lm.time_budget import TimeBudget
from protein_lm.timings import Timings

ATTENTION = 'FlaxModel.attention_fn = @exact_attention()'


@pytest.fixture(autouse=True)
def _clear_gin():
  config.register()
  yield
  config.clear()


def train(work_dir, fasta_60, *bindings, **arguments):
  config.clear()
  config.parse(
    ['configs/tiny.gin'], [f"data.source = '{fasta_60}'", ATTENTION, *bindings]
  )
  experiment.run_experiment(str(work_dir), **arguments)


@pytest.fixture
def machine(monkeypatch):
  """A machine that takes a minute a step, in a process just started."""
  measured = []

  def measure(*_, **__):
    measured.append(Timings(step=60.0))
    return measured[-1]

  monkeypatch.setattr(experiment.timings, 'measure', measure)
  age = [0.0]
  monkeypatch.setattr(
    experiment,
    'TimeBudget',
    lambda minutes: TimeBudget(minutes, lambda: age[0]),
  )
  return age


def test_minutes_fix_the_steps_and_the_run_keeps_them(
  tmp_path, fasta_60, machine, capsys
):
  minutes = ['experiment.num_train_steps = None', 'experiment.max_minutes = 6']
  train(tmp_path, fasta_60, *minutes)
  assert '5 steps of 60.000 s fit in 6 minutes' in capsys.readouterr().out
  metadata = checkpoint.manifest(tmp_path, 5)['metadata']
  assert metadata['num_train_steps'] == 5
  machine[0] = 200.0  # starting took longer this time
  train(tmp_path, fasta_60, *minutes)
  assert 'is finished: 5 of 5' in capsys.readouterr().out


def test_a_run_out_of_time_is_evaluated_saved_and_goes_on(
  tmp_path, fasta_60, machine, capsys
):
  both = ['experiment.num_train_steps = 5', 'experiment.max_minutes = 6']
  machine[0] = 320.0  # of 360 seconds
  train(tmp_path, fasta_60, *both)
  assert 'out of time: step 1 of 5 saved' in capsys.readouterr().out
  assert 'validation/loss' in metrics.read(tmp_path)[-1]
  assert checkpoint.steps(tmp_path) == [1]
  machine[0] = 0.0
  train(tmp_path, fasta_60, *both)
  assert 'done: step 5 of 5' in capsys.readouterr().out


def test_a_run_on_a_cpu_takes_its_cores(
  tmp_path, fasta_60, capsys, monkeypatch
):
  monkeypatch.setattr(cores, '_num_devices', 2)
  train(tmp_path, fasta_60, 'experiment.num_train_steps = 1')
  assert 'on 2 x cpu (2 data), from scratch' in capsys.readouterr().out


def test_a_run_without_progress_ends_and_stays_ended(
  tmp_path, fasta_60, capsys
):
  bindings = [
    'EarlyStop.patience_evals = 1',
    'EarlyStop.min_delta = 100.0',
    'experiment.eval_every_steps = 2',
  ]
  train(tmp_path, fasta_60, *bindings)
  out = capsys.readouterr().out
  assert 'stopped early: step 4 of 6' in out
  assert checkpoint.manifest(tmp_path, 4)['metric'] is not None
  train(tmp_path, fasta_60, *bindings)
  assert 'is finished: 4 of 6' in capsys.readouterr().out


def test_a_run_is_seen_while_it_runs(tmp_path, fasta_60, monkeypatch):
  states, update = [], status.Status.update

  def watched(self, **fields):
    states.extend([fields['state']] if 'state' in fields else [])
    update(self, **fields)

  monkeypatch.setattr(status.Status, 'update', watched)
  train(tmp_path, fasta_60, profile_steps=(3, 4))
  assert states[:2] == ['compiling', 'running']
  assert {'evaluating', 'saving'} < set(states)
  found = status.read(tmp_path)
  assert (found['state'], found['last_checkpoint_step']) == ('done', 6)
  assert 'train/loss' in found['metrics']
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_steps_or_minutes_must_be_given(tmp_path, fasta_60):
  with pytest.raises(ValueError, match='num_train_steps or .*max_minutes must'):
    train(tmp_path, fasta_60, 'experiment.num_train_steps = None')
