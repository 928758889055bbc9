"""Rows of proteins, and the tables that keep them."""

import csv

import numpy as np
import pytest

from protein_lm import per_sequence
from protein_lm.proteins import from_sequences
from protein_lm.scores import Scores

PROTEINS = from_sequences({'a,1': 'ACX', 'b': 'D', 'x': 'XX'})
RUN = {'step': 1, 'attention': 'exact', 'data': 'd', 'max_len': 8}


def make_scores(nll, objective='causal'):
  scored = np.array([1, 1, 0, 1, 0, 0], bool)
  return Scores(
    np.array(nll, np.float32), scored, scored.copy(), objective=objective
  )


def make_rows(**run):
  rows = per_sequence.rows([make_scores([1, 2, 9, 4, 9, 9])], PROTEINS)
  return per_sequence.add_columns(rows, PROTEINS, **RUN | run)


def test_a_row_is_over_its_scored_residues():
  first, second, last = make_rows()
  assert (first['length'], first['num_scored']) == (3, 2)
  assert first['loss'] == 1.5 and second['loss'] == 4
  np.testing.assert_allclose(first['residue_perplexity'], np.exp(1.5))
  assert first['accuracy'] == 1 and first['nearest_train_share'] is None
  assert last['loss'] is last['accuracy'] is None


def test_masks_are_put_together_under_masked_names():
  masks = [make_scores([1, 2, 9, 4, 9, 9], 'masked') for _ in range(2)]
  masks[1].nll[0] = 5
  first, *_ = per_sequence.rows(masks, PROTEINS)
  assert first['masked_loss'] == 2.5 and first['num_scored'] == 4
  assert 'loss' not in first


def test_both_tables_hold_the_rows(tmp_path):
  path, _ = per_sequence.merge(tmp_path, 'test', make_rows())
  with path.open() as file:
    found = list(csv.DictReader(file))
  assert [row['id'] for row in found] == ['a,1', 'b', 'x']
  assert found[0]['loss'] == '1.5' and found[2]['loss'] == ''
  assert per_sequence.read(tmp_path, 'test') == make_rows()
  assert {p.suffix for p in tmp_path.iterdir()} == {'.csv', '.parquet'}


def test_rows_of_the_same_run_are_replaced_and_others_kept(tmp_path):
  for step in (1, 2, 1):
    per_sequence.merge(tmp_path, 'test', make_rows(step=step))
  found = per_sequence.read(tmp_path, 'test')
  assert [row['step'] for row in found] == [2, 2, 2, 1, 1, 1]


def test_a_foreign_file_is_named(tmp_path):
  (tmp_path / 'per_sequence_test.parquet').write_text('mine')
  with pytest.raises(ValueError, match='per_sequence_test.parquet does not'):
    per_sequence.read(tmp_path, 'test')
