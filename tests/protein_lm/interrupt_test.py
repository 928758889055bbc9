"""A signal asks; handlers are put back."""

import os
import signal

import pytest

from protein_lm.interrupt import Interrupt


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number, capsys):
  with Interrupt() as interrupt:
    assert not interrupt.requested
    os.kill(os.getpid(), number)
    assert interrupt.requested
  assert signal.Signals(number).name in capsys.readouterr().err


def test_the_second_signal_leaves_at_once(monkeypatch):
  codes = []
  monkeypatch.setattr(os, '_exit', codes.append)
  with Interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
  assert codes == [128 + signal.SIGTERM]


def test_handlers_are_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with Interrupt():
    assert signal.getsignal(signal.SIGTERM) != before
  assert signal.getsignal(signal.SIGTERM) == before
