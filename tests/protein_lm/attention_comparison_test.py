"""Kernel errors of a model's layers as rows, and the file that keeps them."""

import jax
import numpy as np
import pytest

from protein_lm import attention_comparison as comparison
from protein_lm.kernel_error import kernel_errors
from protein_lm.proteins import from_sequences
from protein_lm.scorer import Scorer


def make_row(step, layer, error):
  return {
    'data': 'd',
    'split': 'test',
    'step': step,
    'attention': 'exact',
    'layer': layer,
    'error': error,
  }


@pytest.mark.slow
def test_rows_are_the_kernel_errors_of_the_first_rows(make_loaded):
  scorer = Scorer(make_loaded(num_layers=2))
  proteins = from_sequences({'a': 'ACDEFGHIKLMN' * 3, 'b': 'GHIKLMNPQ'})
  rows = comparison.kernel_error_rows(scorer, proteins)
  assert [row['layer'] for row in rows] == [0, 1]
  assert rows[0]['num_tokens'] == 38 + 11
  batch = scorer.batches(proteins)[0].batch
  error_NH, uniform_NH = jax.jit(kernel_errors)(
    scorer.loaded.model, batch.tokens, segment_ids=batch.segment_ids
  )
  for row, error_H, uniform_H in zip(rows, error_NH, uniform_NH, strict=True):
    np.testing.assert_allclose(row['error'], error_H.mean(), rtol=1e-4)
    np.testing.assert_allclose(row['uniform'], uniform_H.mean(), rtol=1e-4)
  assert 'layer 1: ' in comparison.format_errors(scorer, rows)


def test_rows_of_the_same_key_are_replaced(tmp_path):
  comparison.merge_errors(tmp_path, [make_row(1, 0, 0.5), make_row(1, 1, 0.6)])
  comparison.merge_errors(tmp_path, [make_row(2, 0, 0.7)])
  comparison.merge_errors(tmp_path, [make_row(1, 0, 0.1)])
  found = [
    (row['step'], row['error']) for row in comparison.read_errors(tmp_path)
  ]
  assert found == [(2, 0.7), (1, 0.1)]


def test_a_foreign_file_is_named(tmp_path):
  (tmp_path / comparison.FILE_NAME).write_text('[1]')
  with pytest.raises(ValueError, match='does not hold kernel errors'):
    comparison.read_errors(tmp_path)
