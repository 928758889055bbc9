"""Mixtures: shares, turns in closed form, proteins side by side."""

import numpy as np
import pytest

from protein_lm.mixture import Interleaving, join_proteins
from protein_lm.proteins import from_sequences


@pytest.mark.parametrize(
  'weights', [(1,), (1, 1), (1, 1, 1), (5, 3, 0.1), (0.3, 0.7), (999, 1)]
)
def test_shares_are_those_of_the_weights(weights):
  source, _ = Interleaving(weights).locate(np.arange(3000))
  shares = np.bincount(source) / 3000
  np.testing.assert_allclose(
    shares, np.array(weights) / sum(weights), atol=1e-3
  )


def test_a_rare_source_has_a_row_in_a_thousand():
  turns = Interleaving((10**9, 1, 1))
  assert turns.shares == [0.998, 0.001, 0.001]


def test_each_source_counts_its_rows_without_a_gap():
  source, row = Interleaving((2, 5, 1)).locate(np.arange(2500))
  for number in range(3):
    mine = row[source == number]
    np.testing.assert_array_equal(mine, np.arange(len(mine)))


def test_turns_are_evenly_spread():
  source, _ = Interleaving((3, 1)).locate(np.arange(1000))
  gaps = np.diff(np.flatnonzero(source == 1))
  assert set(gaps) == {4}


def test_a_row_is_located_without_those_before_it():
  turns = Interleaving((2, 5, 1))
  far = np.array([10**12 + 7])
  source, row = turns.locate(far)
  before = turns.locate(np.arange(10**12, 10**12 + 7))
  counts = np.round(np.array(turns.shares) * 1000).astype(int)
  expected = 10**9 * counts[source[0]] + (before[0] == source[0]).sum()
  assert row[0] == expected


def test_proteins_keep_their_ids_unless_they_occur_twice():
  one = from_sequences({'a': 'MK', 'b': 'MKV'})
  two = from_sequences({'b': 'W', 'c': 'WW'})
  joined = join_proteins({'one': one, 'two': two})
  assert joined.ids == ['a', 'one/b', 'two/b', 'c']
  assert joined.lengths.tolist() == [2, 3, 1, 2]
  assert joined.residues.tolist() == [*one.residues, *two.residues]
  assert len(joined.pure) == len(joined.clusters) == 4
  assert len(joined.held_out) == 8
