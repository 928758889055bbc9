"""The soak, in a reduced form; its own processes are forks."""

import pathlib
import subprocess
import sys

import pytest

SOAK = pathlib.Path(__file__).parents[2] / 'scripts' / 'soak.py'


@pytest.mark.slow
def test_every_kind_of_fault_leaves_the_end_of_the_run_as_it_was():
  command = [sys.executable, SOAK, '--faults=15']
  done = subprocess.run(command, capture_output=True, text=True, timeout=280)
  assert done.returncode == 0, done.stdout + done.stderr
  assert '15 faults survived, and the runs end alike' in done.stdout
