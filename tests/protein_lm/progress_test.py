"""Sums arrive one step late and add up to the same records after a resume."""

import io

import pytest

from protein_lm.early_stop import Best
from protein_lm.progress import MAX_SKIPPED_STEPS, Progress, memory_bytes


def sums(loss=2.0, skipped=0.0):
  return {
    'loss': loss,
    'correct': 1.0,
    'num_tokens': 4.0,
    'residue_loss': loss,
    'num_residues': 4.0,
    'grad_norm': 0.5,
    'skipped_steps': skipped,
  }


class Fetched(Exception):
  """Raised where a sum is waited for."""


class Unready:
  def __float__(self):
    raise Fetched


def test_a_step_is_not_waited_for_before_the_next_one():
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add({'loss': Unready()})
    with pytest.raises(Fetched):
      progress.add(sums())


def test_a_record_is_the_mean_over_its_tokens():
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add(sums(loss=2.0))
    progress.add(sums(loss=6.0))
    record = progress.take_record()
  assert record['train/loss'] == 1.0
  assert record['train/num_tokens'] == 8
  assert record['train/grad_norm'] == 0.5


def test_a_window_cut_by_a_checkpoint_goes_on():
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add(sums(loss=2.0))
    saved = progress.saved()
  with Progress(1, 10, 'causal', saved) as progress:
    progress.add(sums(loss=6.0))
    assert progress.take_record()['train/loss'] == 1.0
    assert progress.num_tokens == 8


def test_too_many_skipped_steps_in_a_row_stop_the_run():
  with Progress(0, 99, 'causal', {}) as progress:
    for _ in range(MAX_SKIPPED_STEPS):
      progress.add(sums(skipped=1.0))
    with pytest.raises(FloatingPointError, match='10 steps in a row'):
      progress.add(sums())


def test_steps_without_a_counted_token_never_stop_the_run():
  empty = sums(skipped=1.0) | {'nonfinite_steps': 0.0, 'spiked_steps': 0.0}
  with Progress(0, 99, 'causal', {}) as progress:
    for _ in range(2 * MAX_SKIPPED_STEPS):
      progress.add(empty)
    assert progress.saved()['skipped_steps'] == 2 * MAX_SKIPPED_STEPS


def test_one_good_step_forgives_the_skipped_ones():
  with Progress(0, 99, 'causal', {}) as progress:
    for i in range(3 * MAX_SKIPPED_STEPS):
      progress.add(sums(skipped=float(i % 3 > 0)))
    progress.saved()
    assert progress.skipped_steps == 2 * MAX_SKIPPED_STEPS


def test_skipped_steps_do_not_move_the_learning_rate():
  with Progress(0, 9, 'causal', {}) as progress:
    progress.add(sums())
    progress.add(sums(skipped=1.0))
    progress.take_record()
    assert progress.learning_rate(lambda step: 10 * step) == 0


def test_without_a_terminal_a_record_is_a_line(capsys):
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add(sums())
    progress.add(sums())
    progress.show(progress.take_record())
  out = capsys.readouterr().out
  assert out.startswith('step 2/10, train loss 0.500')
  assert out.rstrip().endswith('left')


def test_rates_leave_out_evaluation_and_checkpoints(clock):
  with Progress(0, 10, 'causal', {}, clock=clock) as progress:
    progress.add(sums())
    clock.now += 2
    progress.add(sums())
    progress.take_record()
    for part, seconds in (('evaluation', 5), ('checkpoint', 1), ('data', 1)):
      with progress.timing(part):
        clock.now += seconds
    progress.add(sums())
    clock.now += 3
    record = progress.take_record()
  assert record['train/tokens_per_sec'] == 1.0
  assert record['train/steps_per_sec'] == 0.25
  assert progress.step_seconds == 4
  assert record['train/evaluation_per_sec'] == 0.5
  assert record['train/checkpoint_per_sec'] == 0.1
  assert record['train/data_wait_per_sec'] == 0.1
  assert record['train/compute_per_sec'] == pytest.approx(0.3)


def test_the_first_step_compiles_outside_the_time(clock):
  with Progress(0, 10, 'causal', {}, clock=clock) as progress:
    clock.now += 100
    progress.add(sums())
    clock.now += 4
    assert progress.take_record()['train/tokens_per_sec'] == 1.0


def test_an_evaluation_does_not_pay_for_the_step_before_it():
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add({'loss': Unready()})
    with pytest.raises(Fetched), progress.timing('evaluation'):
      pass


def test_waiting_for_data_does_not_wait_for_the_step():
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add({'loss': Unready()})
    with progress.timing('data'):
      pass


def test_mfu_is_of_all_devices_and_of_training(clock):
  with Progress(
    0,
    10,
    'causal',
    {},
    flops_of=lambda tokens, positions: 10 * tokens + positions,
    peak_flops=100.0,
    clock=clock,
  ) as progress:
    for _ in range(2):
      progress.add({**sums(), 'num_unpadded': 5.0, 'sum_positions': 10.0})
    clock.now += 2
    with progress.timing('evaluation'):
      clock.now += 70
    record = progress.take_record()
    assert record['train/mfu'] == pytest.approx(120 / (2 * 100))
    assert 'mfu 60.0%' in progress.summary('done', 'D', 10.0, Best())


def test_why_steps_were_skipped_is_counted_over_the_whole_run():
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add({**sums(skipped=1.0), 'spiked_steps': 1.0})
    saved = progress.saved()
  with Progress(1, 10, 'causal', saved) as progress:
    progress.add({**sums(skipped=1.0), 'nonfinite_steps': 1.0})
    record = progress.take_record()
  assert record['train/skipped_steps'] == 2
  assert record['train/spiked_steps'] == 1
  assert record['train/nonfinite_steps'] == 1


def test_norms_are_means_over_the_steps_that_were_taken():
  with Progress(0, 10, 'causal', {}) as progress:
    for update in (1.0, 3.0):
      progress.add({**sums(), 'update_norm': update, 'param_norm': 8.0})
    skipped = {**sums(skipped=1.0), 'grad_norm': 0.0}
    progress.add({**skipped, 'update_norm': 0.0, 'param_norm': 0.0})
    record = progress.take_record()
  assert record['train/update_norm'] == 2
  assert record['train/param_norm'] == 8


def test_recompilations_are_told_when_they_are_counted():
  with Progress(0, 9, 'causal', {}, recompilations=lambda: 3) as progress:
    progress.add(sums())
    assert progress.take_record()['train/recompilations'] == 3


def test_memory_in_use_is_recorded():
  with Progress(0, 9, 'causal', {}) as progress:
    progress.add(sums())
    assert progress.take_record()['train/memory_bytes'] > 1e7


def test_the_fullest_device_is_recorded_where_devices_tell(monkeypatch):
  class Device:
    def __init__(self, peak):
      self.peak = peak

    def memory_stats(self):
      return {'peak_bytes_in_use': self.peak}

  devices = [Device(5), Device(9)]
  monkeypatch.setattr('jax.local_devices', lambda: devices)
  assert memory_bytes()['device_memory_bytes'] == 9


def test_the_time_left_includes_evaluations(clock):
  with Progress(0, 10, 'causal', {}, clock=clock) as progress:
    assert progress.seconds_left is None
    progress.add(sums())
    clock.now += 2
    with progress.timing('evaluation'):
      clock.now += 1
    assert progress.seconds_left == 27


def test_the_summary_is_one_line_with_all_that_counts(clock):
  with Progress(
    4, 6, 'causal', {'num_tokens': 92.0}, recompilations=lambda: 0, clock=clock
  ) as progress:
    for _ in range(2):
      progress.add(sums())
      clock.now += 4
    line = progress.summary('done', 'D', 4.0, Best(2.5, 4))
  assert line == (
    'done: step 6 of 6 saved in D; 2 steps in 8 s; 100 tokens seen in all, '
    '1.50 epochs; 1 tokens/s; best validation loss 2.5000 at step 4; 0 steps '
    'skipped; 0 recompilations.'
  )


def test_a_process_that_is_not_primary_shows_nothing(capsys):
  with Progress(0, 10, 'causal', {}, is_primary=False) as progress:
    progress.add(sums())
    progress.show(progress.take_record())
  captured = capsys.readouterr()
  assert captured.out == captured.err == ''


def test_on_a_terminal_the_bar_shows_loss_speed_and_time_left(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add(sums())
    progress.add(sums())
    progress.show(progress.take_record())
  text = terminal.getvalue()
  assert 'train loss 0.500' in text and 'tokens/s' in text
  assert '2/10 [' in text and '<' in text  # elapsed<left
