"""FASTA files: every awkward one is read or refused by rule, with file:line."""

import gzip

import pytest

from protein_lm.datasets import fasta_file
from protein_lm.datasets.collection import read_proteins
from protein_lm.datasets.fasta_file import FastaFiles, parse_header, read_blocks
from protein_lm.datasets.intake import Tally

# Enough good records that one bad one is less than 1 %.
GOOD = ''.join(
  f'>good{i}\nMK{"ACDEFGHIKL"[i % 10] * (i + 1)}\n' for i in range(199)
)


@pytest.fixture
def read(tmp_path):
  """Reads text (or bytes) as a file; returns id -> protein and the counts."""

  def read(text, name='my.fasta'):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    tally = Tally()
    proteins = read_proteins(FastaFiles((path,)), tally)
    return {protein.id: protein for protein in proteins}, tally.counts

  return read


@pytest.mark.parametrize(
  'lines, sequence',
  [
    ('mkV', 'MKV'),
    ('MKV*', 'MKV'),
    ('MJV', 'MXV'),
    ('MBZUOXV', 'MBZUOXV'),
    ('MK V\t\r\n\r\n A C \r', 'MKVAC'),
    ('MK\rVA', 'MKVA'),
    ('M', 'M'),
    ('MKV\n*', 'MKV'),
  ],
)
def test_letters_are_read_by_the_policy(read, lines, sequence):
  proteins, counts = read(f'>a\n{lines}\n>b\nMKVL')
  assert proteins['a'].sequence == sequence
  assert counts['kept'] == 2


@pytest.mark.parametrize('symbol', list('-.*7?@é\xa0ſΩ\0🧬') + ['\u2028'])
def test_a_record_with_a_symbol_is_skipped_with_its_line(read, capsys, symbol):
  proteins, counts = read(f'{GOOD}>bad\nMKV\n\nA{symbol}C\n')
  assert 'bad' not in proteins and len(proteins) == 199
  assert counts['with symbols skipped'] == 1
  line = GOOD.count('\n') + 4
  assert f'my.fasta:{line}: {symbol!r} in record bad' in capsys.readouterr().out


def test_a_second_terminal_stop_is_a_symbol(read):
  assert read(f'{GOOD}>bad\nMKV**\n')[1]['with symbols skipped'] == 1


def test_bytes_that_are_no_text_are_symbols(read):
  _, counts = read(GOOD.encode() + b'>bad\nMK\xff\xfeV\n')
  assert counts['with symbols skipped'] == 1


def test_less_than_one_percent_of_symbols_is_accepted(read):
  bad = '>bad\nM-K\n'
  assert read(GOOD + bad + '>more\nMKVLA\n' + bad)[1]['kept'] == 200


def test_more_than_one_percent_of_symbols_stops(read):
  with pytest.raises(ValueError) as error:
    read('>a\nMKV\n>b x\nMK\nM7\n>c\nM-\n')
  told = str(error.value)
  assert '2 of 3 records (66.7%)' in told
  assert "my.fasta:5: '7' in record b" in told
  assert 'correct or remove' in told


@pytest.mark.parametrize(
  'text', ['>a\n\n>b\nMKV', '>b\nMKV\n>a', '>b\nMKV\n>a\n*']
)
def test_an_empty_record_is_skipped_with_its_line(read, capsys, text):
  proteins, counts = read(text)
  assert list(proteins) == ['b'] and counts['empty skipped'] == 1
  line = text.split('\n').index('>a') + 1
  assert f'my.fasta:{line}: empty record a' in capsys.readouterr().out


def test_a_byte_order_mark_is_no_text(read):
  assert list(read(b'\xef\xbb\xbf>a\nMKV')[0]) == ['a']


def test_duplicate_sequences_are_dropped(read):
  proteins, counts = read('>a\nMKJ\n>b\nmkj*\n>c\nMK\nJ\n>d\nMKV')
  assert list(proteins) == ['a', 'd']
  assert counts['duplicates dropped'] == 2 and counts['J read as X'] == 1


def test_duplicate_ids_become_distinct(read, capsys):
  proteins, counts = read('>a\nMK\n>a-2\nMV\n>a\nML\n>a\nMI\n')
  assert {p.id: p.sequence for p in proteins.values()} == {
    'a': 'MK',
    'a-2': 'MV',
    'a-3': 'ML',
    'a-4': 'MI',
  }
  assert counts['ids made distinct'] == 2
  assert 'my.fasta:5: id a again, now a-3' in capsys.readouterr().out


def test_a_header_without_id_is_named_by_its_number(read):
  assert list(read('>\nMKV\n> \nMKL')[0]) == ['record_1', 'record_2']


@pytest.mark.parametrize(
  'header, expected',
  [
    (
      'sp|P1|X_HUMAN 14-3-3 OS=Homo sapiens OX=9606',
      ('P1', '14-3-3', 'Homo sapiens', 9606),
    ),
    (
      'UniRef50_Q2 Tail n=1 Tax=Phage X TaxID=1',
      ('UniRef50_Q2', 'Tail', 'Phage X', 1),
    ),
    ('a OX=10 OS=Late', ('a', '', 'Late', 10)),
    ('a b OS=Only', ('a', 'b', 'Only', 0)),
    ('a pH=7 is acid', ('a', 'pH=7 is acid', '', 0)),
    ('a OS=X (strain OX=no) OX=12345678901', ('a', '', 'X (strain', 0)),
    ('my|id\tsome text', ('my|id', 'some text', '', 0)),
    ('P1', ('P1', '', '', 0)),
  ],
)
def test_headers_give_what_uniprot_writes_into_them(header, expected):
  assert parse_header(header) == expected


@pytest.mark.parametrize('end', [b'\n', b'\r\n', b'\r'])
@pytest.mark.parametrize('block_bytes', [1, 2, 3, 7, 1000])
def test_blocks_are_whole_records_whatever_their_size(
  tmp_path, end, block_bytes
):
  path = tmp_path / 'my.fasta'
  lines = b'|>a x>y|MK|V||>b|>c|W|W>W|>d|M'.split(b'|')
  path.write_bytes(end.join(lines))
  found = []
  for block in read_blocks(path, 0, block_bytes):
    line, number = block.first, block.num_before
    for text in block.content.split(b'\n>'):
      found.append((line, number, text.replace(b'\n', b'/')))
      line, number = line + text.count(b'\n') + 1, number + 1
  found[-1] = (*found[-1][:2], found[-1][2].rstrip(b'/'))
  assert found == [
    (2, 0, b'a x>y/MK/V/'),
    (6, 1, b'b'),
    (7, 2, b'c/W/W>W'),
    (10, 3, b'd/M'),
  ]


def test_a_record_without_end_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(fasta_file, '_MAX_RECORD_BYTES', 100)
  path = tmp_path / 'genome.fa'
  path.write_text('>a\nMK\n>chr1\n' + 'ACGT' * 100)
  with pytest.raises(ValueError, match='genome.fa:3 begins a record of more'):
    list(read_blocks(path, 0, 64))


def test_gzip_is_told_by_content(read):
  assert len(read(gzip.compress(GOOD.encode()), 'no_suffix')[0]) == 199
  assert len(read(GOOD, 'plain.gz')[0]) == 199


@pytest.mark.parametrize('cut', [3, 12, -9, -1])
def test_a_truncated_gzip_is_an_error(read, cut):
  with pytest.raises(ValueError, match='x.gz is a truncated or damaged gzip'):
    read(gzip.compress(GOOD.encode())[:cut], 'x.gz')


@pytest.mark.parametrize('at', [20, 200, -2])
def test_a_damaged_gzip_is_an_error(read, at):
  data = bytearray(gzip.compress(GOOD.encode()))
  data[at] ^= 255
  with pytest.raises(ValueError, match='x.gz is a truncated or damaged gzip'):
    read(bytes(data), 'x.gz')


def test_text_before_the_first_header_is_an_error(read):
  with pytest.raises(ValueError, match=r'my.fasta:2 holds text .*no FASTA'):
    read('\nid,sequence\n>a\nMKV')


@pytest.mark.parametrize('text', ['', '\n\n', '>a\n>b\n'])
def test_a_file_without_proteins_is_an_error(read, text):
  with pytest.raises(ValueError, match='my.fasta holds no protein'):
    read(text)


def test_an_absent_file_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='no.fasta cannot be read: No such file'):
    read_proteins(FastaFiles((tmp_path / 'no.fasta',)), Tally())


def test_the_places_told_are_few_and_the_count_is_whole(read, capsys):
  _, counts = read('>a\n' * 50 + '>b\nMKV')
  out = capsys.readouterr().out
  assert counts['empty skipped'] == 50
  assert out.count('empty record') == 3 and '... more' in out
