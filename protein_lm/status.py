"""work_dir/status.json: where a run stands, for scripts.

    {"state": "running", "step": 100, "num_train_steps": 300,
     "eta_seconds": 61.2, "started": "2026-01-31T12:00:00+00:00",
     "updated": "2026-01-31T12:00:40+00:00", "pid": 4711, "host": "node7",
     "last_checkpoint_step": 100, "metrics": {"train/loss": 2.7}, "error": null}

`state` is starting, compiling, running, evaluating, saving, done, interrupted
or failed. The file is replaced in one stroke, so it can be read at any time. A
run that was killed cannot say so: `is_lost` sees that its process is gone, on
the same host; from elsewhere, an `updated` older than a few records tells.
"""

import datetime
import json
import math
import os
import pathlib
import socket
from typing import Any

from absl import logging

FILE_NAME = 'status.json'
STATES = ('starting', 'compiling', 'running', 'evaluating', 'saving')
FINAL_STATES = ('done', 'interrupted', 'failed')


class Status:
  """Writes status.json while entered; an error inside makes it 'failed'.

  Enter it under the lock of the work_dir. A disk that cannot take the file is
  a warning: the run needs it for nothing.
  """

  def __init__(self, work_dir: str | os.PathLike, is_primary: bool = True):
    """Takes the folder of a run.

    Args:
      work_dir: it must exist.
      is_primary: False writes nothing: of several processes one does.
    """
    self._path = pathlib.Path(work_dir) / FILE_NAME
    self._is_primary, self._warned = is_primary, False
    before = _read_or_empty(self._path)
    self._fields = {
      'state': 'starting',
      'step': before.get('step', 0),
      'num_train_steps': None,
      'eta_seconds': None,
      'started': _now(),
      'updated': None,
      'pid': os.getpid(),
      'host': socket.gethostname(),
      'last_checkpoint_step': before.get('last_checkpoint_step'),
      'metrics': before.get('metrics', {}),
      'error': None,
    }

  def __enter__(self):
    self._write()
    return self

  def __exit__(self, error_type, error, traceback):
    if error is None:
      if self._fields['state'] not in FINAL_STATES:
        self.update(state='interrupted')
    elif issubclass(error_type, KeyboardInterrupt):
      self.update(state='interrupted', error='KeyboardInterrupt')
    else:
      text = ' '.join(str(error).split())
      self.update(state='failed', error=text or error_type.__name__)

  def update(self, **fields: Any) -> None:
    """Changes fields and writes the file.

    Args:
      **fields: any of state, step, num_train_steps, eta_seconds,
        last_checkpoint_step, metrics (the latest values are kept by name) and
        error.

    Raises:
      ValueError: for another field or state.
    """
    for name, value in fields.items():
      if name not in self._fields:
        raise ValueError(f'{name!r} is no field of {FILE_NAME}.')
      if name == 'state' and value not in STATES + FINAL_STATES:
        known = ', '.join(STATES + FINAL_STATES)
        raise ValueError(f'{value!r} is no state of a run: {known}.')
      if name == 'metrics':
        value = {**self._fields['metrics'], **value}
      self._fields[name] = value
    if self._fields['state'] in FINAL_STATES:
      self._fields['eta_seconds'] = None
    self._write()

  def _write(self):
    if not self._is_primary:
      return
    self._fields['updated'] = _now()
    temporary = self._path.with_suffix('.json.tmp')
    try:
      temporary.write_text(json.dumps(_plain(self._fields), indent=1) + '\n')
      temporary.replace(self._path)
    except OSError as error:
      if not self._warned:
        logging.warning('Cannot write %s: %s.', self._path, error.strerror)
      self._warned = True


def read(work_dir: str | os.PathLike) -> dict[str, Any]:
  """Returns the fields of work_dir/status.json.

  Raises:
    OSError: there is none.
    ValueError: it is damaged.
  """
  path = pathlib.Path(work_dir) / FILE_NAME
  try:
    fields = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}.') from error
  if not isinstance(fields, dict):
    raise ValueError(f'{path} is damaged: it holds no object.')
  return fields


def is_lost(fields: dict[str, Any]) -> bool:
  """Whether a run that says it is alive is not: its process is gone.

  Only of this host's runs; of others it is not known, and False.
  """
  if fields['state'] in FINAL_STATES or fields['host'] != socket.gethostname():
    return False
  try:
    os.kill(fields['pid'], 0)
  except ProcessLookupError:
    return True
  except PermissionError:  # it is there, and somebody else's
    return False
  return False


def _read_or_empty(path):
  """What an earlier run left; a damaged file is about to be replaced."""
  try:
    return read(path.parent)
  except (OSError, ValueError):
    return {}


def _plain(value):
  """JSON has no NaN."""
  if isinstance(value, dict):
    return {name: _plain(x) for name, x in value.items()}
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _now():
  now = datetime.datetime.now(datetime.UTC)
  return now.isoformat(timespec='seconds')
