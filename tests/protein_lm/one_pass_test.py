"""One pass equals windows where one window is enough; proteins are found."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import evaluation, one_pass
from protein_lm.data import EvalBatches
from protein_lm.objectives import TokenScores
from protein_lm.proteins import from_sequences


@jax.jit
def score_step(params, batch, mask_BL=None):
  nll_BL = params + jnp.cos(batch.tokens + batch.positions)
  if mask_BL is not None:
    nll_BL = jnp.where(mask_BL, nll_BL, jnp.inf)
  return TokenScores(nll_BL, nll_BL > 2, batch.weights)


def test_one_pass_equals_one_window():
  protein = from_sequences({'titin': 'ACDEFGHIKL' * 40})
  result = one_pass.score_one_pass(score_step, 2.0, protein)
  batches = EvalBatches(protein, 1, max_len=402)
  scores = evaluation.score_split(score_step, 2.0, batches, protein)
  expected = evaluation.summarize(scores, protein)
  for name in ('residue_perplexity', 'perplexity'):
    np.testing.assert_allclose(result.metrics[name], expected[name], rtol=1e-6)
  text = str(result)
  assert text.startswith('titin: 400 residues scored in one pass')
  assert 'peak memory' in text and result.peak_bytes > 1e7
  assert result.seconds > 0 and result.compile_seconds > 0


def test_masked_model_is_named_as_such():
  protein = from_sequences({'P': 'ACDEFGHIKL' * 40})
  result = one_pass.score_one_pass(score_step, 2.0, protein, is_masked=True)
  assert np.isfinite(result.metrics['masked_residue_perplexity'])
  assert 'P: 60 masked residues' in str(result)


def test_protein_is_found_by_id_in_any_split():
  splits = {'train': {'a': 'ACD'}, 'test': {'b': 'EFX', 'c': 'GG'}}
  data = types.SimpleNamespace(
    splits=splits,
    name='fake',
    proteins=lambda split: from_sequences(splits[split]),
  )
  protein = one_pass.find_protein('b', data)
  expected = from_sequences({'b': 'EFX'})
  assert protein.ids == ['b'] and protein.offsets.tolist() == [0, 3]
  np.testing.assert_array_equal(protein.residues, expected.residues)
  with pytest.raises(ValueError, match="'titin' is no file, and no id"):
    one_pass.find_protein('titin', data)


def test_longest_protein_of_a_fasta_file(tmp_path):
  path = tmp_path / 'my.fasta'
  path.write_text('>a\nACD\n>sp|Q8WZ42|TITIN_HUMAN Titin\nACDE\nFG\n>c\nA\n')
  protein = one_pass.find_protein(str(path), None)
  assert protein.ids == ['Q8WZ42'] and len(protein.residues) == 6
