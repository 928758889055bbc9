"""Batches ahead of time: the same from anywhere; lost workers are told."""

import hashlib
import os
import signal
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from protein_lm import layouts, sharding
from protein_lm.batches import BucketBatches, RowBatches
from protein_lm.mesh import make_mesh
from protein_lm.prefetch import LostBatchError, Prefetch, local_rows
from protein_lm.proteins import MemoryStore, from_sequences

START = 100


@pytest.fixture(scope='module')
def store():
  rng = np.random.default_rng(0)
  return MemoryStore(
    from_sequences(
      {
        str(i): ''.join(rng.choice(list('ACDEFGHIKLMNPQRSTVWY'), n))
        for i, n in enumerate(rng.integers(1, 60, 50))
      }
    )
  )


@pytest.fixture(scope='module')
def batches(store):
  return RowBatches([layouts.Packed(store, 32, both_directions=True)], 4)


def sharding_over(num_devices, spec=('data',)):
  mesh = Mesh(np.array(jax.devices()[:num_devices]), ('data',))
  return NamedSharding(mesh, PartitionSpec(*spec))


def digest(batch):
  return hashlib.sha256(
    b''.join(np.asarray(array).tobytes() for array in batch)
  ).hexdigest()


def digests(batches, start, stop, **kwargs):
  with Prefetch(batches, 3, start, **kwargs) as ahead:
    return [digest(next(ahead)) for _ in range(start, stop)]


def is_gone(process):
  return process.exitcode is not None


@pytest.mark.parametrize('num_devices, num_workers', [(1, 0), (2, 2), (4, 0)])
def test_batches_are_the_same_from_anywhere(batches, num_devices, num_workers):
  expected = [digest(batches.make(3, step)) for step in range(201)]
  where = sharding_over(num_devices)
  options = dict(sharding=where, num_workers=num_workers)
  assert digests(batches, 0, 201, **options) == expected
  if not num_workers:
    assert digests(batches, START, 201, **options) == expected[START:]


@pytest.mark.parametrize('sizes', [(4, 1, 1, 2), (2, 2, 2, 1), (1, 2, 1, 4)])
def test_batches_are_the_same_on_any_mesh(batches, sizes):
  expected = [digest(batches.make(3, step)) for step in range(START, START + 9)]
  where = sharding.batch_sharding(make_mesh(4, (32,), None, *sizes))
  assert digests(batches, START, START + 9, sharding=where) == expected
  with Prefetch(batches, 3, 0, where) as ahead:
    shard = next(ahead).tokens.addressable_shards[0].data
  assert shard.shape == (4 // (sizes[0] * sizes[1]), 32 // sizes[3])


def test_workers_give_batches_in_order_from_any_step(batches):
  expected = [digest(batches.make(3, step)) for step in range(START, START + 9)]
  assert digests(batches, START, START + 9, num_workers=2) == expected


@pytest.mark.parametrize('spec', [(), ('data',), (None, 'data')])
def test_batches_lie_on_the_devices_that_were_named(batches, spec):
  where = sharding_over(4, spec)
  with Prefetch(batches, 0, 0, where) as ahead:
    batch = next(ahead)
  assert all(array.sharding == where for array in batch)
  np.testing.assert_array_equal(batch.tokens, batches.make(0, 0).tokens)


def test_only_rows_of_this_process_are_made(batches, monkeypatch):
  made = []

  class Recording:
    prepare, shape = batches.prepare, batches.shape

    def make(self, seed, step, rows):
      made.append(rows)
      return batches.make(seed, step, rows)

  class HalfAway:
    """Of four devices, those of rows 1 and 2 belong to this process."""

    device_set = range(4)

    def addressable_devices_indices_map(self, shape):
      columns = slice(0, shape[1])
      return {i: (slice(i, i + 1), columns) for i in (2, 1)}

  monkeypatch.setattr(
    jax,
    'make_array_from_callback',
    lambda shape, sharding, part: np.concatenate(
      [
        part(i)
        for i in sharding.addressable_devices_indices_map(shape).values()
      ]
    ),
  )
  with Prefetch(Recording(), 0, 0, HalfAway()) as ahead:
    batch = next(ahead)
  assert made[0].tolist() == [1, 2]
  np.testing.assert_array_equal(batch.tokens, batches.make(0, 0).tokens[[2, 1]])


def test_rows_that_cannot_be_cut_are_refused(batches):
  with pytest.raises(ValueError, match='data.batch_size: 4 rows.*3 devices'):
    local_rows(sharding_over(3), batches.shape(0, 0))


def test_batches_of_buckets_are_cut_by_their_own_rows(store):
  buckets = BucketBatches(layouts.Bucketed(store, (16, 32), 4))
  with Prefetch(buckets, 0, 0, sharding_over(4)) as ahead:
    shapes = {next(ahead).tokens.shape for _ in range(20)}
  assert shapes == {(8, 16), (4, 32)}


def test_a_killed_worker_is_told_and_the_others_end(batches):
  with Prefetch(batches, 0, num_workers=2) as ahead:
    next(ahead)
    processes = ahead.workers.processes
    os.kill(processes[1].pid, signal.SIGKILL)
    start = time.perf_counter()
    with pytest.raises(LostBatchError, match='data worker 1 ended.*-9'):
      for _ in range(9):
        next(ahead)
    assert time.perf_counter() - start < 5
    assert all(map(is_gone, processes))


def test_a_hung_worker_is_told_and_ends(batches):
  with Prefetch(batches, 0, num_workers=1, timeout=0.5) as ahead:
    next(ahead)
    (process,) = ahead.workers.processes
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(
      LostBatchError, match='within 0.5 s: data worker 0 hangs'
    ):
      for _ in range(9):
        next(ahead)
    assert is_gone(process)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_what_a_worker_meets_is_raised_here(num_workers):
  store = MemoryStore(from_sequences({'a': 'MKV'}))
  broken = RowBatches([layouts.Packed(store, 8)], 1)
  store.by_length = np.array([7])  # there is no protein 7
  with Prefetch(broken, 0, num_workers=num_workers) as ahead:
    with pytest.raises(IndexError, match='index 7'):
      next(ahead)
    with pytest.raises(StopIteration):
      next(ahead)


def test_a_hung_disk_is_told(batches):
  class Hanging:
    prepare, shape = batches.prepare, batches.shape

    def make(self, seed, step, rows):
      if step:
        time.sleep(0.5)
      return batches.make(seed, step, rows)

  with Prefetch(Hanging(), 0, timeout=0.1) as ahead:
    next(ahead)
    with pytest.raises(LostBatchError, match='step 1 came within 0.1 s'):
      next(ahead)
