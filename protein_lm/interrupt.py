"""Ctrl-C and SIGTERM as a request to finish the step, save and leave."""

import os
import signal
import sys


class Interrupt:
  """While entered, the first signal sets `requested`; the second exits."""

  def __init__(self):
    self.requested = False

  def __enter__(self):
    self._previous = {
      number: signal.signal(number, self._handle)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    return self

  def __exit__(self, *exception):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    if self.requested:
      os._exit(128 + number)
    self.requested = True
    name = signal.Signals(number).name
    print(
      f'\n{name}: finishing what is under way, then saving; again to '
      'leave at once.',
      file=sys.stderr,
      flush=True,
    )
