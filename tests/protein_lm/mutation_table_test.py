"""Tables of variants: what is read, and every row that is refused."""

import gzip
import math

import numpy as np
import pytest

from protein_lm import mutation_folder, mutation_table

WILD = 'MKTAYIAK'
TABLE = 'mutant,mutated_sequence,DMS_score\n'


@pytest.fixture
def write(tmp_path):
  def write(text, name='dms.csv'):
    (tmp_path / name).write_text(text)
    return tmp_path / name

  return write


def test_the_wild_type_follows_from_the_rows(write):
  table = mutation_table.read(
    write(TABLE + 'K2R,MRTAYIAK,0.5\nT3A:Y5F,MKAAFIAK,\n')
  )
  assert table.wild_type == WILD
  assert [v.of(WILD) for v in table.variants] == ['MRTAYIAK', 'MKAAFIAK']
  np.testing.assert_array_equal(table.measured, [0.5, math.nan])
  assert table.is_fit is None


def test_other_columns_are_kept(write):
  text = 'note,mutant\n"a, b",K2R\n\n,WT\n'
  table = mutation_table.read(write(text), WILD)
  assert list(table.rows()) == [['note', 'mutant'], ['a, b', 'K2R'], ['', 'WT']]
  assert table.lines == [2, 4]


def test_tabs_gzip_and_a_byte_order_mark(tmp_path):
  path = tmp_path / 'dms.tsv.gz'
  path.write_bytes(gzip.compress('\ufeffmutant\tx\r\nK2R\t1\r\n'.encode()))
  assert len(mutation_table.read(path, WILD)) == 1


def test_indels_are_whole_sequences(write):
  text = 'mutant,mutated_sequence\nMKTAY,MKTAY\n,MKTAYIAR\n'
  table = mutation_table.read(write(text), WILD)
  assert table.variants[0].sequence == 'MKTAY'
  assert table.variants[1].substitutions == ((7, 'K', 'R'),)
  assert mutation_table.read(write(text)).wild_type is None


@pytest.mark.parametrize(
  'text, message',
  [
    ('', 'is empty'),
    (TABLE, 'holds no variant, its header alone'),
    ('variant,score\nK2R,1\n', ':1 lacks a column: it must name mutant or'),
    ('mutant,mutant\nK2R,1\n', ":1 names the column 'mutant' twice"),
    ('mutant,x\nK2R\n', ':2 has 1 cells, where the header has 2'),
    ('mutant\nK2R\nA42G\n', ':3 .*out of range: the 8 residues'),
    ('mutant\nK2R\nA2G\n', ':3 .*expects A at position 2, where .* has K'),
    ('mutant\nK2\n', ":2 'K2' is no mutation"),
    ('mutant\nK2J\n', ':2 .*unknown letter'),
    (TABLE + 'K2R,MRTAYIAK,high\n', ":2 has 'high' for DMS_score"),
    (TABLE + 'K2R,MKTAYIAK,1\n', ':2 .*expects R .* mutated_sequence has K'),
    (TABLE + 'K2R,MRTAYIAW,1\n', ':2 .*residue 8 is W, where .* has K'),
    (TABLE + 'K2R,MRTAYIA,1\n', ':2 .*of 7 residues, not 8'),
    (TABLE + ',,1\n', ':2 names neither a mutation nor a sequence'),
    (TABLE + ',MKT1,1\n', ":2 '1' at position 4 is no residue"),
  ],
)
def test_refused(write, text, message):
  path = write(text)
  with pytest.raises(ValueError, match=message) as caught:
    mutation_table.read(path, WILD)
  assert str(caught.value).startswith(str(path))


def test_mutations_alone_need_a_wild_type(write):
  with pytest.raises(ValueError, match='names no wild type: give --wild_type'):
    mutation_table.read(write('mutant\nK2R\n'))


def test_most_rows_say_what_the_wild_type_is(write):
  text = TABLE + 'K2R,MRTAYIAW,1\n' + 'K2R,MRTAYIAK,1\n' * 2
  with pytest.raises(ValueError, match=':2 has a mutated_sequence of another'):
    mutation_table.read(write(text))


def test_the_offset_that_would_fit_is_told(write):
  text = 'mutant\nM24A\nK25R\nI29V\n'
  with pytest.raises(ValueError, match='with --offset=23 the positions fit'):
    mutation_table.read(write(text), WILD)
  assert len(mutation_table.read(write(text), WILD, offset=23)) == 3
  text = TABLE + 'M24A,AKTAYIAK,1\nK25R,MRTAYIAK,1\n'
  with pytest.raises(ValueError, match='with --offset=23 the positions fit'):
    mutation_table.read(write(text))


def test_bad_rows_are_noted_if_asked(write):
  path = write('mutant\nK2R\nA2G\nT3\n')
  table = mutation_table.read(path, WILD, skip_bad=True)
  assert [v is None for v in table.variants] == [False, True, True]
  assert table.problems[1].startswith("'A2G' expects A at position 2")
  with pytest.raises(ValueError, match='no row is better'):
    mutation_table.read(write('mutant\nA2G\n'), WILD, skip_bad=True)


def test_a_folder_has_each_table_with_its_wild_type(write, tmp_path):
  write('mutant\nK2R\n', 'a.csv')
  write('mutant\nK1R\n', 'b.csv')
  wild_types = write('>b\nKA\n>a\nMKTA\n', 'wt.fasta')
  tables = mutation_folder.read(tmp_path, str(wild_types))
  assert [(t.name, t.wild_type) for t in tables] == [('a', 'MKTA'), ('b', 'KA')]
  reference = tmp_path.parent / f'{tmp_path.name}.csv'
  reference.write_text('DMS_filename,target_seq\na.csv,MKTA\nb.csv,KA\n')
  tables = mutation_folder.read(tmp_path, str(reference))
  assert [table.wild_type for table in tables] == ['MKTA', 'KA']


@pytest.mark.parametrize(
  'given, message',
  [
    ('MKT1', "neither a file nor a sequence, got 'MKT1'"),
    ('no.fasta', 'neither a file nor a sequence'),
  ],
)
def test_wild_types_refused(write, given, message):
  with pytest.raises(ValueError, match=message):
    mutation_folder.read(write('mutant\nK2R\n'), given)


def test_a_wild_type_of_another_name_is_refused(write):
  wild_types = write('>b\nKA\n>c\nMKTA\n', 'wt.fasta')
  with pytest.raises(ValueError, match="2 wild types and none named 'dms'"):
    mutation_folder.read(write('mutant\nK2R\n'), str(wild_types))


def test_a_folder_without_tables_or_with_two_of_a_name(write, tmp_path):
  with pytest.raises(ValueError, match='holds no table'):
    mutation_folder.read(tmp_path)
  write('mutant\nK2R\n', 'a.csv')
  write('mutant\nK2R\n', 'a.tsv')
  with pytest.raises(ValueError, match='would have the output of'):
    mutation_folder.read(tmp_path, WILD)
