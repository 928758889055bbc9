"""Each baseline against its formula; distributions that sum to one."""

import collections

import numpy as np
import pytest

from protein_lm import baselines, vocab
from protein_lm.proteins import from_sequences

NAMES = ['uniform', 'unigram', 'adaptive unigram', 'trigram', '5-gram']


def random_proteins(seed, num_proteins=30, max_len=80):
  rng = np.random.default_rng(seed)
  letters = np.array(list(vocab.STANDARD_RESIDUES[:6]))
  return from_sequences(
    {
      f'P{i}': ''.join(rng.choice(letters, rng.integers(1, max_len)))
      for i in range(num_proteins)
    }
  )


@pytest.fixture(scope='module')
def fitted():
  models = baselines.fit_baselines(random_proteins(0), random_proteins(1))
  assert [model.name for model in models] == NAMES
  return {model.name: model for model in models}


def test_uniform_has_perplexity_25(fitted):
  nll_T = fitted['uniform'].nll(random_proteins(2))
  np.testing.assert_allclose(np.exp(nll_T.mean()), 25, rtol=1e-12)


def test_unigram_equals_its_entropy_on_train(fitted):
  train = random_proteins(0)
  count_A = np.bincount(train.residues, minlength=25)
  p_A = (count_A + 1) / (count_A.sum() + 25)
  expected = -np.sum(count_A * np.log(p_A)) / count_A.sum()
  np.testing.assert_allclose(fitted['unigram'].nll(train).mean(), expected)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('prefix', ['', 'A', 'CC', 'ACDEF', 'XWYVBZ'])
def test_distribution_over_the_letters_sums_to_one(fitted, name, prefix):
  proteins = from_sequences({a: prefix + a for a in vocab.RESIDUES})
  last = proteins.offsets[1:] - 1
  total = np.exp(-fitted[name].nll(proteins)[last]).sum()
  np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_adaptive_unigram_equals_a_slow_loop(fitted):
  proteins, model = random_proteins(3), fitted['adaptive unigram']
  expected = []
  for start, end in zip(proteins.offsets, proteins.offsets[1:], strict=False):
    count_A = np.zeros(25)
    for t, a in enumerate(proteins.residues[start:end]):
      prior = model.strength * model.unigram.probability_A[a]
      expected.append(-np.log((count_A[a] + prior) / (t + model.strength)))
      count_A[a] += 1
  np.testing.assert_allclose(model.nll(proteins), expected, rtol=1e-12)


def test_ngram_equals_a_slow_loop(fitted):
  def places(proteins):
    for start, end in zip(proteins.offsets, proteins.offsets[1:], strict=False):
      sequence = [-1] * 4 + list(proteins.residues[start:end])
      for t in range(4, len(sequence)):
        yield sequence[t], [tuple(sequence[t - n : t]) for n in (1, 2, 3, 4)]

  seen, totals = collections.Counter(), collections.Counter()
  for a, contexts in places(random_proteins(0)):
    seen.update((context, a) for context in contexts)
    totals.update(contexts)
  model, proteins, expected = fitted['5-gram'], random_proteins(3), []
  for a, contexts in places(proteins):
    p = model.unigram.probability_A[a]
    for context, strength in zip(contexts, model.strengths, strict=True):
      p = (seen[context, a] + strength * p) / (totals[context] + strength)
    expected.append(-np.log(p))
  np.testing.assert_allclose(model.nll(proteins), expected, rtol=1e-10)


def test_no_context_reaches_into_the_protein_before(fitted):
  alone = from_sequences({'b': 'DEFAC'})
  second = from_sequences({'a': 'ACDEF', 'b': 'DEFAC'})
  for model in fitted.values():
    np.testing.assert_array_equal(model.nll(second)[5:], model.nll(alone))


def test_strength_is_the_likeliest(fitted):
  validation, model = random_proteins(1), fitted['adaptive unigram']
  best = model.nll(validation).mean()
  for factor in (0.8, 1.25):
    other = baselines.AdaptiveUnigram(
      'other', model.unigram, model.strength * factor
    )
    assert other.nll(validation).mean() >= best


def test_ngrams_learn_a_pattern_that_unigrams_cannot():
  train = from_sequences({str(i): 'ACD' * (5 + i) for i in range(20)})
  models = baselines.fit_baselines(train, from_sequences({'v': 'ACD' * 9}))
  test = from_sequences({'t': 'ACD' * 7})
  perplexity = {m.name: np.exp(m.nll(test).mean()) for m in models}
  assert perplexity['unigram'] > 2.9 and perplexity['trigram'] < 1.01


def test_an_empty_split_is_named():
  with pytest.raises(ValueError, match='validation split, which is empty'):
    baselines.fit_baselines(random_proteins(0), from_sequences({}))
