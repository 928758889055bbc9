"""What a step needs of a device's memory, and the largest batch that fits."""

import contextlib
import math
import pathlib
import re
from collections.abc import Callable, Iterator

import jax

# How XLA and C++ say that memory ended.
_SIGNS = re.compile(
  r'RESOURCE_EXHAUSTED|out of memory|bad_alloc|failed to allocate', re.I
)
_CGROUP = pathlib.Path('/sys/fs/cgroup')  # version 2; it caps containers


class OutOfMemoryError(RuntimeError):
  """A step that needs more memory than there is; names what would fit."""


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error says that the host or a device has no memory left."""
  return isinstance(error, MemoryError) or bool(_SIGNS.search(str(error)))


def available_bytes() -> int | None:
  """Memory for each device of this process, in bytes; None if unknown.

  An accelerator's limit, as JAX uses it. On CPU what the host, or the
  container, has free now and what JAX's arrays take, shared among the devices
  that a process simulates.
  """
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  if device.platform != 'cpu':
    return None
  free = _free_bytes()
  if free is None:
    return None
  free += sum(array.nbytes for array in jax.live_arrays())
  return free // jax.local_device_count()


def step_bytes(train_step, state, batch, rng) -> int:
  """Bytes of memory, on each device, of a compiled step with its state.

  Args:
    train_step: jitted; it is compiled, nothing runs.
    state: of arrays or jax.ShapeDtypeStruct, with their shardings.
    batch: likewise.
    rng: a key.
  """
  return compiled_bytes(train_step.lower(state, batch, rng).compile())


def compiled_bytes(compiled) -> int:
  """Bytes of arguments, results and working memory of a compiled program."""
  stats = compiled.memory_analysis()
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
    + stats.temp_size_in_bytes
  )


def abstract(tree):
  """Shapes, types and places of a tree of arrays: it keeps none alive."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None)
    ),
    tree,
  )


def with_rows(batch, num_rows: int):
  """The abstract batch of so many rows, placed as this batch is."""

  def leaf(array):
    return jax.ShapeDtypeStruct(
      (num_rows, *array.shape[1:]),
      array.dtype,
      sharding=getattr(array, 'sharding', None),
    )

  return jax.tree.map(leaf, batch)


def largest_batch(
  bytes_needed: Callable[[int], int],
  limit: int,
  batch_size: int,
  multiple_of: int = 1,
) -> int:
  """The most rows below batch_size that fit into memory, 0 if none do.

  Args:
    bytes_needed: bytes that a batch of so many rows needs, growing with them;
      called about log2(batch_size / multiple_of) times. It may raise an error
      of memory, which is too much.
    limit: bytes that there are.
    batch_size: rows that do not fit.
    multiple_of: rows are a multiple of it, such as the devices that share them.
  """

  def fits(rows):
    try:
      return bytes_needed(rows) <= limit
    except Exception as error:
      if not is_out_of_memory(error):
        raise
      return False

  low, high = 0, math.ceil(batch_size / multiple_of)  # low fits, high does not
  while high - low > 1:
    middle = (low + high) // 2
    if fits(middle * multiple_of):
      low = middle
    else:
      high = middle
  return low * multiple_of


def advice(
  batch_size: int, largest: int, num_microbatches: int = 1, multiple_of: int = 1
) -> str:
  """What to bind when a batch does not fit: one sentence.

  Args:
    batch_size: rows that do not fit.
    largest: rows that do, from `largest_batch`.
    num_microbatches: parts that a batch is computed in now.
    multiple_of: see `largest_batch`.
  """
  now = f'data.batch_size = {batch_size}'
  if num_microbatches > 1:
    now += f' in {num_microbatches} microbatches'
  if not largest:
    return (
      f'{now} does not fit, nor would {multiple_of}: make the model or '
      'data.max_len smaller, set FlaxModel.remat, or use more devices (mesh).'
    )
  text = f'{now} does not fit; the largest that fits is {largest}'
  for parts in range(num_microbatches + 1, batch_size + 1):
    rows = batch_size / parts
    if rows % multiple_of == 0 and rows * num_microbatches <= largest:
      return (
        f'{text}, or keep it with make_train_step.num_microbatches = {parts}.'
      )
  return f'{text}.'


@contextlib.contextmanager
def explaining(
  train_step, state, batch, rng, num_microbatches: int = 1, multiple_of: int = 1
) -> Iterator[None]:
  """Turns an error of memory inside into one that names what fits.

  Args:
    train_step: jitted; compiled for smaller batches if memory ends.
    state: TrainState of jax.ShapeDtypeStruct: it keeps no array alive.
    batch: Batch of jax.ShapeDtypeStruct.
    rng: a key.
    num_microbatches: parts that a batch is computed in.
    multiple_of: see `largest_batch`.

  Raises:
    OutOfMemoryError: in place of what XLA raised; other errors pass.
  """
  try:
    yield
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    first = str(error).strip().splitlines()[:1]
    reason = f'out of memory ({first[0][:200]})' if first else 'out of memory'
    limit = available_bytes()
    if limit is None:
      raise OutOfMemoryError(
        f'{reason}: data.batch_size = {batch_size} does not fit; make it '
        'smaller, or set make_train_step.num_microbatches.'
      ) from error

    def bytes_needed(rows):
      return step_bytes(train_step, state, with_rows(batch, rows), rng)

    print('out of memory: looking for the largest batch that fits', flush=True)
    largest = largest_batch(
      bytes_needed, limit, batch_size, multiple_of * num_microbatches
    )
    raise OutOfMemoryError(
      f'{reason}: ' + advice(batch_size, largest, num_microbatches, multiple_of)
    ) from error


def _free_bytes():
  """Of the host, or of the container if that has less; None if unknown."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:  # not Linux
    return None
  fields = {line.split(':')[0]: line.split()[1] for line in lines}
  free = [int(fields['MemAvailable']) * 1024]
  with contextlib.suppress(OSError, ValueError):  # no container, or 'max'
    limit, used = (
      int((_CGROUP / name).read_text())
      for name in ('memory.max', 'memory.current')
    )
    free.append(limit - used)
  return min(free)
