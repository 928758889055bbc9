"""A split in memory, and what is said of damaged files."""

import pathlib
import pickle
import re

import numpy as np
import pytest

from protein_lm import prepare, proteins, vocab
from protein_lm.proteins import (
  DiskStore,
  MemoryStore,
  from_sequences,
  load_proteins,
  open_store,
  with_ends,
)


@pytest.fixture
def builder(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'my.fasta'
  sequences = (vocab.decode(rng.integers(0, 20, 300)) for _ in range(600))
  path.write_text(''.join(f'>p{i}\n{s}\n' for i, s in enumerate(sequences)))
  return prepare.prepare(str(path), tmp_path / 'data')


def shard_of(builder):
  return pathlib.Path(builder.info.splits['train'].filepaths[0])


def test_proteins_are_those_of_the_file(builder, tmp_path):
  lines = (tmp_path / 'my.fasta').read_text().split()
  expected = dict(
    zip((id_[1:] for id_ in lines[::2]), lines[1::2], strict=True)
  )
  found = {}
  for split in builder.info.splits:
    its = load_proteins(builder, split)
    for index, id_ in enumerate(its.ids):
      a, b = its.offsets[index : index + 2]
      found[id_] = vocab.decode(its.residues[a:b])
  assert found == expected


def test_with_ends_puts_bos_and_eos_around_each_protein():
  some = from_sequences({'a': 'MKV', 'b': '', 'c': 'W'})
  tokens_T, starts = with_ends(some)
  assert vocab.decode(tokens_T) == '<MKV><><W>'
  assert starts.tolist() == [0, 5, 7, 10]


def test_an_absent_split_is_refused_with_those_that_are(builder):
  with pytest.raises(
    ValueError, match="no split 'ood'.*train, validation, test"
  ):
    load_proteins(builder, 'ood')


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'missing'])
def test_a_damaged_shard_is_named_with_the_way_out(builder, damage):
  shard = shard_of(builder)
  data = bytearray(shard.read_bytes())
  data[len(data) // 3] ^= 1
  if damage == 'missing':
    shard.unlink()
  else:
    kept = {'flip': len(data), 'cut': len(data) // 2, 'empty': 0}[damage]
    shard.write_bytes(data[:kept])
  with pytest.raises(ValueError) as error:
    load_proteins(builder, 'train')
  assert str(shard) in str(error.value)
  assert f'delete {builder.data_dir} and prepare again' in str(error.value)


@pytest.mark.parametrize('part', [0.3, 0.6])
def test_a_flipped_bit_is_told_with_its_record(builder, part):
  shard = shard_of(builder)
  before = load_proteins(builder, 'train')
  data = bytearray(shard.read_bytes())
  place = int(len(data) * part)
  data[place] ^= 4
  shard.write_bytes(data)
  with pytest.raises(ValueError, match=rf'{shard}, record \d+ cannot') as error:
    load_proteins(builder, 'train')
  number = int(re.search(r'record (\d+)', str(error.value))[1])
  store = DiskStore(builder, 'train')
  with pytest.raises(ValueError, match=f'{shard}, record {number} cannot'):
    store.many([0, number, 5])
  (residues,) = store.many([number - 1])  # others are read
  np.testing.assert_array_equal(
    residues, before.residues[slice(*before.offsets[number - 1 :][:2])]
  )


def test_stores_in_memory_and_on_disk_are_equal(builder):
  in_memory = open_store(builder, 'train')
  on_disk = pickle.loads(pickle.dumps(DiskStore(builder, 'train')))
  assert isinstance(in_memory, MemoryStore)
  for name in ('lengths', 'by_length'):
    np.testing.assert_array_equal(
      getattr(in_memory, name), getattr(on_disk, name)
    )
  numbers = [5, 0, len(in_memory.lengths) - 1, 5]
  for a, b in zip(in_memory.many(numbers), on_disk.many(numbers), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_large_split_stays_on_disk(builder, monkeypatch):
  monkeypatch.setattr(proteins, 'MAX_RESIDUES_IN_MEMORY', 1_000)
  assert isinstance(open_store(builder, 'train'), DiskStore)


@pytest.mark.parametrize('name', ['lengths', 'by_length'])
@pytest.mark.parametrize('damage', ['missing', 'cut', 'other', 'changed'])
def test_a_damaged_index_is_named(builder, name, damage):
  path = pathlib.Path(builder.data_dir, f'train-{name}.npy')
  if damage == 'missing':
    path.unlink()
  elif damage == 'cut':
    path.write_bytes(path.read_bytes()[:50])
  elif damage == 'changed':
    np.save(path, np.load(path) + 1)
  else:
    np.save(path, np.zeros(3, np.int32))
  with pytest.raises(ValueError, match=f'{path} cannot be read.*prepare again'):
    DiskStore(builder, 'train')


def test_lengths_that_are_not_those_of_the_records_are_told(builder):
  store = DiskStore(builder, 'train')
  store.lengths = store.lengths + 1
  with pytest.raises(ValueError, match='record 2 cannot.*another length'):
    store.many([2])


def test_a_shard_of_other_data_is_refused(builder):
  other = builder.info.splits['test'].filepaths[0]
  shard_of(builder).write_bytes(pathlib.Path(other).read_bytes())
  with pytest.raises(ValueError, match=r'records, not \d+.*prepare again'):
    load_proteins(builder, 'train')


def test_other_proteins_than_were_prepared_are_refused(builder):
  builder.info.metadata['content']['train']['sha256'] = '0' * 64
  with pytest.raises(ValueError, match="split 'train' are not those"):
    load_proteins(builder, 'train')


@pytest.mark.parametrize('name', ['dataset_info.json', 'metadata.json'])
def test_a_copy_without_its_description_is_refused(builder, tmp_path, name):
  (pathlib.Path(builder.data_dir) / name).unlink()
  with pytest.raises(ValueError, match='delete this folder and prepare again'):
    prepare.prepare(str(tmp_path / 'my.fasta'), tmp_path / 'data')


@pytest.mark.parametrize('name', ['dataset_info.json', 'metadata.json'])
def test_a_damaged_description_is_refused(builder, tmp_path, name):
  (pathlib.Path(builder.data_dir) / name).write_text('{"a": ')
  with pytest.raises(ValueError, match='delete this folder and prepare again'):
    prepare.prepare(str(tmp_path / 'my.fasta'), tmp_path / 'data')
