"""The checkpoints of a run that is still going on, each as it appears."""

import time
from collections.abc import Callable, Iterator

from protein_lm import checkpoint, status

SECONDS = 10.0  # between two looks


def follow_steps(
  work_dir, sleep: Callable[[float], None] = time.sleep
) -> Iterator[int]:
  """Yields the steps of good checkpoints, then waits for more.

  Ends when status.json says that the run has ended, or its process is gone, and
  no checkpoint is left; without a status.json at once after those that exist.

  Args:
    work_dir: folder of the run.
    sleep: called with seconds.

  Raises:
    checkpoint.NotFoundError: the run has ended without a checkpoint.
  """
  done, told = set(), None
  while True:
    state = _state(work_dir)  # before the look, so that no last one is missed
    new = [x for x in checkpoint.steps(work_dir) if x not in done]
    for step in new:
      done.add(step)
      if is_good(work_dir, step):
        yield step
    if new:
      continue
    if state is not None:
      if not done:
        checkpoint.choose(work_dir, 'latest')  # says that there is none
      print(f'end of the run: {state}', flush=True)
      return
    fields = status.read(work_dir)
    total = fields['num_train_steps']
    if told != done:  # once for each checkpoint
      told = set(done)
      of_all = f' of {total:,}' if total else ''
      print(
        f'waiting for the next checkpoint; the run is at step '
        f'{fields["step"]:,}{of_all}, Ctrl-C ends',
        flush=True,
      )
    sleep(SECONDS)


def good_steps(work_dir) -> list[int]:
  """The steps whose checkpoints verify; says which do not."""
  return [x for x in checkpoint.steps(work_dir) if is_good(work_dir, x)]


def is_good(work_dir, step: int) -> bool:
  """Whether a checkpoint verifies; says so if not."""
  try:
    checkpoint.verify(work_dir, step)
    return True
  except checkpoint.CheckpointError as error:
    print(f'warning: step {step} is left out: {error}')
    return False


def _state(work_dir):
  """How the run ended; None while it goes on."""
  try:
    fields = status.read(work_dir)
  except FileNotFoundError:
    return 'it has no status.json'
  if status.is_lost(fields):
    return 'its process is gone'
  return fields['state'] if fields['state'] in status.FINAL_STATES else None
