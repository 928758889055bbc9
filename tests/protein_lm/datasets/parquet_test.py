"""Parquet files as a data set: their splits, columns, and what is left out."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protein_lm import prepare
from protein_lm.datasets.splits import SplitRule


@pytest.fixture(scope='module')
def sequences(make_families):
  return make_families(30, 2)


@pytest.fixture
def write(tmp_path):
  def write(name, columns):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path

  return write


@pytest.fixture
def read(tmp_path, read_splits):
  """Prepares a source: {split: {id: record}}, counts."""

  def read(source, **options):
    builder = prepare.prepare(str(source), tmp_path / 'data', **options)
    return read_splits(builder), builder.info.metadata['counts']

  return read


@pytest.fixture
def folder(write, sequences, tmp_path):
  """As Hugging Face lays a data set out: 40 train, 10 validation, 12 test, of
  which two are in train too."""
  rows = list(sequences.items())
  parts = {
    'train-00000-of-00002': rows[:20],
    'train-00001-of-00002': rows[20:40],
    'validation-00000-of-00001': rows[40:50],
    'test-00000-of-00001': rows[50:60] + rows[3:5],
  }
  for name, part in parts.items():
    ids, texts = zip(*part, strict=True)
    write(f'hf/data/{name}.parquet', {'id': ids, 'sequence': texts})
  return tmp_path / 'hf'


def test_a_file_is_split_by_clusters(write, read, sequences):
  path = write('a.parquet', {'sequence': list(sequences.values())})
  found, counts = read(path)
  assert found.keys() == {'train', 'validation', 'test'}
  assert counts['kept'] == 60 and counts['clusters'] == 30
  assert sum(map(len, found.values())) == 60


def test_names_of_files_are_splits(folder, read, sequences):
  found, counts = read(folder)
  ids = list(sequences)
  assert found['validation'].keys() == set(ids[40:50])
  assert found['train'].keys() == {*ids[:3], *ids[5:40]}
  assert counts['kept'] == sum(map(len, found.values())) == 60


def test_a_sequence_of_train_and_test_stays_in_test(folder, read, sequences):
  found, counts = read(folder)
  ids = list(sequences)
  assert found['test'].keys() == {*ids[50:], *ids[3:5]}
  assert counts['duplicates dropped'] == 2


def test_a_sequence_of_validation_and_test_stays_in_test(write, read, tmp_path):
  for name in ('validation', 'test', 'train'):
    letter = {'validation': 'W', 'test': 'W', 'train': 'Y'}[name]
    write(f'd/{name}.parquet', {'id': [name], 'sequence': [letter * 20]})
  found, _ = read(tmp_path / 'd')
  assert {name: list(m) for name, m in found.items()} == {
    'train': ['train'],
    'test': ['test'],
  }


def test_a_rule_goes_before_names_of_files(folder, read, sequences, tmp_path):
  ids = tmp_path / 'ids.txt'
  ids.write_text('f0_0\n')
  found, _ = read(folder, rule=SplitRule(ids=(f'test={ids}',)))
  assert found['test'].keys() == {'f0_0'} and len(found['train']) == 59


def test_a_folder_of_train_alone_is_split_by_clusters(write, read, sequences):
  texts = list(sequences.values())
  path = write('d/train.parquet', {'sequence': texts})
  assert len(read(path.parent)[0]) == 3


def test_a_folder_may_hold_no_train(write, read, sequences):
  path = write('d/test.parquet', {'sequence': list(sequences.values())})
  found, _ = read(path.parent)
  assert found.keys() == {'test'} and len(found['test']) == 60


def test_files_beside_given_splits_are_train(folder, write, read, tmp_path):
  more = write('more.parquet', {'id': ['m'], 'sequence': ['MKVLAWYW' * 3]})
  found, counts = read(folder, patterns=(str(more),))
  assert 'm' in found['train']
  assert counts['kept'] == sum(map(len, found.values())) == 61


def test_a_renamed_split_is_another_data_set(write, read, sequences, tmp_path):
  texts = list(sequences.values())
  path = write('d/train.parquet', {'sequence': texts[:40]})
  write('d/test.parquet', {'sequence': texts[40:]})
  assert read(path.parent)[0].keys() == {'train', 'test'}
  (tmp_path / 'd/test.parquet').rename(tmp_path / 'd/validation.parquet')
  assert read(path.parent)[0].keys() == {'train', 'validation'}


def test_a_file_added_to_a_folder_is_seen(write, read, sequences):
  texts = list(sequences.values())
  path = write('d/a.parquet', {'sequence': texts[:50]})
  assert read(path.parent)[1]['kept'] == 50
  write('d/b.parquet', {'sequence': texts[50:]})
  assert read(path.parent)[1]['kept'] == 60


def test_several_patterns_are_one_data_set(write, read, sequences, tmp_path):
  rows = list(sequences.items())
  for name, part in (('a1', rows[:20]), ('a2', rows[20:40]), ('b', rows[40:])):
    ids, texts = zip(*part, strict=True)
    write(f'{name}.parquet', {'id': ids, 'sequence': texts})
  found, _ = read(tmp_path / 'b.parquet', patterns=(f'{tmp_path}/a*.parquet',))
  assert {id_ for members in found.values() for id_ in members} == {*sequences}


def test_columns_are_those_of_the_record(write, read):
  columns = {
    'Sequence': ['mkvla wyw*', 'W' * 9, 'Y' * 9],
    'accession': ['P1', 'P2', None],
    'organism': ['Homo sapiens', 'Yeast', None],
    'taxid': [9606, None, 4932],
    'description': ['a protein', None, 'other'],
  }
  found, _ = read(write('a.parquet', columns))
  records = {id_: r for members in found.values() for id_, r in members.items()}
  assert records.keys() == {'P1', 'P2', 'record_3'}
  one = records['P1']
  assert one['sequence'] == b'MKVLAWYW' and one['length'] == 8
  assert one['organism'] == b'Homo sapiens' and one['taxonomy_id'] == 9606
  assert one['description'] == b'a protein'
  assert [records[i]['taxonomy_id'] for i in ('P2', 'record_3')] == [0, 4932]


def test_taxonomy_ids_of_a_column_are_organisms(write, read, sequences):
  columns = {
    'sequence': list(sequences.values()),
    'taxonomy_id': [9606] * 10 + [4932] * 50,
  }
  path = write('a.parquet', columns)
  found, _ = read(path, rule=SplitRule(organisms=('test=9606',)))
  assert len(found['test']) == 10 and len(found['train']) == 50


def test_the_column_of_sequences_can_be_named(write, read):
  columns = {'heavy': ['MKV' * 3, 'W' * 9], 'light': ['Y' * 9, 'A' * 9]}
  path = write('a.parquet', columns)
  with pytest.raises(ValueError, match=r'heavy, light\) by --sequence_column'):
    read(path)
  for column, texts in columns.items():
    found, _ = read(path, sequence_column=column)
    assert sorted(
      record['sequence'].decode()
      for members in found.values()
      for record in members.values()
    ) == sorted(texts)


def test_rows_without_a_sequence_are_counted_and_told(write, read, capsys):
  path = write('a.parquet', {'sequence': ['MKV', None, '', 'WWW']})
  _, counts = read(path)
  assert counts['empty skipped'] == 2 and counts['kept'] == 2
  out = capsys.readouterr().out
  assert f'{path}:2: empty record record_2' in out
  assert f'{path}:3: empty record record_3' in out


def test_rows_with_symbols_are_told_by_their_row(write, read):
  path = write('a.parquet', {'sequence': ['MKV', 'M1V'], 'id': ['x', 'y']})
  with pytest.raises(ValueError, match=r"a\.parquet:2: '1' in record y"):
    read(path)


def test_a_missing_shard_is_named(folder, read):
  (folder / 'data/train-00001-of-00002.parquet').unlink()
  with pytest.raises(ValueError, match='train-00001-of-00002.parquet is miss'):
    read(folder)


def test_files_that_are_gone_leave_their_prepared_copy(write, read):
  path = write('a.parquet', {'sequence': ['MKV', 'WWW', 'YYY']})
  found, _ = read(path)
  path.unlink()
  assert read(path)[0].keys() == found.keys()


def test_files_named_one_by_one_keep_their_splits(write, sequences, tmp_path):
  rows = list(sequences.items())
  paths = []
  for name, part in (('train', rows[:50]), ('my_test', rows[50:])):
    ids, texts = zip(*part, strict=True)
    columns = {'id': ids, 'sequence': texts}
    paths.append(str(write(f'{name}.parquet', columns)))
  builder = prepare.prepare(
    paths[1], tmp_path / 'data', kind='parquet', patterns=(paths[0],)
  )
  content = builder.info.metadata['content']
  assert {s: c['num_proteins'] for s, c in content.items()} == {
    'train': 50,
    'test': 10,
  }
