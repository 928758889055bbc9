"""Which proteins are chosen depends on their ids alone."""

import numpy as np

from protein_lm import subset
from protein_lm.proteins import from_sequences

SEQUENCES = {'a': 'ACD', 'b': 'XX', 'c': 'ACDEFG', 'd': 'C', 'e': 'DDX'}


def test_proteins_too_long_or_without_a_counted_residue_are_left_out():
  chosen = subset.choose(from_sequences(SEQUENCES), None, 5)
  assert sorted(chosen) == [0, 3, 4]


def test_choice_is_by_id_whatever_the_order():
  names = [f'P{i}' for i in range(30)]
  forth = from_sequences({name: 'AC' for name in names})
  back = from_sequences({name: 'AC' for name in reversed(names)})
  chosen = [{x.ids[i] for i in subset.choose(x, 7, 5)} for x in (forth, back)]
  assert chosen[0] == chosen[1] and len(chosen[0]) == 7


def test_taken_proteins_keep_all_that_is_theirs():
  proteins = from_sequences(SEQUENCES)
  proteins.held_out[5:8] = True
  part = subset.take(proteins, [2, 0])
  assert part.ids == part.clusters == ['c', 'a']
  np.testing.assert_array_equal(part.offsets, [0, 6, 9])
  np.testing.assert_array_equal(part.held_out[:4], [True, True, True, False])
  assert len(subset.take(proteins, []).residues) == 0
