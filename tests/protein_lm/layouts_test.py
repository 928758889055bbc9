"""Layouts: each token or protein once an epoch, found in closed form."""

import time

import numpy as np
import pytest

from protein_lm import layouts

NUM_PROTEINS = 301


class Lengths:
  """A store that knows lengths alone."""

  def __init__(self, lengths):
    self.lengths = np.asarray(lengths, np.int32)
    self.by_length = np.argsort(self.lengths, kind='stable')


def random_store(size=NUM_PROTEINS, seed=0):
  rng = np.random.default_rng(seed)
  return Lengths(rng.gamma(2, 20, size).astype(int) + 1)


def tokens_seen(pieces, store):
  """How often each token of each protein lies in the pieces."""
  ends = np.cumsum(store.lengths + layouts.NUM_ENDS)
  starts = ends - store.lengths - layouts.NUM_ENDS
  seen = np.zeros(ends[-1], int)
  for protein, first, length in zip(
    pieces.protein, pieces.first, pieces.length, strict=True
  ):
    assert first >= 0 and length > 0
    seen[starts[protein] + first : starts[protein] + first + length] += 1
    assert starts[protein] + first + length <= ends[protein]
  return seen


def epoch(layout, number, seed=7):
  first = number * layout.num_rows
  return layout.pieces(seed, np.arange(first, first + layout.num_rows))


@pytest.mark.parametrize('kind', [layouts.Packed, layouts.Padded])
@pytest.mark.parametrize('max_len', [8, 64, 1000])
def test_each_protein_is_seen_once_an_epoch(kind, max_len):
  store = random_store()
  layout = kind(store, max_len)
  for number in range(3):
    pieces = epoch(layout, number)
    assert sorted(pieces.protein) == list(range(NUM_PROTEINS))
    clipped = np.minimum(store.lengths[pieces.protein] + 2, max_len)
    np.testing.assert_array_equal(pieces.length, clipped)
    assert tokens_seen(pieces, store).max() == 1
    assert np.bincount(pieces.row, pieces.length).max() <= max_len


@pytest.mark.parametrize('max_len', [8, 64, 97, 10**6])
@pytest.mark.parametrize('size', [1, NUM_PROTEINS])
def test_concatenation_loses_and_repeats_no_token(max_len, size):
  store = random_store(size)
  layout = layouts.Concatenated(store, max_len)
  for number in range(3):
    pieces = epoch(layout, number)
    assert (tokens_seen(pieces, store) == 1).all()
    filled = np.sort(np.bincount(pieces.row, pieces.length))
    assert (filled[1:] == max_len).all() and filled[0] <= max_len


def test_concatenation_keeps_its_neighbours_and_moves_its_cuts():
  layout = layouts.Concatenated(random_store(), 64)
  pairs, cuts = [], []
  for number in range(2):
    pieces = epoch(layout, number)
    same = np.diff(pieces.row) == 0
    pairs.append(
      set(zip(pieces.protein[:-1][same], pieces.protein[1:][same], strict=True))
    )
    cuts.append(set(zip(pieces.protein, pieces.first, strict=True)))
  assert len(pairs[0] & pairs[1]) > 0.5 * len(pairs[0])
  assert cuts[0] != cuts[1]


def bucketed_epoch(layout, number, seed=7):
  for batch in range(layout.num_batches):
    batch += number * layout.num_batches
    shape = layout.shape(seed, batch)
    yield shape, layout.pieces(seed, batch, np.arange(shape[0]))


@pytest.mark.parametrize('buckets', [(16, 32, 64), (64,), (8, 9, 10_000)])
def test_buckets_show_each_protein_once_an_epoch(buckets):
  layout = layouts.Bucketed(random_store(), buckets, batch_size=4)
  for number in range(2):
    batches = list(bucketed_epoch(layout, number))
    seen = np.concatenate([pieces.protein for _, pieces in batches])
    assert sorted(seen) == list(range(NUM_PROTEINS))


def test_a_bucket_is_the_shortest_that_its_proteins_fit():
  layout = layouts.Bucketed(random_store(), (16, 32, 64), batch_size=4)
  shapes = set()
  for shape, pieces in bucketed_epoch(layout, 0):
    shapes.add(shape)
    assert pieces.length.max() <= shape[1]
    assert shape[1] == 16 or pieces.length.min() > shape[1] // 2
  assert shapes == {(16, 16), (8, 32), (4, 64)}


def test_batches_of_all_buckets_are_mixed():
  layout = layouts.Bucketed(random_store(), (16, 32, 64), batch_size=1)
  order = [shape for shape, _ in bucketed_epoch(layout, 0)]
  assert order != [shape for shape, _ in bucketed_epoch(layout, 1)]
  assert sum(a != b for a, b in zip(order, order[1:], strict=False)) > 20


@pytest.mark.parametrize(
  'kind', [layouts.Packed, layouts.Padded, layouts.Concatenated]
)
def test_a_row_depends_on_seed_and_number_alone(kind):
  layout = kind(random_store(), 64)
  many = layout.pieces(3, np.arange(1000, 1100))
  alone = kind(random_store(), 64).pieces(3, np.array([1037]))
  for got, all_rows in zip(alone[1:], many[1:], strict=True):
    np.testing.assert_array_equal(got, all_rows[many.row == 37])
  other = layout.pieces(4, np.arange(1000, 1100))
  assert not np.array_equal(many.protein, other.protein)


def test_crops_of_an_epoch_reach_both_ends():
  layout = layouts.Packed(Lengths(np.full(2000, 10)), 8)
  firsts = epoch(layout, 0).first
  count = np.bincount(firsts, minlength=5)
  assert len(count) == 5 and count.min() > 300  # 400 expected of each
  assert (epoch(layout, 1).first != firsts).any()


@pytest.mark.parametrize(
  'kind', [layouts.Packed, layouts.Padded, layouts.Concatenated]
)
def test_both_directions_turn_half_of_the_proteins_anew(kind):
  layout = kind(random_store(), 64, both_directions=True)
  turned = []
  for number in range(2):
    pieces = epoch(layout, number)
    backward = np.zeros(NUM_PROTEINS, bool)
    backward[pieces.protein] = pieces.backward
    # All pieces of a protein are read in the same direction.
    np.testing.assert_array_equal(backward[pieces.protein], pieces.backward)
    turned.append(backward)
  assert 110 < turned[0].sum() < 190
  assert 100 < (turned[0] != turned[1]).sum() < 200


@pytest.mark.parametrize(
  'kind', [layouts.Packed, layouts.Padded, layouts.Concatenated]
)
def test_a_far_step_is_reached_at_once(kind):
  layout = kind(random_store(20_000), 64)
  layout.prepare(0)
  seconds = []
  for step in range(10**7, 10**7 + 3):
    start = time.perf_counter()
    layout.pieces(0, np.arange(32) + 32 * step)
    seconds.append(time.perf_counter() - start)
  assert min(seconds) < 0.01


def test_long_rows_are_full():
  rng = np.random.default_rng(0)
  lengths = rng.lognormal(6, 0.8, 20_000).astype(int) + 1  # as of human ones
  for max_len, fill in ((512, 0.97), (1024, 0.99)):
    plan = layouts.Packed(Lengths(lengths), max_len).plan
    assert plan.num_tokens / (plan.num_rows * max_len) > fill
