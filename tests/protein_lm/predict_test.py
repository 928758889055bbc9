"""Predictions: what stands in the table for every kind of label."""

import types

import numpy as np
import pytest

from protein_lm import loading, predict

FASTA = '>P1 first\nACD\n>P2\nDXA\n'


@pytest.fixture
def files(tmp_path):
  (tmp_path / 'in.fasta').write_text(FASTA)
  return tmp_path / 'in.fasta', tmp_path / 'out.csv'


def use(monkeypatch, facts, outputs_of):
  """Stands for a checkpoint: outputs_of tokens [B, L] are [B, L, C]."""
  loaded = types.SimpleNamespace(
    metadata={'labels': facts} if facts else {},
    model=types.SimpleNamespace(),
    weights=None,
    data_arguments={'max_len': 8, 'batch_size': 2},
    make_score_step=lambda: lambda weights, batch, mask: outputs_of(batch),
  )
  monkeypatch.setattr(loading, 'load', lambda work_dir, step: loaded)


def token_and_zero(batch):
  return np.stack([batch.tokens, np.zeros(batch.tokens.shape)], -1)


@pytest.mark.parametrize(
  'facts, lines',
  [
    # The last token is EOS, 26, in standard deviations of 2 from a mean of 1.
    (
      {'per': 'protein', 'mean': 1.0, 'std': 2.0},
      ['id,prediction', 'P1,53', 'P2,53'],
    ),
    (
      {'per': 'residue', 'mean': 0.0, 'std': 1.0},
      ['id,prediction', 'P1,0;1;2', 'P2,2;;0'],
    ),
    (
      {'per': 'protein', 'classes': ['yes', 'no']},
      ['id,prediction,probability', 'P1,yes,1.0000', 'P2,yes,1.0000'],
    ),
    (
      {'per': 'residue', 'classes': ['y', 'n']},
      ['id,prediction,probability', 'P1,yyy,0.7040', 'P2,y.y,0.6904'],
    ),
  ],
)
def test_the_table_has_a_row_a_protein(monkeypatch, files, facts, lines):
  use(monkeypatch, facts, token_and_zero)
  assert predict.predict('run', *files) == 2
  assert files[1].read_text().splitlines() == lines


def test_a_file_that_exists_is_kept(monkeypatch, files):
  use(monkeypatch, {'per': 'protein', 'mean': 0.0, 'std': 1.0}, token_and_zero)
  files[1].write_text('mine')
  with pytest.raises(FileExistsError, match='choose another name'):
    predict.predict('run', *files)
  assert files[1].read_text() == 'mine'
  predict.predict('run', *files, overwrite=True)
  assert files[1].read_text().startswith('id,prediction')


def test_a_language_model_predicts_no_labels(monkeypatch, files):
  use(monkeypatch, None, token_and_zero)
  with pytest.raises(ValueError, match='was trained on no labels'):
    predict.predict('run', *files)
