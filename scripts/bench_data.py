"""The speed of each stage on the way of the data: python scripts/bench_data.py

prints records/s and tokens/s (residues and both ends) of each stage, medians of
--repeats, on the split train of --source. On request:

    --synthetic=N  first makes N proteins (synthetic_proteins.py) in a temporary
                   folder, times their preparation, and goes on with them
    --quickstart   then trains configs/quickstart.gin on its own data, and says
                   which share of the time the steps waited for batches

The machine's page cache is warm after the first repeat: `read` rows are of
memory and decompression, not of a disk. A row of `iterator` counts batches that
arrive while nothing else runs. Peak memory is the sum of the resident memory of
the command and all its processes, sampled every 50 ms; pages they share count
more than once.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from synthetic_proteins import write_synthetic_fasta

from protein_lm import packing, prepare, proteins
from protein_lm.data import open_data
from protein_lm.datasets import record

MAX_RECORDS = 20_000  # read and decoded
READ_BATCH = 256  # records read at a time
NUM_BATCHES = 100  # made, or taken from an iterator
WARM_UP = 5  # batches or steps before the clock starts
ROW_LENGTHS = (512, 1024)  # tokens
QUICKSTART_STEPS = 30
SAMPLE_SECONDS = 0.05


class Amount(NamedTuple):
  """What a stage has gone through."""

  records: int
  tokens: int


class Timing(NamedTuple):
  """One run of a stage."""

  seconds: float
  amount: Amount


Stage = Callable[[], Timing]


def timed(work: Callable[[], Amount]) -> Stage:
  """A stage of which all is timed."""

  def run():
    start = time.perf_counter()
    amount = work()
    return Timing(time.perf_counter() - start, amount)

  return run


def count(batch) -> Amount:
  """Proteins and tokens of a batch, padding left out."""
  segments_BL = np.asarray(batch.segment_ids)
  return Amount(int(segments_BL.max(-1).sum()), int((segments_BL > 0).sum()))


def count_all(batches) -> Amount:
  return Amount(*np.sum([count(batch) for batch in batches], 0).tolist())


class RawRecords:
  """The first records of a split, as bytes in their files."""

  def __init__(self, builder, lengths: np.ndarray):
    from array_record.python import array_record_module

    info = builder.info.splits['train']
    self._pieces = []  # (reader, records to read)
    left = MAX_RECORDS
    for path, size in zip(info.filepaths, info.shard_lengths, strict=True):
      if left > 0:
        reader = array_record_module.ArrayRecordReader(str(path))
        self._pieces.append((reader, min(size, left)))
        left -= size
    num_records = sum(size for _, size in self._pieces)
    self.amount = Amount(
      num_records, int(lengths[:num_records].sum()) + 2 * num_records
    )

  def read_in_order(self) -> list[bytes]:
    return [
      raw
      for reader, size in self._pieces
      for first in range(0, size, READ_BATCH)
      for raw in reader.read(first, min(first + READ_BATCH, size))
    ]

  def read_at_random(self) -> None:
    rng = np.random.default_rng(0)
    for reader, size in self._pieces:
      order = rng.permutation(size).tolist()
      for first in range(0, size, READ_BATCH):
        reader.read(order[first : first + READ_BATCH])


def reading_stages(builder) -> Iterator[tuple[str, Stage]]:
  """Stages from files to sequences in memory."""
  store = proteins.open_store(builder, 'train')
  size = len(store.lengths)
  whole = Amount(size, int(store.lengths.sum()) + 2 * size)
  raw = RawRecords(builder, store.lengths)
  encoded = raw.read_in_order()
  chosen = np.random.default_rng(0).integers(0, size, (NUM_BATCHES, READ_BATCH))
  drawn = Amount(
    chosen.size, int(store.lengths[chosen].sum()) + 2 * chosen.size
  )

  def stage(work, amount):
    return timed(lambda: (work(), amount)[1])

  def decode():
    for data in encoded:
      record.from_bytes(data)

  def draw():
    for numbers in chosen:
      store.many(numbers)

  yield 'read, in order', stage(raw.read_in_order, raw.amount)
  yield 'read, at random', stage(raw.read_at_random, raw.amount)
  yield 'decode', stage(decode, raw.amount)
  if whole.tokens <= proteins.MAX_RESIDUES_IN_MEMORY:
    load = lambda: proteins.load_proteins(builder, 'train')  # noqa: E731
    yield 'load_proteins', stage(load, whole)
  yield (
    'open_store',
    stage(lambda: proteins.open_store(builder, 'train'), whole),
  )
  yield f'{type(store).__name__}.many', stage(draw, drawn)
  for max_len in ROW_LENGTHS:
    clipped = np.minimum(np.asarray(store.lengths) + 2, max_len)
    plan = lambda c=clipped, n=max_len: packing.plan_rows(c, n)  # noqa: E731
    amount = Amount(size, int(clipped.sum()))
    yield f'plan, L = {max_len}', stage(plan, amount)


def batch_stages(data) -> Iterator[tuple[str, Stage]]:
  """Stages from sequences to batches on the device."""

  def make():
    start = time.perf_counter()
    batches = [data.train_batch(0, step) for step in range(NUM_BATCHES)]
    return Timing(time.perf_counter() - start, count_all(batches))

  def iterate(num_workers):
    with contextlib.closing(
      data.train_batches(0, 0, num_workers=num_workers)
    ) as batches:
      for _ in range(WARM_UP):
        next(batches)
      start = time.perf_counter()
      taken = [next(batches) for _ in range(NUM_BATCHES)]
      return Timing(time.perf_counter() - start, count_all(taken))

  def put():
    batches = [data.train_batch(0, step) for step in range(WARM_UP)]
    start = time.perf_counter()
    jax.block_until_ready(jax.device_put(batches))
    return Timing(time.perf_counter() - start, count_all(batches))

  shape = f'{data.batch_size} x {data.max_len}'
  make_first = data.train_batch(0, 0)  # plans, outside the clock
  del make_first
  yield f'train_batch, {shape}', make
  yield f'iterator, a thread, {shape}', lambda: iterate(0)
  yield f'iterator, 2 workers, {shape}', lambda: iterate(2)
  yield f'device put, {shape}', put


def print_stages(stages: Iterator[tuple[str, Stage]], repeats: int) -> None:
  """Prints a row for each stage as it is measured."""
  for name, stage in stages:
    timings = [stage() for _ in range(repeats)]
    seconds = statistics.median(timing.seconds for timing in timings)
    rates = [x / max(seconds, 1e-9) for x in timings[0].amount]
    print(
      f'{name:<34}{1e3 * seconds:>10,.1f}{rates[0]:>14,.0f}{rates[1]:>16,.0f}',
      flush=True,
    )


def run_and_watch(command: list[str]) -> tuple[float, int]:
  """Runs a command; returns seconds and the peak resident memory, in bytes, of
  its process and all below it."""
  import psutil

  start, peak = time.perf_counter(), 0
  process = psutil.Popen(command)
  while process.poll() is None:
    resident = 0
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
      for one in [process, *process.children(recursive=True)]:
        resident += one.memory_info().rss
    peak = max(peak, resident)
    time.sleep(SAMPLE_SECONDS)
  if process.returncode:
    sys.exit(f'{" ".join(command)} failed')
  return time.perf_counter() - start, peak


def bench_preparation(num_sequences: int, folder: pathlib.Path) -> pathlib.Path:
  """Makes a file and prepares it by the command; returns the file."""
  path = folder / 'synthetic.fasta.gz'
  start = time.perf_counter()
  planted = write_synthetic_fasta(path, num_sequences)
  print(f'{path.name}: {planted}, {path.stat().st_size / 1e6:,.0f} MB')
  print(f'written in {time.perf_counter() - start:.1f} s', flush=True)
  command = [sys.executable, '-m', 'protein_lm.prepare', f'--fasta={path}']
  seconds, peak = run_and_watch([*command, f'--data_dir={folder / "data"}'])
  print(
    f'prepared in {seconds:.1f} s, {num_sequences / seconds:,.0f} sequences/s; '
    f'peak memory {peak / 1e6:,.0f} MB',
    flush=True,
  )
  return path


def bench_quickstart(work_dir: pathlib.Path, data_dir) -> None:
  """Trains some steps and prints the share of time spent in next(batches)."""
  from protein_lm import config, objectives, optimizer
  from protein_lm import train_step as steps
  from protein_lm.models import FlaxLM

  config.register()
  config.parse(['configs/quickstart.gin'])
  graphdef, _ = steps.abstract_model(FlaxLM)
  tx, _ = optimizer.make_optimizer(WARM_UP + QUICKSTART_STEPS)
  objective = objectives.make_objective(FlaxLM.objective)
  train_step = steps.make_train_step(graphdef, tx, objective)
  rng = jax.random.key(0)
  params = steps.init_params(FlaxLM, rng)
  state = steps.init_state(params, tx, graphdef)
  data = open_data(work_dir, data_dir=data_dir)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  waited = 0.0
  sums = None
  with contextlib.closing(data.train_batches(0, 0, sharding)) as batches:
    for step in range(WARM_UP + QUICKSTART_STEPS):
      if step == WARM_UP:
        jax.block_until_ready(sums)
        start, waited = time.perf_counter(), 0.0
      asked = time.perf_counter()
      batch = next(batches)
      waited += time.perf_counter() - asked
      before = sums
      state, sums = train_step(state, batch, jax.random.fold_in(rng, step))
      jax.device_get(before)  # one step late, as in training
    jax.block_until_ready(sums)
  seconds = time.perf_counter() - start
  print(
    f'quickstart: {QUICKSTART_STEPS} steps in {seconds:.2f} s, of which '
    f'{1e3 * waited:.1f} ms ({waited / seconds:.2%}) waiting for batches'
  )


def bench(args: argparse.Namespace, folder: pathlib.Path) -> None:
  """Runs what the flags ask for; `folder` is temporary."""
  source, data_dir = args.source, args.data_dir
  if args.synthetic:
    source = str(bench_preparation(args.synthetic, folder))
    data_dir = folder / 'data'
  if args.stages:
    builder = prepare.prepare(source, data_dir)
    print(prepare.describe(builder))
    print(f'{"stage":<34}{"ms":>10}{"records/s":>14}{"tokens/s":>16}')
    print_stages(reading_stages(builder), args.repeats)
    for max_len in ROW_LENGTHS:
      data = open_data(
        folder,
        source=source,
        max_len=max_len,
        batch_size=args.batch_size,
        data_dir=data_dir,
      )
      print_stages(batch_stages(data), args.repeats)
  if args.quickstart:
    bench_quickstart(folder, args.data_dir)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--source', default='human_swissprot', help='Name of a set, or a file.')
  add(
    '--data_dir', help="Where prepared data lives; TFDS's place if not given."
  )
  add('--batch_size', type=int, default=32, help='Rows of a batch.')
  add('--repeats', type=int, default=5, help='Runs of a stage.')
  add('--synthetic', type=int, default=0, help='Proteins to make and prepare.')
  add('--quickstart', action='store_true', help='Train 30 steps of it.')
  add('--stages', action=argparse.BooleanOptionalAction, default=True)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='bench_data_') as folder:
    bench(args, pathlib.Path(folder))


if __name__ == '__main__':
  main()
