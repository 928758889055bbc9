"""Who does the work of preparation: this process, several, or Apache Beam.

A runner has one method, `map`. The work itself is in pure functions that read
and write files of a shared folder, so its result is the same whoever runs it.
"""

import collections
import concurrent.futures
import gc
import multiprocessing
import os
import pathlib
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

_MIN_BYTES_TO_SHARE = 2**24  # processes take a second to start
_AHEAD = 2  # items handed out beyond those being worked on


class InProcess:
  """Works in this process."""

  def map(self, function: Callable, items: Iterable) -> Iterator:
    """Yields function(item) for each item, in order."""
    return map(function, items)

  def close(self) -> None:
    """Nothing is held."""


def _start() -> None:
  """Makes a process ready for work: it ends with the one that started it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # that one decides
  gc.disable()  # the work makes no cycles, but many tuples
  parent = multiprocessing.parent_process()

  def follow():
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


class Processes:
  """Works in several processes of this machine.

  Args:
    num_processes: how many.
  """

  def __init__(self, num_processes: int):
    self._num_ahead = num_processes + _AHEAD
    # Not forked: the caller may be a trainer, with threads of its own.
    self._executor = concurrent.futures.ProcessPoolExecutor(
      num_processes, multiprocessing.get_context('spawn'), _start
    )

  def map(self, function: Callable, items: Iterable) -> Iterator:
    """Yields function(item) for each item, in order.

    Raises:
      ValueError: a process died.
    """
    pending = collections.deque()
    try:
      for item in items:
        pending.append(self._executor.submit(function, item))
        if len(pending) >= self._num_ahead:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise ValueError(
        'a process of the preparation died (killed, or out of memory); try '
        'again with fewer: --num_processes=1.'
      ) from error

  def close(self) -> None:
    """Ends the processes."""
    self._executor.shutdown(cancel_futures=True)


class Beam:
  """Works in an Apache Beam pipeline, on a cluster or here.

  Each call of `map` is one pipeline. Results come back as files, so workers
  must see the folder under the same path (a file system that they share).

  Args:
    runner: of Beam, such as 'DirectRunner' or 'FlinkRunner'.
    options: Beam's own, such as '--direct_num_workers=2'.
    folder: where results are put, shared by all workers.
  """

  def __init__(self, runner: str, options: list[str], folder: pathlib.Path):
    try:
      import apache_beam
    except ImportError as error:
      raise ValueError(
        '--beam_runner needs Apache Beam: pip install apache-beam (the extra '
        'beam).'
      ) from error
    self._beam, self._folder, self._num_maps = apache_beam, folder, 0
    self._options = [f'--runner={runner}', *options]

  def map(self, function: Callable, items: Iterable) -> Iterator:
    """Yields function(item) for each item, in order.

    Args:
      function: can be pickled.
      items: read here, one after another, or a `Spread`, read by workers.
    """
    beam = self._beam
    folder = self._folder / f'results-{self._num_maps}'
    folder.mkdir()
    self._num_maps += 1
    if not isinstance(items, Spread):
      items = Spread(list(items), _itself)
    options = beam.options.pipeline_options.PipelineOptions(self._options)
    with beam.Pipeline(options=options) as pipeline:
      (
        pipeline
        | beam.Create(list(enumerate(items.parts)))
        | beam.FlatMap(_numbered, items.expand)
        | beam.Reshuffle()
        | beam.Map(_store, function, folder)
      )
    paths = sorted(folder.iterdir())
    return (pickle.loads(path.read_bytes()) for path in paths)

  def close(self) -> None:
    """Nothing is held."""


class Spread:
  """Items that come from parts, such as the blocks of files.

  Args:
    parts: a few values.
    expand: returns the items of a part; can be pickled.
  """

  def __init__(self, parts: list, expand: Callable[[object], Iterable]):
    self.parts, self.expand = parts, expand

  def __iter__(self):
    for part in self.parts:
      yield from self.expand(part)


def _itself(part):
  return (part,)


def _numbered(part, expand) -> Iterator:
  number, part = part
  for place, item in enumerate(expand(part)):
    yield (number, place), item


def _store(item, function, folder: pathlib.Path) -> None:
  """Writes a result under a name that sorts as its item came."""
  (number, place), item = item
  path = folder / f'{number:08}-{place:08}'
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  partial.write_bytes(pickle.dumps(function(item)))
  partial.rename(path)  # a retried item gives the same result


def make_runner(num_processes: int, num_bytes: int):
  """Returns a runner of this machine for a source of about so many bytes."""
  if num_processes < 1:
    raise ValueError(
      f'--num_processes must be at least 1, got {num_processes}.'
    )
  if num_processes == 1 or num_bytes < _MIN_BYTES_TO_SHARE:
    return InProcess()
  return Processes(num_processes)
