"""What is measured of the splits of a data set, and what is said of it."""

import dataclasses

import numpy as np
import pytest

from protein_lm import data_facts, prepare, vocab
from protein_lm.proteins import from_sequences


def random_sequences(num, length=80, seed=0, letters=20):
  rng = np.random.default_rng(seed)
  return [vocab.decode(rng.integers(0, letters, length)) for _ in range(num)]


def make_split(name, sequences, leaked_in_all=np.nan, **changes):
  members = from_sequences({f'{name}{i}': s for i, s in enumerate(sequences)})
  members = dataclasses.replace(members, **changes)
  num_residues = len(members.residues)
  return data_facts.SplitFacts(
    name,
    len(members),
    num_residues,
    'ab' * 32,
    members,
    leaked_in_all=leaked_in_all,
  )


def some_splits(**changes):
  """Splits of which nothing is to be said; `changes` replace some."""
  rng = np.random.default_rng(1)
  splits = {}
  for seed, name in enumerate(('train', 'validation', 'test')):
    share = rng.uniform(0, 0.1, 200).astype(np.float32)
    splits[name] = make_split(
      name, random_sequences(200, seed=seed), nearest_train_share=share
    )
  return [x for x in (splits | changes).values() if x is not None]


def test_fill_is_that_of_a_direct_count():
  fill = data_facts.measure_fill(np.array([3, 3, 6, 20]), 10)
  # Rows [5 5] [8] [10 of 22]; alone, 4 rows of 10.
  assert fill.packed == pytest.approx(28 / 30)
  assert fill.padded == pytest.approx(28 / 40)
  assert fill.whole == pytest.approx(12 / 32)


def test_ordinary_splits_give_no_notes():
  assert data_facts.find_notes(some_splits()) == []


def one_family():
  return make_split('test', random_sequences(20), clusters=['c<1>'] * 20)


def with_unknown():
  sequences = ['X' * 20 + s for s in random_sequences(200)]
  return make_split('test', sequences)


def leaking():
  share = np.r_[np.full(30, 0.2), np.zeros(170)].astype(np.float32)
  return make_split('test', random_sequences(200), nearest_train_share=share)


@pytest.mark.parametrize(
  'changed, words',
  [
    ({'test': None}, 'no split test'),
    ({'test': one_family()}, 'c<1>, holds 100.0% of the residues of test'),
    ({'test': with_unknown()}, '20.0% of the residues of test are X'),
    ({'test': make_split('test', random_sequences(90, 9))}, '9 residues or'),
    ({'test': leaking()}, '15.0% of the measured proteins of test share 20%'),
    ({'test': make_split('test', random_sequences(90))}, 'not measured'),
    (
      {'test': make_split('test', random_sequences(90), 0.051)},
      '5.1% of the measured proteins of test find',
    ),
    (
      {'test': make_split('test', random_sequences(90, letters=10))},
      '50.2% of the residues of test would have to be other',
    ),
  ],
)
def test_what_is_off_is_said(changed, words):
  assert words in ' '.join(data_facts.find_notes(some_splits(**changed)))


def test_a_large_split_is_a_sample(tmp_path, monkeypatch):
  path = tmp_path / 'some.fasta'
  path.write_text(
    ''.join(f'>p{i}\n{s}\n' for i, s in enumerate(random_sequences(300)))
  )
  builder = prepare.prepare(str(path), tmp_path / 'data')
  monkeypatch.setattr(data_facts, 'MAX_WHOLE', 100)
  monkeypatch.setattr(data_facts, '_SAMPLE', 50)
  train = data_facts.measure(builder)[0]
  assert train.is_sample and len(train.proteins) == 50
  (note,) = [x for x in data_facts.find_notes([train]) if 'evenly' in x]
  assert f'50 of its {train.num_proteins}' in note
