"""A FASTA file read record by record: nothing is lost, ids are distinct."""

import gzip

import pytest

from protein_lm import fasta_stream, vocab
from protein_lm.fasta_stream import FastaStream


@pytest.fixture
def write(tmp_path):
  def write(text):
    path = tmp_path / 'in.fasta'
    path.write_text(text)
    return path

  return write


def read(path):
  return [(id_, vocab.decode(ids)) for id_, ids in FastaStream(path)]


def test_equal_sequences_are_both_kept(write):
  path = write('>a x\nACD\n>b\nac\nd*\n')
  assert read(path) == [('a', 'ACD'), ('b', 'ACD')]


def test_ids_are_made_distinct_past_those_that_are_taken(write, capsys):
  path = write('>a\nA\n>a\nC\n>a-2\nD\n>a\nE\n')
  assert [id_ for id_, _ in read(path)] == ['a', 'a-3', 'a-2', 'a-4']
  assert 'in.fasta:3: id a again, now a-3' in capsys.readouterr().out


def test_counts_are_of_what_is_kept(write):
  stream = FastaStream(write('>a\nACDE\n>b\n\n>c\nAC\n'))
  assert (stream.num_proteins, stream.num_residues) == (2, 6)
  assert stream.tally.counts['empty skipped'] == 1


@pytest.mark.parametrize('block_bytes', [1, 7, 64])
def test_blocks_do_not_show(write, monkeypatch, block_bytes):
  text = '>a\nACDE\n>b\nFGHI\nKL\n>a\nM\n'
  expected = FastaStream(write(text)), read(write(text))
  monkeypatch.setattr(fasta_stream, '_BLOCK_BYTES', block_bytes)
  assert read(write(text)) == expected[1]
  assert FastaStream(write(text)).digest == expected[0].digest


def test_gzip_has_the_same_digest(write, tmp_path):
  (tmp_path / 'in.gz').write_bytes(gzip.compress(b'>a\nACDE\n'))
  plain = FastaStream(write('>a\nACDE\n'))
  assert FastaStream(tmp_path / 'in.gz').digest == plain.digest


@pytest.mark.parametrize('text', ['', '\n', '>a\n\n'])
def test_an_empty_file_is_refused(write, text):
  with pytest.raises(ValueError, match='in.fasta holds no protein'):
    FastaStream(write(text))


def test_symbols_are_refused(write):
  with pytest.raises(ValueError, match=r"in.fasta:2: '-' in record a"):
    FastaStream(write('>a\nA-C\n'))
