"""Pieces: every residue is taken once, and rows hold what they should."""

import numpy as np
import pytest

from protein_lm import pieces, vocab

LENGTHS = [1, 5, 14, 15, 16, 17, 23, 24, 63, 100]


@pytest.mark.parametrize('is_causal', [True, False])
@pytest.mark.parametrize('max_len', [8, 15, 16])
def test_each_residue_is_taken_once(max_len, is_causal):
  for length in LENGTHS:
    taken = [
      token - 1
      for piece in pieces.cut(0, length, max_len, is_causal)
      for token in range(piece.first + piece.start, piece.first + piece.stop)
    ]
    assert taken == list(range(length))


def test_a_causal_window_gives_half_its_length_as_context():
  for piece in pieces.cut(0, 100, 16, True)[1:]:
    assert piece.start == 8


def test_a_residue_of_a_masked_model_lies_away_from_the_cuts():
  for piece in pieces.cut(0, 100, 16, False)[1:-1]:
    assert (piece.start, piece.stop) == (4, 12)


def plan(lengths, **options):
  options = {'max_len': 64, 'row_len': 16, 'batch_size': 4} | options
  return pieces.plan(lengths, is_causal=True, **options)


def test_the_places_of_a_batch_do_not_overlap():
  for batch in plan(LENGTHS):
    used = np.zeros(batch.shape, int)
    for piece, row, column in batch.places:
      used[row, column : column + piece.length] += 1
      assert column + piece.length <= batch.shape[1]
    assert used.max() == 1


def test_long_rows_are_fewer():
  shapes = {batch.shape for batch in plan([14] * 4 + [22] * 2 + [60])}
  assert shapes == {(4, 16), (2, 24), (1, 64)}


def test_a_single_batch_has_the_rows_it_needs():
  assert [batch.shape for batch in plan([14] * 2)] == [(2, 16)]
  assert [batch.shape for batch in plan([14] * 5)] == [(4, 16)] * 2


def test_tokens_are_bos_residues_eos_padding():
  (batch,) = plan([2, 3])
  tokens_BL, segment_ids_BL = batch.fill(
    [vocab.encode('AC'), vocab.encode('DEF')]
  )
  assert vocab.decode(tokens_BL[0]) == '<DEF><AC>_______'
  assert segment_ids_BL[0].tolist() == [1] * 5 + [2] * 4 + [0] * 7


def test_a_window_has_no_ends_but_true_ones():
  (batch,) = plan([17], max_len=8, row_len=8)
  tokens_BL, _ = batch.fill([vocab.encode('ACDEFGHIKLMNPQRST')])
  assert [vocab.decode(row) for row in tokens_BL] == [
    '<ACDEFGH',
    'EFGHIKLM',
    'IKLMNPQR',
    'NPQRST>_',
  ]
