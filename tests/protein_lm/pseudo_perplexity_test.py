"""Pseudo-perplexity against a loop over residues; its cost is what it says."""

import jax
import numpy as np
import pytest

from protein_lm import baselines, evaluation, models, vocab
from protein_lm import pseudo_perplexity as pseudo
from protein_lm.proteins import from_sequences
from protein_lm.scorer import Scorer

MAX_LEN = 48  # of make_loaded
SEQUENCES = {'a': 'ACDX', 'b': 'GHIKLMNPQ', 'long': 'A' * 60}


@pytest.fixture(scope='module')
def scorer(make_loaded):
  return Scorer(make_loaded(models.FlaxBERT), batch_size=2)


@pytest.fixture(scope='module')
def plan(scorer):
  return pseudo.plan(scorer, from_sequences(SEQUENCES), 'mine', 5)


def nll_of(scorer, sequence, hidden):
  """Nats of each residue, in numpy; `hidden` is shown as MASK."""
  tokens = np.full((1, MAX_LEN), vocab.PAD_ID, np.int32)
  residues = vocab.encode(sequence)
  tokens[0, : len(residues) + 2] = [vocab.BOS_ID, *residues, vocab.EOS_ID]
  if hidden is not None:
    tokens[0, hidden + 1] = vocab.MASK_ID
  logits_LV = np.asarray(
    jax.jit(lambda x: scorer.loaded.model(x))(tokens)[0], np.float64
  )
  log_p_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
  return -log_p_LV[1 + np.arange(len(residues)), residues]


def test_each_residue_is_hidden_alone(scorer, plan):
  scores = pseudo.score(scorer, plan.proteins)
  expected = [nll_of(scorer, 'ACDX', i)[i] for i in range(3)]
  expected += [nll_of(scorer, SEQUENCES['b'], i)[i] for i in range(9)]
  np.testing.assert_array_equal(np.flatnonzero(~scores.scored), [3])
  np.testing.assert_allclose(scores.nll[scores.scored], expected, atol=1e-5)
  metrics = pseudo.summarize(
    scores, pseudo.one_pass(scorer, plan.proteins), plan.proteins
  )
  np.testing.assert_allclose(
    np.log(metrics['pseudo_perplexity']), np.mean(expected), atol=1e-5
  )
  assert metrics['pseudo_num_residues'] == 12


def test_the_cost_is_what_is_computed(scorer, plan, monkeypatch):
  assert plan.num_passes == 12 and plan.proteins.ids == ['a', 'b']
  for words in ('2 of 3 proteins', '(1 are longer)', '12 forward passes'):
    assert words in plan.text
  monkeypatch.setattr(pseudo, '_BATCHES_AT_ONCE', 1)
  again = pseudo.plan(scorer, from_sequences(SEQUENCES), 'mine', 5)
  done = []
  pseudo.score(scorer, again.proteins, done.append)
  assert len(done) == again.num_batches
  assert again.num_passes == 12 and again.num_tokens % MAX_LEN == 0


def test_one_pass_estimates_undo_the_mixing(scorer, plan):
  q = np.exp(
    -np.concatenate(
      [nll_of(scorer, SEQUENCES[id_], None) for id_ in plan.proteins.ids]
    )
  )
  counted_T = evaluation.counted_residues(plan.proteins)
  q = q[counted_T]
  published, bayes = (
    x_T[counted_T] for x_T in pseudo.one_pass(scorer, plan.proteins)
  )
  np.testing.assert_allclose(
    np.exp(-published), np.maximum(2 * q - 1, 1e-4), rtol=1e-4
  )
  p = np.exp(-bayes)  # kept with odds 0.1 p : 0.1 / 20
  np.testing.assert_allclose(q, p * 0.105 / (0.1 * p + 0.005), rtol=1e-4)


def test_baseline_stands_on_the_same_residues(scorer, plan):
  scores = evaluation.Scores(
    np.zeros(13), evaluation.counted_residues(plan.proteins)
  )
  row = pseudo.summarize_baseline(baselines.uniform(), scores, plan.proteins)
  np.testing.assert_allclose(row['pseudo_perplexity'], 25)
  assert row['pseudo_num_residues'] == 12


def test_a_causal_model_is_refused(make_loaded):
  with pytest.raises(ValueError, match='causal FlaxLM: pseudo-perplexity'):
    pseudo.check(make_loaded())


def test_no_protein_that_fits_is_one_sentence(scorer):
  with pytest.raises(ValueError, match='no protein of at most 46 residues'):
    pseudo.plan(scorer, from_sequences({'x': 'A' * 50}), 'mine', 3)
