"""A distribution at every place, which uses both sides and nothing hidden."""

import numpy as np
import pytest

from protein_lm import baselines, two_sided_ngram, vocab
from protein_lm.proteins import from_sequences


def make_proteins(seed, number=40):
  """Every letter between two of its kind: AAA CCC ..., so sides tell much."""
  generator = np.random.default_rng(seed)
  return from_sequences(
    {
      f'{seed}-{i}': ''.join(
        3 * letter for letter in generator.choice(list('ACDEF'), 4 + i % 5)
      )
      for i in range(number)
    }
  )


@pytest.fixture(scope='module')
def fitted():
  train, validation = make_proteins(0), make_proteins(1)
  return two_sided_ngram.fit(train, validation, baselines.fit_unigram(train))


def with_letter(place, letter, sequence='AACCCDDDEX'):
  return from_sequences(
    {'a': sequence[:place] + letter + sequence[place + 1 :]}
  )


@pytest.mark.parametrize('place', [0, 1, 5, 9])
@pytest.mark.parametrize('hidden', [(), (4, 6), (0, 2, 8)])
def test_probabilities_sum_to_one(fitted, place, hidden):
  mask_T = np.isin(np.arange(10), [*hidden, place])
  total = sum(
    np.exp(-fitted.nll(with_letter(place, letter), mask_T)[place])
    for letter in vocab.RESIDUES
  )
  np.testing.assert_allclose(total, 1, rtol=1e-9)


def test_both_sides_beat_the_unigram(fitted):
  test = make_proteins(2)
  unigram = baselines.fit_unigram(make_proteins(0)).nll(test).mean()
  assert fitted.nll(test).mean() < unigram - 0.5


def test_masked_neighbours_tell_nothing(fitted):
  mask_T = np.arange(10) != 1  # all but C at 1, and asked for 5
  found = fitted.nll(with_letter(5, 'D'), mask_T)[5]
  other = fitted.nll(with_letter(4, 'E'), mask_T)[5]
  assert found == other
  unigram = baselines.fit_unigram(make_proteins(0))
  np.testing.assert_allclose(
    found, -np.log(unigram.probability_A[vocab.encode('D')[0]])
  )


def test_proteins_end_at_their_ends(fitted):
  one, two = (from_sequences(x) for x in ({'a': 'AC'}, {'a': 'AC', 'b': 'D'}))
  np.testing.assert_array_equal(fitted.nll(two)[:2], fitted.nll(one))
