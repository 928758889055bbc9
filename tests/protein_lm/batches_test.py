"""Training batches: whole tokens, true ends, weights, rows of a whole."""

import numpy as np
import pytest

from protein_lm import layouts, objectives, vocab
from protein_lm.batches import Batch, BucketBatches, RowBatches
from protein_lm.proteins import MemoryStore, from_sequences

MAX_LEN = 64


@pytest.fixture(scope='module')
def sequences():
  rng = np.random.default_rng(0)
  letters = list('ACDEFGHIKLMNPQRSTVWYUBXZ')
  return {
    f'p{i}': ''.join(rng.choice(letters, rng.integers(1, 120)))
    for i in range(150)
  }


@pytest.fixture(scope='module')
def store(sequences):
  return MemoryStore(from_sequences(sequences))


def row_batches(store, kind=layouts.Packed, both=False, **kwargs):
  return RowBatches([kind(store, MAX_LEN, both)], 4, **kwargs)


def bucket_batches(store):
  return BucketBatches(layouts.Bucketed(store, (16, 32, MAX_LEN), 4))


def steps(batches, num_steps=40, seed=0):
  return [batches.make(seed, step) for step in range(num_steps)]


def segments(batch):
  """Yields what lies in the segments of a batch, as Batch of [L]."""
  for row in range(len(batch.tokens)):
    for segment in range(1, batch.segment_ids[row].max() + 1):
      inside = batch.segment_ids[row] == segment
      yield Batch(*(array[row][inside] for array in batch))


def assert_equal(one, other):
  for array, expected in zip(one, other, strict=True):
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


MAKERS = [
  lambda store: row_batches(store),
  lambda store: row_batches(store, layouts.Padded, both=True),
  lambda store: row_batches(store, layouts.Concatenated, both=True),
  bucket_batches,
]


@pytest.mark.parametrize('make', MAKERS)
def test_segments_are_runs_of_proteins_with_ends_where_they_end(
  make, store, sequences
):
  forward = [f'<{sequence}>' for sequence in sequences.values()]
  backward = [tokens[::-1] for tokens in forward]
  for batch in steps(make(store), 15):
    for segment in segments(batch):
      tokens = vocab.decode(segment.tokens)
      assert any(tokens in whole for whole in forward + backward)
      assert not set(tokens[1:-1]) & set('<>')


@pytest.mark.parametrize('make', MAKERS)
def test_positions_restart_and_padding_is_empty(make, store):
  for batch in steps(make(store), 10):
    for segment in segments(batch):
      assert segment.positions.tolist() == list(range(len(segment.tokens)))
    empty = batch.segment_ids == 0
    assert (batch.tokens[empty] == vocab.PAD_ID).all()
    assert (batch.tokens[~empty] != vocab.PAD_ID).all()
    assert not batch.positions[empty].any() and not batch.weights[empty].any()


@pytest.mark.parametrize('make', MAKERS)
@pytest.mark.parametrize(
  'rows', [slice(0, 2), slice(1, None), slice(2, 2), np.array([0, 3])]
)
def test_rows_of_a_batch_are_those_of_the_whole(make, rows, store):
  batches = make(store)
  for step in (0, 10, 1234):
    whole = batches.make(5, step)
    assert_equal(
      batches.make(5, step, rows), Batch(*(array[rows] for array in whole))
    )


@pytest.mark.parametrize('make', MAKERS)
def test_a_batch_has_the_shape_that_was_told(make, store):
  batches = make(store)
  for step in range(20):
    batch = batches.make(1, step)
    assert {array.shape for array in batch} == {batches.shape(1, step)}


def test_the_last_token_read_counts_and_the_first_does_not(store):
  batches = row_batches(store, both=True)
  read = {'<': 0, '>': 0}
  for batch in steps(batches):
    for segment in segments(batch):
      first, *inner, last = vocab.decode(segment.tokens)
      if first in read:
        read[first] += 1
        assert segment.weights[0] == 0
      if last in read:
        assert segment.weights[-1] == 1
        assert first != last  # BOS and EOS are at opposite ends
      counted = [x not in 'BXZ' for x in inner]
      np.testing.assert_array_equal(segment.weights[1:-1], counted)
  assert min(read.values()) > 30


def test_forward_reading_has_no_protein_turned(store):
  for batch in steps(row_batches(store)):
    assert (batch.weights[batch.tokens == vocab.EOS_ID] == 1).all()
    assert (batch.weights[batch.tokens == vocab.BOS_ID] == 0).all()


def test_a_masked_model_is_asked_for_no_end(store, rng):
  batch = row_batches(store, both=True).make(0, 0)
  _, chosen = objectives.corrupt(rng, batch, 0.99)
  assert (batch.weights[batch.tokens == vocab.BOS_ID] == 1).any()
  assert (batch.tokens[np.asarray(chosen)] < vocab.BOS_ID).all()


def test_attention_across_proteins_makes_a_row_one_segment(store):
  apart = row_batches(store, layouts.Concatenated)
  joined = row_batches(store, layouts.Concatenated, attend_across=True)
  for one, other in zip(steps(apart), steps(joined), strict=True):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.weights, other.weights)
    np.testing.assert_array_equal(other.segment_ids, one.segment_ids > 0)
    where = np.broadcast_to(np.arange(MAX_LEN), other.positions.shape)
    np.testing.assert_array_equal(other.positions, where * other.segment_ids)


def test_empty_rows_fill_the_last_batch_of_a_bucket(store):
  batches = bucket_batches(store)
  num_empty = [
    (batch.segment_ids.max(axis=1) == 0).sum()
    for batch in steps(batches, int(batches.num_steps))
  ]
  assert 1 <= np.count_nonzero(num_empty) <= 3


def scored(batches, num_steps):
  return sum(
    (batch.weights * (batch.positions > 0)).sum()
    for batch in steps(batches, num_steps)
  )


@pytest.mark.parametrize(
  'make, epochs',
  [
    (row_batches, 4),
    (lambda s: row_batches(s, layouts.Concatenated, both=True), 4),
    (bucket_batches, 1),
  ],
)
def test_num_counted_is_what_a_causal_model_is_scored_on(make, epochs):
  rng = np.random.default_rng(1)
  store = MemoryStore(
    from_sequences(
      {str(i): 'M' * n for i, n in enumerate(rng.integers(1, 120, 99))}
    )
  )
  batches = make(store)
  total = scored(batches, round(batches.num_steps * epochs)) / epochs
  assert total == pytest.approx(batches.num_counted, rel=2e-3)


def test_rows_flow_on_whatever_the_batch_size(store):
  three = steps(row_batches(store), 33)[30:]
  wide = RowBatches([layouts.Packed(store, MAX_LEN)], 12)
  joined = Batch(*map(np.concatenate, zip(*three, strict=True)))
  assert_equal(wide.make(0, 10), joined)


def mixed(store, weights):
  other = MemoryStore(
    from_sequences({f'q{i}': 'W' * (1 + i % 90) for i in range(40)})
  )
  return RowBatches(
    [layouts.Packed(s, MAX_LEN) for s in (store, other)], 4, weights=weights
  )


@pytest.mark.parametrize('weights', [(3, 1), (0.01, 0.99)])
def test_sources_have_their_shares_of_the_rows(store, weights):
  batches = mixed(store, weights)
  rows = np.concatenate([b.tokens for b in steps(batches, 1000)])
  residues = np.where(rows < vocab.BOS_ID, rows, vocab.encode('W')[0])
  other = (residues == vocab.encode('W')[0]).all(axis=1).mean()
  assert other == pytest.approx(weights[1] / sum(weights), abs=1e-3)


def test_each_source_goes_through_its_own_epochs(store):
  alone = row_batches(store)
  batches = mixed(store, (1, 1))
  rows = np.concatenate([b.tokens for b in steps(batches, 20)])
  expected = np.concatenate([b.tokens for b in steps(alone, 10)])
  np.testing.assert_array_equal(rows[0::2], expected)
