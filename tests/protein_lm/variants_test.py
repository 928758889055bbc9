"""Variants: how they are written, placed, undone and refused."""

import pytest

from protein_lm import variants
from protein_lm.variants import Expected, Variant

WILD = 'MKTAYIAK'


def test_substitutions_give_the_mutated_sequence():
  assert variants.read('K2R:I6V', WILD).of(WILD) == 'MRTAYVAK'
  assert variants.read('WT', WILD) == Variant(())


def test_offset_is_taken_from_positions():
  assert variants.read('K25R', WILD, offset=23).of(WILD) == 'MRTAYIAK'
  assert variants.read('K-3R', WILD, offset=-5).of(WILD) == 'MRTAYIAK'


def test_undoing_gives_the_wild_type():
  mutations = variants.parse('K2R:I6V')
  assert variants.undo(mutations, 'MRTAYVAK') == WILD


def test_a_sequence_of_one_length_is_its_substitutions():
  variant = variants.read('MRTAYVAK', WILD)
  assert variant.substitutions == ((1, 'K', 'R'), (5, 'I', 'V'))
  assert variants.read('MKTAY', WILD) == Variant(None, 'MKTAY')


@pytest.mark.parametrize(
  'text, message',
  [
    ('K2', "'K2' is no mutation: write A42G"),
    ('', "'' is no mutation"),
    ('K2R,I6V', 'is no mutation'),
    ('KR', 'is no mutation'),
    ('K2J', "'J' in 'K2J' is an unknown letter"),
    ('K2*', "'\\*' in 'K2\\*' is an unknown letter"),
    ('k2r', "'k' in 'k2r' is an unknown letter"),
    ('K2X', "'X' in 'K2X' is an unknown letter"),
    ('K2R:K2M', 'names a position twice'),
    ('A2R', 'expects A at position 2, where the wild type has K'),
    ('K9R', 'the 8 residues of the sequence have the positions 1 to 8'),
    ('K0R', 'lies out of range'),
  ],
)
def test_refused(text, message):
  with pytest.raises(ValueError, match=message):
    variants.read(text, WILD)


def test_fitting_offset():
  expected = [Expected(p + 23, WILD[p - 1], WILD) for p in (1, 3, 8)]
  assert variants.fitting_offset(expected) == 23
  assert variants.fitting_offset([*expected, Expected(25, 'W', WILD)]) is None
  assert variants.fitting_offset([Expected(3, 'A', WILD)]) is None  # two fit
