"""Rows merge by key; the table keeps masked and causal numbers apart."""

import csv
import json

import pytest

from protein_lm import evaluation_table


def make_row(**changes):
  row = {'data': 'fasta/mine/1.0.0', 'max_len': 16}
  row |= {'split': 'test', 'slice': 'all', 'name': 'FlaxLM', 'step': 10}
  row |= {'attention': 'exact', 'objective': 'causal'}
  row |= {'residue_perplexity': 17.5, 'masked_residue_perplexity': None}
  return row | changes


def test_rows_of_another_attention_are_added_and_the_same_key_replaced(
  tmp_path,
):
  evaluation_table.merge_rows(tmp_path, [make_row()])
  evaluation_table.merge_rows(tmp_path, [make_row(attention='softmax')])
  new = make_row(residue_perplexity=17.1)
  rows = evaluation_table.merge_rows(tmp_path, [new])
  assert rows == [new, make_row(attention='softmax')]
  assert json.loads((tmp_path / 'evaluation.json').read_text()) == rows
  with (tmp_path / 'evaluation.csv').open() as file:
    read = list(csv.DictReader(file))
  assert [row['residue_perplexity'] for row in read] == ['17.1', '17.5']
  assert len(list(tmp_path.iterdir())) == 2  # no partial file is left


@pytest.mark.parametrize('text', ['{"a"', '[1]', '[{"split": "test"}]'])
def test_a_foreign_file_is_not_overwritten(tmp_path, text):
  path = tmp_path / 'evaluation.json'
  path.write_text(text)
  with pytest.raises(ValueError, match='does not hold rows'):
    evaluation_table.merge_rows(tmp_path, [make_row()])
  assert path.read_text() == text


def test_table_lists_baselines_first_and_skips_empty_columns():
  unigram = make_row(name='unigram', step=None, attention=None)
  table = evaluation_table.format_table([make_row(), unigram]).splitlines()
  assert table[0].split() == ['test', 'residue', 'ppl']
  assert table[1].split() == ['unigram', '17.500']
  assert table[2].startswith('  FlaxLM, step 10, exact attention  ')


def test_masked_rows_have_a_table_of_their_own():
  masked = make_row(
    objective='masked', residue_perplexity=None, masked_residue_perplexity=12.0
  )
  blocks = evaluation_table.format_table([make_row(), masked]).split('\n\n')
  assert '12.000' not in blocks[0] and '17.500' not in blocks[1]
  assert blocks[1].startswith('test (masked 15 %)')


def test_a_diverged_number_is_null_in_json(tmp_path):
  row = make_row(residue_perplexity=float('inf'))
  evaluation_table.merge_rows(tmp_path, [row])
  assert 'Infinity' not in (tmp_path / 'evaluation.json').read_text()
