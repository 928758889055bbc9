"""Evaluation windows: every residue scored once, with context."""

import itertools

import numpy as np
import pytest

from protein_lm import vocab
from protein_lm.proteins import from_sequences
from protein_lm.windows import EvalBatches

LETTERS = 'ACDEFGHIKLMNPQRSTVWYUBXZ'


def random_sequences(size, longest):
  rng = np.random.default_rng(0)
  return {
    f'p{i}': ''.join(rng.choice(list(LETTERS), rng.integers(1, longest + 1)))
    for i in range(size)
  }


def assert_equal(one, other):
  for array, expected in zip(one, other, strict=True):
    np.testing.assert_array_equal(array, expected)


def scored(batches):
  """(protein, residue) -> token of all tokens with weight, each once."""
  found = {}
  for eval_batch in batches:
    for b, l in np.argwhere(eval_batch.batch.weights > 0):
      place = eval_batch.protein_BL[b, l], eval_batch.residue_BL[b, l]
      assert place not in found
      found[place] = eval_batch.batch.tokens[b, l]
  return found


@pytest.mark.parametrize('max_len', [8, 9, 63, 64, 128])
@pytest.mark.parametrize('batch_size', [1, 5])
def test_every_residue_is_scored_once(max_len, batch_size):
  proteins = from_sequences(
    random_sequences(20, 100)
    | {'one': 'M', 'six': 'MKVLAC', 'seven': 'MKVLACD'}
  )
  batches = EvalBatches(proteins, batch_size, max_len)
  expected = {}
  for p, (a, b) in enumerate(itertools.pairwise(proteins.offsets)):
    tokens = [*proteins.residues[a:b], vocab.EOS_ID]
    for index, token in enumerate(tokens):
      if token not in vocab.UNCOUNTED_IDS:
        expected[p, index] = token
  assert scored(batches) == expected
  assert {b.batch.tokens.shape for b in batches} == {(batch_size, max_len)}


def test_a_window_scores_only_what_is_new_with_context():
  proteins = from_sequences({'long': 'M' * 100})
  seen = -1
  windows = []
  for eval_batch in EvalBatches(proteins, 1, 20):
    batch = eval_batch.batch
    for segment in range(1, batch.segment_ids.max() + 1):
      inside = batch.segment_ids == segment
      windows.append((eval_batch.residue_BL[inside], batch.weights[inside] > 0))
  windows.sort(key=lambda window: window[0][-1])
  for number, (residues, scored) in enumerate(windows):
    assert (np.diff(residues) == 1).all()
    assert residues[0] == number * 10 - 1
    assert residues[scored][0] == seen + 1
    assert number == 0 or scored.argmax() == 10
    seen = residues[-1]
  assert seen == 100


def test_evaluation_says_where_its_tokens_are_from():
  proteins = from_sequences(random_sequences(9, 40))
  (eval_batch,) = EvalBatches(proteins, 64, 64)
  batch, protein_BL, residue_BL = eval_batch
  assert_equal(
    (protein_BL == -1, batch.tokens == vocab.PAD_ID),
    (batch.segment_ids == 0, batch.segment_ids == 0),
  )
  assert (residue_BL[batch.tokens == vocab.PAD_ID] == -1).all()
  assert (residue_BL[batch.tokens == vocab.BOS_ID] == -1).all()
  eos = batch.tokens == vocab.EOS_ID
  assert (residue_BL[eos] == proteins.lengths[protein_BL[eos]]).all()
  inside = residue_BL >= 0
  inside &= ~eos
  flat = proteins.offsets[protein_BL[inside]] + residue_BL[inside]
  np.testing.assert_array_equal(batch.tokens[inside], proteins.residues[flat])


def test_batches_of_evaluation_can_be_indexed_and_counted():
  batches = EvalBatches(from_sequences(random_sequences(20, 60)), 2, 64)
  assert len(list(batches)) == len(batches) > 1
  assert_equal(batches[-1].batch, list(batches)[-1].batch)
  assert len(batches[:2]) == 2
  with pytest.raises(IndexError):
    batches[len(batches)]


def test_tokens_of_overlapping_windows_are_counted_twice():
  proteins = from_sequences({'a': 'A' * 14, 'b': 'A' * 18})
  batches = EvalBatches(proteins, 1, max_len=16)
  num_tokens = sum(int((x.batch.segment_ids > 0).sum()) for x in batches)
  assert batches.num_tokens == num_tokens == 16 + 16 + 12
