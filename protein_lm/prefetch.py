"""Batches made ahead of time, by worker processes if wanted, on the devices.

A thread keeps a few batches ready. It makes them itself or asks worker
processes for them, step by step in turn; a worker knows the plan and is told
the steps, so their number changes nothing. A worker that dies or hangs is an
error, never a wait without end.
"""

import functools
import itertools
import multiprocessing
import queue
import signal
import threading
from multiprocessing import connection

import numpy as np

from protein_lm.batches import Batch

_AHEAD = 2  # batches ready for the next steps
_ASKED = 2  # batches that a worker is asked for at a time
_START_TIMEOUT = 120  # seconds until a first batch; workers start by then
_JOIN_TIMEOUT = 5  # seconds


class LostBatchError(RuntimeError):
  """A batch will not come: its worker died or hangs, or the disk does."""


class Prefetch:
  """Iterates over the batches of a step and all after it; see `close`.

  Attributes:
    workers: `Workers`, None if a thread makes the batches.

  Example:
    with Prefetch(batches, seed=0, start_step=100, num_workers=4) as ahead:
      batch = next(ahead)
  """

  def __init__(
    self,
    batches,
    seed: int,
    start_step: int = 0,
    sharding=None,
    num_workers: int = 0,
    timeout: float = 30,
  ):
    """Starts to make batches.

    Args:
      batches: `batches.RowBatches` or the like.
      seed: of the run.
      start_step: step of the first batch.
      sharding: a jax.sharding.Sharding of [B, L]: batches then hold global
        jax arrays, of which this process makes the rows that it needs.
      num_workers: processes that make batches; 0 makes them in a thread.
      timeout: seconds to wait for a batch before it counts as lost; four times
        as long, and 120 at least, for the first one.
    """
    self._batches, self._seed, self._step = batches, seed, start_step
    self._sharding, self._timeout = sharding, timeout
    batches.prepare(seed)
    self.workers = Workers(batches, seed, num_workers) if num_workers else None
    self._is_first = True
    self._closed = threading.Event()
    self._room = threading.Semaphore(_AHEAD)
    self._ready = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._feed, daemon=True)
    self._thread.start()

  def __iter__(self):
    return self

  def __next__(self) -> Batch:
    """The batch of the next step.

    Raises:
      LostBatchError: a worker died, or no batch came in time.
      ValueError: a file of the data set is missing or damaged.
    """
    if self._closed.is_set():
      raise StopIteration
    timeout = self._timeout
    if self._is_first:
      timeout = max(4 * timeout, _START_TIMEOUT)
    try:
      batch = self._ready.get(timeout=timeout)
    except queue.Empty:
      batch = self._lost(timeout)
    if isinstance(batch, Exception):
      self.close()
      raise batch
    self._is_first = False
    self._step += 1
    self._room.release()
    return batch

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()

  def close(self) -> None:
    """Ends the thread and all workers."""
    self._closed.set()
    if self.workers:
      self.workers.kill()
    self._room.release()
    self._thread.join(_JOIN_TIMEOUT)

  def _lost(self, timeout) -> LostBatchError:
    where = f'no batch of step {self._step} came within {timeout:g} s'
    if self.workers:
      number = self.workers.of(self._step)
      return LostBatchError(
        f'{where}: data worker {number} hangs; start again to go on, with '
        'data.num_workers = 0 if it happens again.'
      )
    return LostBatchError(f'{where}: the disk may hang; start again to go on.')

  def _feed(self) -> None:
    make = self.workers.make if self.workers else self._make
    try:
      for step in itertools.count(self._step):
        self._room.acquire()
        if self._closed.is_set():
          return
        batch = make(step, self._rows)
        if self._sharding is not None:
          batch = self._on_devices(batch, self._shape(step))
        self._ready.put(batch)
    except Exception as error:
      self._ready.put(error)

  def _make(self, step, rows_of) -> Batch:
    return self._batches.make(self._seed, step, rows_of(step))

  def _shape(self, step) -> tuple[int, int]:
    return self._batches.shape(self._seed, step)

  def _rows(self, step):
    if self._sharding is None:
      return slice(None)
    return local_rows(self._sharding, self._shape(step))

  def _on_devices(self, batch: Batch, shape) -> Batch:
    import jax

    rows = local_rows(self._sharding, shape)

    def put(local):
      def part(index):
        wanted = np.searchsorted(rows, np.arange(shape[0])[index[0]])
        return local[wanted][:, index[1]]

      return jax.make_array_from_callback(shape, self._sharding, part)

    return type(batch)(*map(put, batch))


@functools.lru_cache(maxsize=64)
def local_rows(sharding, shape: tuple[int, int]) -> np.ndarray:
  """Returns the rows of a batch that devices of this process hold, ascending.

  Args:
    sharding: a jax.sharding.Sharding.
    shape: of the whole batch.

  Raises:
    ValueError: the sharding cannot cut so many rows.
  """
  try:
    indices = sharding.addressable_devices_indices_map(shape).values()
  except ValueError as error:
    raise ValueError(
      f'data.batch_size: {shape[0]} rows of {shape[1]} tokens cannot be cut '
      f'for {len(sharding.device_set)} devices; make it a multiple of them.'
    ) from error
  held = [np.arange(shape[0])[index[0]] for index in indices]
  rows = np.unique(np.concatenate(held))
  rows.setflags(write=False)
  return rows


class Workers:
  """Processes that make the batches of steps, in turn.

  Attributes:
    processes: of each worker.
  """

  def __init__(self, batches, seed: int, num_workers: int):
    context = multiprocessing.get_context('spawn')
    self.processes, self._connections = [], []
    self._next_step = None
    try:
      for number in range(num_workers):
        ours, theirs = context.Pipe()
        process = context.Process(
          target=_work,
          args=(theirs, batches, seed),
          name=f'data worker {number}',
          daemon=True,
        )
        process.start()
        theirs.close()  # so that its end is seen here
        self.processes.append(process)
        self._connections.append(ours)
    except BaseException:
      self.kill()
      raise

  def of(self, step: int) -> int:
    """The number of the worker whose turn a step is."""
    return step % len(self.processes)

  def make(self, step: int, rows_of) -> Batch:
    """Returns the batch of a step; steps must be asked for in order.

    Args:
      step: the one after that of the last call.
      rows_of: a function of a step to the rows of its batch that are needed.

    Raises:
      LostBatchError: the worker died.
      Exception: what the worker met.
    """
    first = step if self._next_step is None else self._next_step
    self._next_step = step + _ASKED * len(self.processes)
    for ahead in range(first, self._next_step):
      self._ask(self.of(ahead), (ahead, rows_of(ahead)))
    answer = self._receive(self.of(step))
    if isinstance(answer, Exception):
      raise answer
    return answer

  def _ask(self, number: int, what) -> None:
    try:
      self._connections[number].send(what)
    except OSError as error:
      raise self._died(number) from error

  def _receive(self, number: int):
    link, process = self._connections[number], self.processes[number]
    if link not in connection.wait([link, process.sentinel]):
      raise self._died(number)
    try:
      return link.recv()
    except (EOFError, OSError) as error:
      raise self._died(number) from error

  def _died(self, number: int) -> LostBatchError:
    self.processes[number].join(_JOIN_TIMEOUT)  # its link may end before it
    code = self.processes[number].exitcode
    return LostBatchError(
      f'data worker {number} ended with exit code {code} (-9: killed, maybe '
      'for its memory); start again to go on, with fewer data.num_workers if '
      'it happens again.'
    )

  def kill(self) -> None:
    """Ends all workers, hung ones too."""
    for process in self.processes:
      process.kill()
    for process in self.processes:
      process.join(_JOIN_TIMEOUT)  # a hung disk may keep it for longer


def _work(link, batches, seed: int) -> None:
  """Makes batches until the other end of the link is gone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides
  try:
    while True:
      step, rows = link.recv()
      try:
        answer = batches.make(seed, step, rows)
      except Exception as error:
        answer = error
      link.send(answer)
  except (EOFError, OSError):
    return
