"""Checkpoints of a live run, each as it appears, until the run ends."""

import json
import os
import socket

import pytest

from protein_lm import checkpoint, follow


class Run:
  """A run whose checkpoints appear while somebody sleeps."""

  def __init__(self, work_dir, events):
    self.work_dir, self.events, self.steps = work_dir, list(events), []
    self.tell('running')

  def tell(self, state, pid=None):
    fields = {
      'state': state,
      'step': 0,
      'num_train_steps': 9,
      'pid': pid or os.getpid(),
      'host': socket.gethostname(),
    }
    (self.work_dir / 'status.json').write_text(json.dumps(fields))

  def sleep(self, seconds):
    assert seconds == follow.SECONDS
    self.events.pop(0)(self)


def save(*steps):
  return lambda run: run.steps.extend(steps)


def end(*steps, **how):
  def event(run):
    run.steps.extend(steps)
    run.tell(**how or {'state': 'done'})

  return event


@pytest.fixture
def follow_run(tmp_path, monkeypatch):
  def follow_events(*events, bad=()):
    run = Run(tmp_path, events)
    monkeypatch.setattr(checkpoint, 'steps', lambda work_dir: list(run.steps))

    def verify(work_dir, step):
      if step in bad:
        raise checkpoint.CheckpointError('damaged')

    monkeypatch.setattr(checkpoint, 'verify', verify)
    return list(follow.follow_steps(tmp_path, run.sleep))

  return follow_events


def test_each_checkpoint_comes_once_and_the_last_one_too(follow_run):
  events = [save(3), save(), save(6, 9), end(12)]
  assert follow_run(*events) == [3, 6, 9, 12]


def test_a_run_whose_process_is_gone_ends(follow_run):
  assert follow_run(save(3), end(state='running', pid=2**22 + 1)) == [3]


def test_a_damaged_checkpoint_is_told_and_left_out(follow_run, capsys):
  assert follow_run(save(3, 6), end(), bad=[3]) == [6]
  assert 'step 3 is left out' in capsys.readouterr().out


def test_waiting_is_told_once_for_each_checkpoint(follow_run, capsys):
  follow_run(save(), save(), save(3), save(), end())
  assert capsys.readouterr().out.count('waiting for the next') == 2


def test_a_run_that_ended_without_a_checkpoint_is_an_error(follow_run):
  with pytest.raises(checkpoint.NotFoundError, match='no checkpoint in'):
    follow_run(end(state='failed'))


def test_a_folder_without_status_ends_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, 'steps', lambda work_dir: [5])
  monkeypatch.setattr(checkpoint, 'verify', lambda work_dir, step: None)
  assert list(follow.follow_steps(tmp_path, None)) == [5]
