"""The summary beside counts by hand."""

import types

import numpy as np
import pytest

from protein_lm import proteins, sample_summary
from protein_lm.samples import Sample

TRAIN = ['ACDEFGHIKL', 'MNPQRSTVWYAC', 'GGGGGGGG']


@pytest.fixture
def data(monkeypatch):
  """A data set of two parts; blocks of two proteins."""
  stores = {
    'a': proteins.MemoryStore(
      proteins.from_sequences(dict(enumerate(TRAIN[:2])))
    ),
    'b': proteins.MemoryStore(
      proteins.from_sequences(dict(enumerate(TRAIN[2:])))
    ),
  }
  monkeypatch.setattr(proteins, 'open_store', lambda name, split: stores[name])
  test = types.SimpleNamespace(nearest_train_share=np.array([0.1, np.nan, 0.3]))
  return types.SimpleNamespace(
    builders=('a', 'b'),
    splits={'train': (3, 30), 'test': (3, 30)},
    proteins={'test': test}.get,
  )


def make(sequence, log_p=-2.0, finished=True):
  log_probs = np.full(len(sequence) + finished, log_p, np.float32)
  return Sample(0, sequence, log_probs, finished, sequence)


def test_train_is_read_whole(data):
  read = []
  train = sample_summary.read_train(data, ['ACD'], read.append)
  assert sum(read) == sample_summary.num_train(data) == 3
  assert train.lengths_P.tolist() == [10, 12, 8]
  assert train.count_A.tolist() == [2, 2, 1, 1, 1, 9, *[1] * 14]


def test_novelty_counts_words_of_eight(data):
  sequences = ['ACDEFGHIKL', 'ACDEFGHIWW', 'WWWWWWWW', 'AC', 'GGGGGGGG']
  train = sample_summary.read_train(data, sequences)
  np.testing.assert_allclose(train.in_train_Q, [1, 1 / 3, 0, 0, 1])
  np.testing.assert_allclose(train.nearest_Q, [1, 1 / 3, 0, 0, 1])
  assert train.is_there_Q.tolist() == [True, False, False, False, True]


def test_samples_are_described(data):
  samples = [make('AAAC'), make('AAAC'), make('CD', finished=False)]
  text = sample_summary.describe(samples)
  assert (
    '3 samples: 1 cut at the greatest length, 1 equal to an earlier' in text
  )
  assert '10 residues drawn, -2.000 nats each (perplexity 7.39' in text
  assert 'longest run of one letter is 3' in text


def test_samples_are_compared_with_train(data):
  samples = [make('A' * 8), make('GGGGGGGG')]
  train = sample_summary.read_train(data, [s.sequence for s in samples])
  text = sample_summary.compare(samples, train)
  assert '1 samples are a protein of train; 50.00% of the 8-mers' in text
  assert (
    'in its nearest protein (at most 100.00%; of a test protein 20.00%)' in text
  )
  assert 'samples 8 / 8 / 8; train 9 / 10 / 11 (quartiles)' in text
  expected = 0.5 * np.log2(0.5 / (2 / 30)) + 0.5 * np.log2(0.5 / (9 / 30))
  assert f'{expected:.4f} bits' in text
