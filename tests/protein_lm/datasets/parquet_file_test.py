"""Parquet files: found by their names, read whole in blocks, or refused."""

import dataclasses
import pathlib
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protein_lm.datasets.parquet_file import (
  Columns,
  blocks,
  find_columns,
  find_files,
)


@pytest.fixture
def find(tmp_path):
  """Makes empty files; returns what is found, as split -> relative names."""

  def find(*names, path='', **options):
    for name in names:
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name).touch()
    found = find_files(tmp_path / path, **options)
    return {
      split: [str(file.relative_to(tmp_path)) for file in files]
      for split, files in found.items()
    }

  return find


@pytest.fixture
def write(tmp_path):
  def write(columns, name='a.parquet', **options):
    pq.write_table(pa.table(columns), tmp_path / name, **options)
    return tmp_path / name

  return write


def read(path, rows_per_block=20_000, sequence_column=None):
  columns = find_columns([path], sequence_column)
  return list(blocks(path, columns, rows_per_block))


@pytest.mark.parametrize(
  'name, split',
  [
    ('data/train-00000-of-00001.parquet', 'train'),
    ('data/train-00000-of-00001-0123456789abcdef.parquet', 'train'),
    ('data/validation-00000-of-00001.parquet', 'validation'),
    ('default/valid/0000.parquet', 'validation'),
    ('val.parquet', 'validation'),
    ('a/b/c/dev/x/0.parquet', 'validation'),
    ('Test.PARQUET', 'test'),
    ('test/0000.parquet', 'test'),
    ('my_test_set.parquet', 'test'),
    ('train/test.parquet', 'test'),
  ],
)
def test_a_name_tells_the_split(find, name, split):
  assert find(name) == {split: [name]}


@pytest.mark.parametrize(
  'name', ['a.parquet', 'latest.parquet', 'train_test.parquet', 'x/0.parquet']
)
def test_a_name_may_tell_no_split(find, name):
  assert find(name) == {None: [name]}


def test_files_are_sorted_within_their_split(find):
  assert find('b/test/1.parquet', 'a/train/2.parquet', 'a/train/1.parquet') == {
    'train': ['a/train/1.parquet', 'a/train/2.parquet'],
    'test': ['b/test/1.parquet'],
  }


def test_other_files_beside_splits_are_taken_for_train(find):
  lines = []
  found = find('extra.parquet', 'test.parquet', say=lines.append)
  assert found == {'train': ['extra.parquet'], 'test': ['test.parquet']}
  assert 'extra.parquet' in lines[0] and '1 of 2' in lines[0]


def test_files_of_other_kinds_are_left_out(find):
  names = ['README.md', 'train.csv', '.cache/b.parquet', '.c.parquet']
  assert find('a.parquet', *names) == {None: ['a.parquet']}


def test_one_file_is_taken_whatever_its_name(find):
  name = 'train-00001-of-00002.parquet'
  assert find(name, path=name) == {None: [name]}


@pytest.mark.parametrize(
  'pattern', ['data/t*.parquet', '**/t*', '*/t[er]*.parquet', 'data/t*']
)
def test_a_pattern_finds_files(find, pattern):
  names = ['data/test.parquet', 'data/train.parquet', 'data/val.parquet']
  assert find(*names, path=pattern) == {'train': names[1:2], 'test': names[:1]}


def test_a_pattern_may_be_relative(find, tmp_path, monkeypatch):
  find('train.parquet')
  monkeypatch.chdir(tmp_path)
  assert find_files('./*.parquet') == {'train': [pathlib.Path('train.parquet')]}


def test_a_folder_above_tells_no_split(find):
  assert find('train/a.parquet', path='train') == {None: ['train/a.parquet']}


@pytest.mark.parametrize('path', ['', '*.parquet'])
def test_nothing_found_is_refused(find, path):
  with pytest.raises(ValueError, match='holds no file named'):
    find('README.md', path=path)


def test_an_absent_path_is_refused(find):
  with pytest.raises(ValueError, match='none.parquet: there is no such file'):
    find(path='none.parquet')


@pytest.mark.parametrize(
  'names, missing',
  [
    (['train-00000-of-00003', 'train-00002-of-00003'], 'train-00001-of-00003'),
    (['test-00001-of-00002', 'train-00000-of-00001'], 'test-00000-of-00002'),
    (['a-00000-of-99999999999'], 'a-00001-of-99999999999'),
    (['a-0-of-2', 'a-5-of-2'], 'a-1-of-2'),
    (['a-1-of-2', 'b/a-2-of-2'], 'a-0-of-2'),
  ],
)
def test_a_missing_shard_is_named(find, names, missing):
  with pytest.raises(ValueError, match=f'{missing}.parquet is missing'):
    find(*(f'{name}.parquet' for name in names))


@pytest.mark.parametrize('numbers', [(0, 1), (1, 2)])
def test_shards_count_from_zero_or_one(find, numbers):
  names = [f'a-{number}-of-2.parquet' for number in numbers]
  assert find(*names) == {None: names}


@pytest.mark.parametrize(
  'names',
  [
    ['a-0-of-1', 'a-0-of-2', 'a-1-of-2'],
    ['a-0-of-1-' + '0' * 16, 'a-0-of-1-' + '1' * 16],
  ],
)
def test_shards_of_two_versions_are_refused(find, names):
  with pytest.raises(ValueError, match='mix the shards of two versions'):
    find(*(f'{name}.parquet' for name in names))


@pytest.mark.parametrize(
  'name',
  ['sequence', 'SEQ', 'Sequences', 'protein_sequence', 'aa_seq', 'protein']
  + ['text', 'primary'],
)
def test_the_column_of_sequences_is_found(write, name):
  path = write({name: ['MKV'], 'other': ['x'], 'length': [3]})
  assert find_columns([path]).sequence == name


@pytest.mark.parametrize('wanted', ['mine', 'MINE'])
def test_the_column_of_sequences_may_be_given(write, wanted):
  path = write({'mine': ['MKV'], 'sequence': ['x']})
  assert find_columns([path], wanted) == Columns('mine')


@pytest.mark.parametrize(
  'columns, wanted, problem',
  [
    ({'a': ['x'], 'b': [1]}, None, r'no column .* sequence, seq.*\(a, b\)'),
    ({'seq': ['x'], 'text': ['x']}, None, r'several .*\(seq, text\)'),
    ({'seq': [1]}, None, 'no column of text'),
    ({'seq': [['M']]}, None, 'no column of text'),
    ({'seq': ['x']}, 'mine', r"no column .*'mine'.*\(seq\)"),
  ],
)
def test_no_column_of_sequences_lists_the_columns(
  write, columns, wanted, problem
):
  with pytest.raises(ValueError, match=f'{problem}.*--sequence_column'):
    find_columns([write(columns)], wanted)


def test_the_first_known_name_is_taken(write):
  path = write(
    {'seq': ['M'], 'uniprot_id': ['x'], 'Accession': ['y'], 'taxid': [1]}
  )
  assert find_columns([path]) == Columns(
    'seq', 'Accession', taxonomy_id='taxid'
  )


def test_columns_of_other_types_are_left_out(write):
  path = write({'seq': ['M'], 'id': [['x']], 'organism': [1]})
  assert find_columns([path]) == Columns('seq')


def test_only_columns_of_all_files_are_taken(write):
  paths = [
    write({'seq': ['M'], 'id': ['a'], 'organism': ['b']}, '1'),
    write({'seq': ['M'], 'organism': ['b']}, '2'),
  ]
  assert find_columns(paths) == Columns('seq', organism='organism')


def test_files_must_agree_on_the_column_of_sequences(write):
  paths = [write({'seq': ['M']}, '1'), write({'text': ['M']}, '2')]
  with pytest.raises(ValueError, match="2 has .* 'text', .*1 in 'seq'"):
    find_columns(paths)


def test_rows_are_given_with_all_that_is_known(write):
  path = write(
    {
      'entry': ['P1', None],
      'sequence': ['MKV', None],
      'description': ['one', None],
      'organism': ['Homo sapiens', None],
      'organism_id': [9606, None],
    }
  )
  (block,) = read(path)
  assert dataclasses.asdict(block) == {
    'first_row': 1,
    'id': ['P1', ''],
    'sequence': ['MKV', ''],
    'description': ['one', ''],
    'organism': ['Homo sapiens', ''],
    'taxonomy_id': [9606, 0],
  }


def test_what_has_no_column_is_empty(write):
  (block,) = read(write({'seq': ['MKV', 'M']}))
  assert block.id == block.description == block.organism == ['', '']
  assert block.taxonomy_id == [0, 0]


@pytest.mark.parametrize(
  'type_',
  [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary(5),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
  ],
  ids=str,
)
def test_types_of_text_are_read(write, type_):
  values = [b'MKVLA', None, b'ACDEF']
  if pa.types.is_fixed_size_binary(type_):
    column = pa.array(values, type_)
  else:
    column = pa.array(values, pa.binary()).cast(pa.string()).cast(type_)
  (block,) = read(write({'seq': column}))
  assert block.sequence == ['MKVLA', '', 'ACDEF']


@pytest.mark.parametrize('type_', [pa.string(), pa.large_string(), pa.binary()])
def test_bytes_that_are_no_text_become_symbols(write, type_):
  column = pa.array([b'MKV', b'M\xff'], pa.binary())
  column = column.cast(type_, safe=False) if type_ != pa.binary() else column
  (block,) = read(write({'seq': column}))
  assert block.sequence == ['MKV', 'M\ufffd']


@pytest.mark.parametrize(
  'values, ids',
  [
    ([9606, None, -1], [9606, 0, 0]),
    ([9606.0, float('nan'), None], [9606, 0, 0]),
    (['9606', 'x', '9' * 30], [9606, 0, 0]),
  ],
)
def test_taxonomy_ids_are_numbers(write, values, ids):
  (block,) = read(write({'seq': ['M'] * 3, 'tax_id': values}))
  assert block.taxonomy_id == ids


@pytest.mark.parametrize('row_group_size', [1, 7, 100])
@pytest.mark.parametrize('rows_per_block', [1, 10, 64, 1000])
def test_blocks_hold_every_row_once(write, row_group_size, rows_per_block):
  sequences = [f'M{"K" * i}' for i in range(64)]
  path = write({'seq': sequences}, row_group_size=row_group_size)
  found = read(path, rows_per_block)
  assert sum((block.sequence for block in found), []) == sequences
  for block in found:
    assert sequences[block.first_row - 1] == block.sequence[0]
    assert len(block.sequence) <= rows_per_block


def test_an_empty_file_has_no_blocks(write):
  assert read(write({'seq': pa.array([], pa.string())})) == []


def test_a_block_can_be_pickled(write):
  (block,) = read(write({'seq': ['M']}))
  assert pickle.loads(pickle.dumps(block)) == block


def test_other_columns_are_not_read(write):
  path = write(
    {'seq': ['M'] * 9, 'other': ['Z' * 50] * 9},
    compression='none',
    write_page_checksum=True,
  )
  path.write_bytes(path.read_bytes().replace(b'Z' * 50, b'Y' * 50))
  (block,) = read(path)
  assert block.sequence == ['M'] * 9


def test_a_lost_column_is_refused(write):
  with pytest.raises(ValueError, match=r"0 columns called 'b'.* are seq\)"):
    list(blocks(write({'seq': ['M']}), Columns('b')))


def test_an_absent_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match='a.parquet cannot be read: No such'):
    find_columns([tmp_path / 'a.parquet'])


@pytest.mark.parametrize('content', [b'', b'>a\nMKV\n' * 9, b'PAR1' * 9])
def test_what_is_no_parquet_is_refused(tmp_path, content):
  path = tmp_path / 'a.parquet'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='a.parquet is damaged or no Parquet'):
    find_columns([path])


def test_a_pointer_of_git_lfs_is_told(tmp_path):
  path = tmp_path / 'a.parquet'
  path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n')
  with pytest.raises(ValueError, match='run git lfs pull'):
    find_columns([path])


@pytest.mark.parametrize('cut', [4, 100, 3000, -100, -1])
def test_a_truncated_file_is_refused(write, cut):
  path = write({'seq': [f'MK{i}' for i in range(999)]}, row_group_size=100)
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(ValueError, match='a.parquet is damaged or no Parquet'):
    read(path)


@pytest.mark.parametrize(
  'rows_per_block, place', [(50, 'group 2'), (120, 'groups 1 to 2')]
)
def test_a_changed_letter_is_found_by_page_checksums(
  write, rows_per_block, place
):
  path = write(
    {'seq': [f'MK{i}A' for i in range(300)]},
    row_group_size=100,
    compression='none',
    write_page_checksum=True,
  )
  path.write_bytes(path.read_bytes().replace(b'MK250A', b'MK250C'))
  with pytest.raises(ValueError, match=rf'a.parquet, row {place} \(.*CRC'):
    read(path, rows_per_block)


def test_a_lost_row_is_an_error(write):
  path = write({'seq': ['M'] * 100})
  data = path.read_bytes()
  footer = len(data) - 8 - int.from_bytes(data[-8:-4], 'little')
  # Field num_rows of the footer: 100 becomes 101.
  at = data.index(b'\x16\xc8\x01', footer)
  path.write_bytes(data[:at] + b'\x16\xca\x01' + data[at + 3 :])
  with pytest.raises(ValueError, match='gives 100 rows where .* has 101'):
    read(path)
