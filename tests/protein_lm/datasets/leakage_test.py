"""Shares of 8-mers equal a count with Python's sets."""

import numpy as np
import pytest

from protein_lm.datasets import leakage
from protein_lm.datasets.words import words_of

LETTERS = np.array(list('ACDEFGHIKLMNPQRSTVWYBOUXZ'))


def words(sequence):
  return {sequence[i : i + 8] for i in range(len(sequence) - 7)}


@pytest.fixture(scope='module')
def sequences():
  """Held-out proteins, and train proteins that have pieces of them."""
  rng = np.random.default_rng(0)

  def made(size):
    return ''.join(rng.choice(LETTERS, size))

  bases = [made(60) for _ in range(30)]
  held_out = [base[:40] + made(10) for base in bases]
  held_out += ['', 'MK', 'MKVLAAC', made(50) * 2, 'A' * 20]
  train = [base[20:] + made(5) for base in bases for _ in range(2)]
  train += ['', 'A' * 5, 'A' * 40, held_out[0], *(made(80) for _ in range(20))]
  return held_out, train


@pytest.mark.parametrize('chunk', [1, 100, 2**20])
@pytest.mark.parametrize('max_hits', [1, 7, 2**22])
def test_shares_are_those_of_sets(sequences, monkeypatch, chunk, max_hits):
  monkeypatch.setattr(leakage, '_CHUNK', chunk)
  monkeypatch.setattr(leakage, '_MAX_HITS', max_hits)
  monkeypatch.setattr(leakage, '_FILTER_BITS', 10)  # with false positives
  held_out, train = sequences
  looked_for = leakage.HeldOutWords(held_out)
  halves = [looked_for.look_for(train[i::2]) for i in range(2)]
  in_train, nearest = looked_for.shares(halves[0] | halves[1])
  all_words = set().union(*map(words, train))
  for number, its in enumerate(map(words, held_out)):
    size = max(len(its), 1)
    assert in_train[number] == np.float32(len(its & all_words) / size)
    most = max(len(its & words(sequence)) for sequence in train)
    assert nearest[number] == np.float32(most / size)


def test_nothing_held_out_and_nothing_in_train():
  empty = leakage.HeldOutWords([])
  assert [len(x) for x in empty.shares(empty.look_for(['MKVLAACDE']))] == [0, 0]
  some = leakage.HeldOutWords(['MKVLAACDE'])
  assert some.shares(some.look_for([]))[1].tolist() == [0]


def test_words_do_not_reach_into_the_next_sequence(sequences):
  held_out, _ = sequences
  found, owners = words_of(held_out)
  assert np.bincount(owners, minlength=len(held_out)).tolist() == [
    max(len(sequence) - 7, 0) for sequence in held_out
  ]
  distinct = {word for sequence in held_out for word in words(sequence)}
  assert len(np.unique(found)) == len(distinct)
