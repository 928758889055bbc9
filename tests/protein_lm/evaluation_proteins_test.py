"""The proteins of a file, as a split."""

import types

import pytest

from protein_lm import evaluation_proteins as choice

SEQUENCE = 'ACDEFGHIKLMNPQRSTVWYACDEFGHIKLMNPQRST'


def open_nothing():
  raise FileNotFoundError('it is gone')


def test_a_file_has_clusters_and_needs_no_data(tmp_path, capsys):
  fasta = tmp_path / 'x.fa.gz.fasta'
  fasta.write_text(f'>a\n{SEQUENCE}\n>b\n{SEQUENCE}A\n>c\nMNPQ\n')
  loaded = types.SimpleNamespace(open_data=open_nothing)
  data, name, splits = choice.choose_proteins(loaded, fasta=fasta)
  assert data is None and name == 'x.fa.gz.fasta'
  assert splits['x.fa.gz'].clusters == ['a', 'a', 'c']
  assert 'no baselines but uniform' in capsys.readouterr().out


@pytest.mark.parametrize(
  'name, split',
  [('my.fasta', 'my'), ('my.fa.gz', 'my'), ('test.fasta', 'test.fasta')],
)
def test_a_split_is_named_after_its_file(name, split):
  data = types.SimpleNamespace(splits=['train', 'test'])
  assert choice._split_name(name, data) == split
