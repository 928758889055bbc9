"""Whoever prepares: the same records, and an error when a worker dies."""

import functools
import importlib.util
import multiprocessing
import os
import pathlib
import signal
import sys
import time

import psutil
import pytest
from array_record.python import array_record_module

from protein_lm import prepare
from protein_lm.datasets import clusters, collection, runners, shards

SCRIPTS = pathlib.Path(__file__).parents[3] / 'scripts'


@pytest.fixture(scope='module')
def fasta(tmp_path_factory):
  """Families, duplicates and odd records."""
  spec = importlib.util.spec_from_file_location(
    'synthetic_proteins', SCRIPTS / 'synthetic_proteins.py'
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  path = tmp_path_factory.mktemp('fasta') / 'many.fasta.gz'
  module.write_synthetic_fasta(path, 1_500)
  return path


@pytest.fixture
def many_parts(monkeypatch):
  """Makes a small file go the way of a large one."""
  monkeypatch.setattr(collection, '_BLOCK_BYTES', (50_000, 50_000))
  monkeypatch.setattr(collection, '_BUCKET_BYTES', 200_000)
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', 100)
  monkeypatch.setattr(shards, '_SAMPLE_SIZE', 50)
  monkeypatch.setattr(runners, '_MIN_BYTES_TO_SHARE', 0)


def prepared(fasta, data_dir, **options):
  """The files of a prepared data set that hold data, with what is known."""
  builder = prepare.prepare(str(fasta), data_dir, **options)
  sources = {
    split: builder.as_data_source(split) for split in builder.info.splits
  }
  records = {
    split: [str(source[i]) for i in range(len(source))]
    for split, source in sources.items()
  }
  shard_lengths = {s: i.shard_lengths for s, i in builder.info.splits.items()}
  return records, shard_lengths, dict(builder.info.metadata)


def test_one_process_several_and_beam_prepare_the_same(
  fasta, many_parts, tmp_path
):
  found = [
    prepared(fasta, tmp_path / str(number), **options)
    for number, options in enumerate(
      ({}, {'num_processes': 2}, {'beam_runner': 'DirectRunner'})
    )
  ]
  assert found[0] == found[1] == found[2]
  records, shard_lengths, metadata = found[0]
  assert len(shard_lengths['train']) > 3 and len(records['test']) > 50
  assert metadata['leakage']['test']['num_measured'] < len(records['test'])
  assert metadata['leakage']['test']['nearest_share'] > 0


def _die(item):
  if item == 3:
    os.kill(os.getpid(), signal.SIGKILL)
  return item


def test_a_killed_process_ends_in_an_error():
  runner = runners.Processes(2)
  with pytest.raises(ValueError, match='process of the preparation died'):
    list(runner.map(_die, range(20)))
  runner.close()


def test_an_error_of_a_process_is_raised_here(tmp_path):
  runner = runners.Processes(2)
  with pytest.raises(ValueError, match="invalid literal for int.*'x'"):
    list(runner.map(int, ['1', 'x', '2']))
  runner.close()


def test_results_come_in_the_order_of_the_items():
  runner = runners.Processes(2)
  assert list(runner.map(abs, range(-9, 0))) == list(range(9, 0, -1))
  runner.close()


def test_less_than_one_process_is_refused():
  with pytest.raises(ValueError, match='--num_processes must be at least 1'):
    runners.make_runner(0, 10**9)


def test_beam_is_asked_for_by_its_name(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(ValueError, match='pip install apache-beam'):
    runners.Beam('DirectRunner', [], tmp_path)


def _lead(connection):
  """Starts processes, says which, and waits to be killed."""
  runner = runners.Processes(2)
  connection.send(list(runner.map(_pid, range(4))))
  time.sleep(60)


def _pid(item):
  time.sleep(0.1)
  return os.getpid()


def test_processes_end_with_the_one_that_started_them():
  context = multiprocessing.get_context('spawn')
  ours, theirs = context.Pipe()
  leader = context.Process(target=_lead, args=(theirs,))
  leader.start()
  assert ours.poll(60)
  workers = set(ours.recv())
  leader.kill()
  leader.join()
  deadline = time.monotonic() + 20
  while any(psutil.pid_exists(pid) for pid in workers):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_a_full_disk_is_one_sentence(fasta, many_parts, tmp_path, monkeypatch):
  def write(self, data):
    raise RuntimeError('write() failed: No space left on device; writing x')

  class Full:
    def __init__(self, *args):
      self.write = functools.partial(write, self)

  monkeypatch.setattr(array_record_module, 'ArrayRecordWriter', Full)
  with pytest.raises(ValueError, match='No space left on device; choose anoth'):
    prepare.prepare(str(fasta), tmp_path)
  assert not list(tmp_path.rglob('dataset_info.json'))
