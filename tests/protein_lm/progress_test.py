"""Sums arrive one step late and add up to the same records after a resume."""

import time

import pytest

from protein_lm.progress import MAX_SKIPPED_STEPS, Progress


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
    with pytest.raises(FloatingPointError, match='no finite gradient'):
      progress.add(sums())


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


def test_the_share_of_the_time_spent_waiting_for_data_is_recorded():
  with Progress(0, 10, 'causal', {}) as progress:
    progress.add(sums())
    progress.add(sums())
    with progress.waiting_for_data():
      time.sleep(0.02)
    progress.add(sums())
    share = progress.take_record()['train/data_wait_per_sec']
    progress.add(sums())
    progress.add(sums())
    assert 0.5 < share <= 1
    assert progress.take_record()['train/data_wait_per_sec'] == 0
