"""A real, tiny model: its scores against logits of one protein at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from protein_lm import evaluation, models, vocab
from protein_lm.proteins import from_sequences
from protein_lm.scorer import Scorer

MAX_LEN = 48  # of make_loaded


def make_proteins():
  generator = np.random.default_rng(0)
  letters = np.array(list(vocab.RESIDUES))
  return from_sequences(
    {
      f'P{n}': ''.join(generator.choice(letters, n))
      for n in (1, 7, 20, 33, 45, 46, 12, 46, 30, 5, 40)
    }
  )


@pytest.fixture(scope='module')
def causal(make_loaded):
  return make_loaded()


@pytest.fixture(scope='module')
def masked(make_loaded):
  return make_loaded(models.FlaxBERT)


@pytest.fixture(scope='module')
def expected(causal):
  """Mean log-likelihood of the residues, protein by protein, in numpy."""
  proteins, total, count = make_proteins(), 0.0, 0
  model = jax.jit(lambda tokens: causal.model(tokens))
  for start, end in zip(
    proteins.offsets[:-1], proteins.offsets[1:], strict=True
  ):
    residues = proteins.residues[start:end]
    tokens = np.full((1, MAX_LEN), vocab.PAD_ID, np.int32)
    tokens[0, : len(residues) + 2] = [vocab.BOS_ID, *residues, vocab.EOS_ID]
    logits_LV = np.asarray(model(tokens)[0], np.float64)
    log_p_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
    for place, residue in enumerate(residues):
      if vocab.RESIDUES[residue] not in 'BXZ':
        total += log_p_LV[place, residue]
        count += 1
  return total / count


@pytest.mark.parametrize(
  'batch_size, num_devices', [(None, None), (3, 1), (8, 8)]
)
def test_mean_log_likelihood_equals_numpy(
  causal, expected, batch_size, num_devices
):
  scorer = Scorer(causal, batch_size=batch_size, num_devices=num_devices)
  scores = scorer.score(make_proteins())
  found = -scores.nll[scores.scored].mean(dtype=np.float64)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_rows_are_cut_over_the_devices(causal):
  scorer = Scorer(causal, batch_size=3, num_devices=2)
  assert scorer.mesh.size == 2
  assert scorer.batches(make_proteins())[0].batch.tokens.shape == (4, MAX_LEN)


def test_more_devices_than_there_are_is_one_sentence(causal):
  with pytest.raises(ValueError, match='num_devices=9, and there are 8'):
    Scorer(causal, num_devices=9)


def test_a_second_scorer_compiles_nothing(causal):
  scorer = Scorer(causal, batch_size=2)
  scorer.score(make_proteins())
  again = Scorer(dataclasses.replace(causal, step=4), batch_size=2)
  assert again._score_step is scorer._score_step
  size = scorer._score_step._cache_size()
  again.score(make_proteins())
  assert scorer._score_step._cache_size() == size


def test_masked_scores_are_of_the_kth_mask(masked):
  proteins = make_proteins()
  scores = evaluation.score_proteins(masked, proteins, k=2)
  mask_T = evaluation.masked_residues(proteins, k=2)
  np.testing.assert_array_equal(scores.mask, mask_T)
  np.testing.assert_array_equal(
    scores.scored, mask_T & evaluation.counted_residues(proteins)
  )


def test_an_untrained_model_is_as_unsure_as_the_vocabulary_is_large(
  make_loaded,
):
  loaded = make_loaded()
  loaded = dataclasses.replace(
    loaded, params=jax.tree.map(lambda x: x / 3, loaded.params)
  )
  rows = evaluation.perplexity_of(loaded, ['ACDEFGHIKLMNPQRSTVWY' * 2])
  assert 22 < rows[0]['residue_perplexity'] < 40


def test_perplexity_of_a_sequence_alone_and_among_others(causal):
  rows = evaluation.perplexity_of(causal, ['ACDEF', 'GHIKLMN', 'ACDEF'])
  assert [row['id'] for row in rows] == ['1', '2', '3']
  (alone,) = evaluation.perplexity_of(causal, {'mine': 'ACDEF'})
  assert alone['id'] == 'mine' and alone['length'] == 5
  for row in (rows[0], rows[2]):
    np.testing.assert_allclose(row['loss'], alone['loss'], rtol=1e-5)
  np.testing.assert_allclose(np.exp(alone['loss']), alone['residue_perplexity'])


def test_masked_perplexity_has_no_causal_name(masked):
  (row,) = evaluation.perplexity_of(masked, ['ACDEFGHIKL'])
  assert row['num_scored'] == 10  # two residues, five masks
  assert row['masked_residue_perplexity'] > 1
  assert not {'loss', 'residue_perplexity', 'accuracy'} & set(row)


@pytest.mark.parametrize(
  'sequences, why',
  [
    ([], 'there is no sequence'),
    (['AC', ''], 'sequence 2 is empty'),
    ({'x': 'AC*'}, r"sequence 1 \(x\): '\*' at position 3"),
    ('ACD', 'a list of sequences'),
  ],
)
def test_wrong_sequences_are_named(causal, sequences, why):
  with pytest.raises(ValueError, match=why):
    evaluation.perplexity_of(causal, sequences)


def test_a_batch_of_no_rows_is_refused(causal):
  with pytest.raises(ValueError, match='batch_size must be at least 1'):
    evaluation.score_proteins(causal, make_proteins(), batch_size=0)
