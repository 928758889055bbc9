"""status.json says where a run stands, at any moment, whatever happened."""

import json
import os
import subprocess
import sys

import pytest

from protein_lm import status
from protein_lm.status import Status


def test_a_run_says_that_it_starts(tmp_path):
  with Status(tmp_path):
    found = status.read(tmp_path)
  assert found['state'] == 'starting' and found['pid'] == os.getpid()


def test_updates_keep_what_they_do_not_name(tmp_path):
  with Status(tmp_path) as run:
    run.update(state='running', step=5, metrics={'train/loss': 2.0})
    run.update(metrics={'validation/loss': 3.0}, last_checkpoint_step=5)
    found = status.read(tmp_path)
  assert found['step'] == found['last_checkpoint_step'] == 5
  assert found['metrics'] == {'train/loss': 2.0, 'validation/loss': 3.0}


def test_an_error_is_one_line_and_the_state_failed(tmp_path):
  with pytest.raises(OSError), Status(tmp_path):
    raise OSError('no\n  space')
  found = status.read(tmp_path)
  assert (found['state'], found['error']) == ('failed', 'no space')


def test_an_error_without_words_has_its_name(tmp_path):
  with pytest.raises(KeyError), Status(tmp_path):
    raise KeyError
  assert status.read(tmp_path)['error'] == 'KeyError'


def test_a_key_pressed_interrupts(tmp_path):
  with pytest.raises(KeyboardInterrupt), Status(tmp_path):
    raise KeyboardInterrupt
  assert status.read(tmp_path)['state'] == 'interrupted'


def test_a_run_that_leaves_without_a_word_was_interrupted(tmp_path):
  with Status(tmp_path) as run:
    run.update(state='running', eta_seconds=3.0)
  found = status.read(tmp_path)
  assert (found['state'], found['eta_seconds']) == ('interrupted', None)


def test_done_stays_done(tmp_path):
  with Status(tmp_path) as run:
    run.update(state='done')
  assert status.read(tmp_path)['state'] == 'done'


def test_a_run_that_goes_on_knows_what_was_saved(tmp_path):
  with Status(tmp_path) as run:
    run.update(state='done', step=7, last_checkpoint_step=7)
  with Status(tmp_path):
    found = status.read(tmp_path)
  assert (found['step'], found['last_checkpoint_step']) == (7, 7)
  assert found['error'] is None


def test_a_damaged_file_is_replaced(tmp_path):
  (tmp_path / status.FILE_NAME).write_text('{"state"')
  with pytest.raises(ValueError, match='is damaged'):
    status.read(tmp_path)
  with Status(tmp_path):
    assert status.read(tmp_path)['state'] == 'starting'


def test_nan_is_null(tmp_path):
  with Status(tmp_path) as run:
    run.update(metrics={'train/loss': float('nan')})
    text = (tmp_path / status.FILE_NAME).read_text()
  assert json.loads(text)['metrics'] == {'train/loss': None}
  assert 'NaN' not in text


@pytest.mark.parametrize('fields', [{'state': 'happy'}, {'stage': 1}])
def test_unknown_words_are_refused(tmp_path, fields):
  with Status(tmp_path) as run, pytest.raises(ValueError, match='is no'):
    run.update(**fields)


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
  with Status(tmp_path) as run:
    before = status.read(tmp_path)

    def torn(path, text):
      with path.open('w') as file:
        file.write(text[:10])
      raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_text', torn)
    run.update(step=3)  # a warning: the run itself needs no status
    assert status.read(tmp_path) == before


def test_a_process_that_is_not_primary_writes_nothing(tmp_path):
  with Status(tmp_path, is_primary=False) as run:
    run.update(state='running')
  assert list(tmp_path.iterdir()) == []


def test_a_killed_run_is_lost(tmp_path):
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  with Status(tmp_path) as run:
    run.update(state='running')
    found = status.read(tmp_path)
  assert not status.is_lost(found)
  assert status.is_lost({**found, 'pid': process.pid})
  assert not status.is_lost({**found, 'pid': process.pid, 'host': 'elsewhere'})
  assert not status.is_lost({**found, 'pid': process.pid, 'state': 'done'})
