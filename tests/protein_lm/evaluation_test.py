"""The scores of a split against an independent sum; what counts, what not."""

import numpy as np
import pytest

from protein_lm import (
  baselines,
  bootstrap,
  calibration,
  evaluation,
  vocab,
)
from protein_lm.data import EvalBatches
from protein_lm.objectives import TokenScores
from protein_lm.proteins import from_sequences


def make_proteins():
  rng = np.random.default_rng(0)
  letters = np.array(list(vocab.RESIDUES))  # B, X and Z among them
  lengths = (1, 5, 14, 15, 30, 31, 70)  # max_len is 16, BOS and EOS included
  return from_sequences(
    {f'P{n}': ''.join(rng.choice(letters, n)) for n in lengths}
  )


def fake_score_step(params, batch, mask_BL=None):
  """A model whose nll is a function of the token and the one before it."""
  del mask_BL
  before_BL = np.roll(batch.tokens, 1, axis=1)
  nll_BL = params * np.sin(1.0 + batch.tokens + 31 * before_BL) ** 2
  return TokenScores(nll_BL, nll_BL < 0.5, batch.weights)


def expected_nll(proteins, p):
  start, end = proteins.offsets[p : p + 2]
  tokens = [vocab.BOS_ID, *proteins.residues[start:end], vocab.EOS_ID]
  tokens = np.array(tokens, np.int32)
  return 2 * np.sin(1.0 + tokens[1:] + 31 * tokens[:-1]) ** 2


@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_split_equals_independent_sums(batch_size):
  proteins = make_proteins()
  batches = EvalBatches(proteins, batch_size, max_len=16)
  scores = evaluation.score_split(fake_score_step, 2.0, batches, proteins)
  metrics = evaluation.summarize(scores, proteins)
  all_nll = [expected_nll(proteins, p) for p in range(len(proteins))]
  is_counted = np.isin(proteins.residues, vocab.encode('BXZ'), invert=True)
  counted = np.split(is_counted, proteins.offsets[1:-1])
  nll = np.concatenate(
    [x[:-1][c] for x, c in zip(all_nll, counted, strict=True)]
  )
  eos = np.array([x[-1] for x in all_nll])
  means = [
    x[:-1][c].mean() for x, c in zip(all_nll, counted, strict=True) if c.any()
  ]
  expected = {
    'residue_perplexity': np.exp(nll.mean()),
    'bits_per_residue': np.log2(np.exp(nll.mean())),
    'perplexity': np.exp(np.concatenate([nll, eos]).mean()),
    'accuracy': np.mean(nll < 0.5),
    'protein_perplexity': np.exp(np.mean(means)),
    'num_residues': len(nll),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_a_residue_scored_twice_or_never_is_an_error():
  proteins = make_proteins()
  batches = list(EvalBatches(proteins, 2, max_len=16))
  for wrong in (batches[:-1], [*batches, batches[0]]):
    with pytest.raises(RuntimeError, match='once'):
      evaluation.score_split(fake_score_step, 2.0, wrong, proteins)


def test_masked_model_scores_the_masked_residues_alone():
  proteins, seen = make_proteins(), []

  def score_step(params, batch, mask_BL):
    seen.append(batch.tokens[mask_BL])
    return fake_score_step(params, batch)

  mask_T = evaluation.masked_residues(proteins)
  batches = EvalBatches(proteins, 2, max_len=16)
  scores = evaluation.score_split(
    score_step, 2.0, batches, proteins, mask_T=mask_T
  )
  counted_T = evaluation.counted_residues(proteins)
  np.testing.assert_array_equal(scores.scored, mask_T & counted_T)
  assert np.concatenate(seen).max() < vocab.BOS_ID  # never BOS or EOS
  metrics = evaluation.summarize(scores, proteins)
  assert metrics['masked_residue_perplexity'] > 1
  assert metrics['residue_perplexity'] is None
  assert metrics['perplexity'] is None and metrics['accuracy'] is None


def test_masked_windows_hide_the_same_residues_as_context():
  proteins = make_proteins()
  mask_T = evaluation.masked_residues(proteins, k=1)
  for batch in EvalBatches(proteins, 2, max_len=16):
    mask_BL = evaluation.batch_mask(batch, proteins, mask_T)
    for b, l in np.argwhere(batch.batch.tokens < vocab.BOS_ID):
      place = proteins.offsets[batch.protein_BL[b, l]] + batch.residue_BL[b, l]
      assert mask_BL[b, l] == mask_T[place]


def test_masks_depend_on_id_and_k_alone():
  proteins = from_sequences({'a': 'A' * 40, 'b': 'C' * 40})
  swapped = from_sequences({'b': 'D' * 40, 'a': 'E' * 40})
  mask, other = map(evaluation.masked_residues, (proteins, swapped))
  np.testing.assert_array_equal(mask, np.roll(other, 40))
  assert mask.sum() == 12  # 15 % of 80
  assert (mask != evaluation.masked_residues(proteins, k=1)).any()


def test_slices_are_summed_over_their_residues_alone():
  proteins = from_sequences({'a': 'AAAA', 'b': 'CC'})
  proteins.held_out[1:3] = True
  proteins.pure[1] = True
  nll_T = np.array([1.0, 2.0, 4.0, 8.0, 3.0, 5.0])
  scores = evaluation.Scores(
    nll_T, np.ones(6, bool), nll_T > 2, np.array([7.0, 10.0])
  )
  parts = evaluation.slices(proteins)
  metrics = {
    name: evaluation.summarize(scores, proteins, *where)
    for name, where in parts.items()
  }
  np.testing.assert_allclose(np.log(metrics['pure']['residue_perplexity']), 4)
  np.testing.assert_allclose(np.log(metrics['pure']['perplexity']), 6)
  np.testing.assert_allclose(
    np.log(metrics['held_out']['residue_perplexity']), 3
  )
  assert metrics['held_out']['perplexity'] is None
  assert metrics['held_out']['num_residues'] == 2
  np.testing.assert_allclose(
    np.log(metrics['all']['protein_perplexity']), 3.875
  )


def test_a_split_without_held_out_families_has_one_slice():
  assert list(evaluation.slices(make_proteins())) == ['all']


def test_baseline_is_scored_on_the_residues_of_the_model():
  proteins = from_sequences({'a': 'ACDX'})
  nll_T = np.zeros(4, np.float32)
  model_scores = evaluation.Scores(nll_T, np.array([1, 0, 1, 0], bool))
  scores = evaluation.baseline_scores(
    baselines.uniform(), proteins, model_scores
  )
  metrics = evaluation.summarize(scores, proteins)
  np.testing.assert_allclose(metrics['residue_perplexity'], 25)
  assert metrics['num_residues'] == 2 and metrics['accuracy'] is None


def test_periodic_evaluation_over_all_batches_is_that_of_the_split():
  proteins = make_proteins()
  batches = list(EvalBatches(proteins, 2, max_len=16))
  scores = evaluation.score_split(fake_score_step, 2.0, batches, proteins)
  exact = evaluation.summarize(scores, proteins)
  metrics = evaluation.evaluate_batches(fake_score_step, 2.0, batches)
  for name in ('perplexity', 'residue_perplexity'):
    np.testing.assert_allclose(metrics[name], exact[name], rtol=1e-6)
  assert metrics['num_tokens'] == exact['num_residues'] + len(proteins)
  np.testing.assert_allclose(np.exp(metrics['loss']), metrics['perplexity'])


def test_periodic_masked_evaluation_has_no_causal_name():
  proteins = make_proteins()
  batches = list(EvalBatches(proteins, 2, max_len=16))
  mask_T = evaluation.masked_residues(proteins)
  masks = [evaluation.batch_mask(b, proteins, mask_T) for b in batches]
  metrics = evaluation.evaluate_batches(fake_score_step, 2.0, batches, masks)
  names = {'loss', 'accuracy', 'num_tokens', 'masked_residue_perplexity'}
  assert set(metrics) == names
  counted_T = evaluation.counted_residues(proteins)
  assert metrics['num_tokens'] == (mask_T & counted_T).sum()


def test_top5_and_calibration_are_over_scored_residues():
  proteins = from_sequences({'a': 'ACDX', 'b': 'EE'})
  scored = np.array([1, 1, 1, 0, 1, 1], bool)
  confidence = np.array([0.5, 0.2, 0.9, 0.1, 0.3, 0.3])
  correct = np.array([1, 0, 0, 1, 0, 1], bool)
  scores = evaluation.Scores(
    np.ones(6),
    scored,
    correct,
    confidence=confidence,
    rank=np.array([0, 4, 5, 0, 20, 0], np.int8),
  )
  metrics = evaluation.summarize(scores, proteins)
  assert metrics['top5_accuracy'] == 3 / 5
  expected = calibration.expected_calibration_error(
    confidence[scored], correct[scored]
  )
  assert metrics['ece'] == expected


def test_intervals_are_those_of_the_bootstrap_over_clusters():
  proteins = from_sequences({'a': 'AC', 'b': 'D', 'c': 'EFG'})
  proteins.clusters[1] = 'a'
  nll = np.array([1.0, 2, 3, 2, 2, 8])
  scores = evaluation.Scores(nll, np.ones(6, bool), nll < 2.5)
  metrics = evaluation.summarize(scores, proteins)
  (low, high), accuracies = bootstrap.ratio_intervals(
    [np.array([3.0, 3, 12]), np.array([2, 0, 2])], [2, 1, 3], ['a', 'a', 'c']
  )
  np.testing.assert_allclose(
    [metrics[f'residue_perplexity_{x}'] for x in ('low', 'high')],
    np.exp([low, high]),
  )
  assert accuracies == (metrics['accuracy_low'], metrics['accuracy_high'])


def test_masks_are_put_together_and_have_a_spread():
  proteins = from_sequences({'a': 'AAAA', 'b': 'CC'})
  masks = [
    evaluation.Scores(
      np.array([1.0, 2, 4, 8, 3, 5]),
      np.array(mask, bool),
      objective='masked',
      mask=np.array(mask, bool),
    )
    for mask in ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0])
  ]
  metrics = evaluation.summarize(masks, proteins)
  means = [2, 3.5, 1.5]
  np.testing.assert_allclose(
    [
      np.log(metrics['masked_residue_perplexity']),
      metrics['masked_residue_perplexity_std'],
      metrics['num_residues'],
    ],
    [14 / 6, np.std(np.exp(means), ddof=1), 6],
  )
  assert metrics['residue_perplexity'] is None


def test_unigram_perplexity_is_the_analytic_one():
  """exp of the cross-entropy of the split's frequencies to train's."""
  train, proteins = from_sequences({'t': 'AAAC' * 25}), make_proteins()
  unigram = baselines.fit_unigram(train)
  counted_T = evaluation.counted_residues(proteins)
  nothing_T = np.zeros(len(counted_T))
  scores = evaluation.baseline_scores(
    unigram, proteins, evaluation.Scores(nothing_T, counted_T)
  )
  found = evaluation.summarize(scores, proteins)['residue_perplexity']
  q = np.ones(25)
  q[[0, 1]] += 75, 25
  q /= q.sum()
  share = np.bincount(proteins.residues[counted_T], minlength=25)
  share = share / share.sum()
  np.testing.assert_allclose(found, np.exp(-(share * np.log(q)).sum()))
