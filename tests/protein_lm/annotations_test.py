"""Weights and labels in batches: where each stands, in every layout."""

import numpy as np
import pytest

from protein_lm import labels, layouts, sequence_weights, vocab
from protein_lm.annotations import Annotations
from protein_lm.batches import BucketBatches, LabelledBatch, RowBatches
from protein_lm.proteins import MemoryStore, from_sequences

MAX_LEN = 32


@pytest.fixture(scope='module')
def proteins():
  """Protein i begins with i // 20 and i % 20 as letters, so it is known."""
  rng = np.random.default_rng(0)
  letters = list(vocab.STANDARD_RESIDUES)
  return from_sequences(
    {
      f'p{i}': letters[i // 20]
      + letters[i % 20]
      + ''.join(rng.choice(letters, rng.integers(1, 60)))
      for i in range(80)
    }
  )


def make_batches(kind, proteins, **fields):
  store = MemoryStore(proteins)
  annotations = Annotations(store.lengths, **fields)
  if kind == 'buckets':
    layout = layouts.Bucketed(store, (8, MAX_LEN), 4, True)
    return BucketBatches(layout, annotations)
  layout = {'packed': layouts.Packed, 'padded': layouts.Padded}.get(
    kind, layouts.Concatenated
  )
  return RowBatches(
    [layout(store, MAX_LEN, True)], 4, annotations=[annotations]
  )


def segments(batch):
  """Yields the arrays of each segment as a batch of [L]."""
  for row in range(len(batch.tokens)):
    for segment in range(1, batch.segment_ids[row].max() + 1):
      inside = batch.segment_ids[row] == segment
      yield type(batch)(*(array[row][inside] for array in batch))


def protein_of(tokens):
  """The number of a protein whose beginning is shown, and its direction."""
  for step, its in ((1, tokens), (-1, tokens[::-1])):
    if its[0] == vocab.BOS_ID and len(its) > 2:
      return int(its[1]) * 20 + int(its[2]), step
  return None, None


KINDS = ['packed', 'padded', 'concatenated', 'buckets']


@pytest.mark.parametrize('kind', KINDS)
def test_weights_multiply_the_tokens_of_their_protein(kind, proteins):
  weights = np.arange(1, 81, dtype=np.float32)
  plain = make_batches(kind, proteins)
  batches = make_batches(kind, proteins, weights=weights)
  seen = 0
  for step in range(12):
    pairs = zip(
      segments(batches.make(0, step)),
      segments(plain.make(0, step)),
      strict=True,
    )
    for weighted, its in pairs:
      np.testing.assert_array_equal(weighted.tokens, its.tokens)
      p, _ = protein_of(its.tokens)
      if p is not None:
        seen += 1
        np.testing.assert_array_equal(
          weighted.weights, its.weights * weights[p]
        )
  assert seen > 20


@pytest.mark.parametrize('kind', ['packed', 'padded', 'buckets'])
def test_the_label_of_a_protein_stands_at_its_last_token(kind, proteins):
  values = np.arange(80, dtype=np.float32)
  values[::3] = np.nan
  batches = make_batches(kind, proteins, labels=labels.Labels(values))
  seen = 0
  for step in range(12):
    batch = batches.make(0, step)
    assert isinstance(batch, LabelledBatch)
    for its in segments(batch):
      assert np.isnan(its.labels[:-1]).all() and not its.weights[:-1].any()
      assert its.weights[-1] == (not np.isnan(its.labels[-1]))
      p, _ = protein_of(its.tokens)
      if p is not None:
        seen += 1
        np.testing.assert_array_equal(its.labels[-1], values[p])
  assert seen > 20


@pytest.mark.parametrize('kind', KINDS)
def test_the_label_of_a_residue_stands_at_it(kind, proteins):
  # The label of a residue is its own token id, of those below 15.
  values = np.where(proteins.residues < 15, proteins.residues, np.nan)
  its = labels.Labels(values.astype(np.float32), proteins.offsets)
  batches = make_batches(kind, proteins, labels=its)
  for step in range(12):
    batch = batches.make(0, step)
    has_label = batch.tokens < 15
    np.testing.assert_array_equal(
      batch.labels, np.where(has_label, batch.tokens, np.nan)
    )
    np.testing.assert_array_equal(batch.weights, has_label)


def test_weights_multiply_labels(proteins):
  weights = np.arange(80, dtype=np.float32)
  values = labels.Labels(np.zeros(80, np.float32))
  batch = make_batches('padded', proteins, weights=weights, labels=values).make(
    0, 0
  )
  for its in segments(batch):
    p, _ = protein_of(its.tokens)
    if p is not None:
      assert its.weights.sum() == weights[p]


# Tables


def write(path, text):
  path.write_text(text)
  return str(path)


def test_weights_are_scaled_to_a_mean_of_one_over_tokens(tmp_path, capsys):
  path = write(tmp_path / 'w.csv', 'id,weight\na,1\nb,3\nsp|P1|X,0\nother,5\n')
  first, second = sequence_weights.read(
    path, [['b', 'a'], ['P1']], [[9, 19], [29]]
  )
  expected = np.array([3, 1, 0]) * 60 / (3 * 10 + 20)
  np.testing.assert_allclose([*first, *second], expected, rtol=1e-6)
  assert '1 rows name no protein of train' in capsys.readouterr().out


@pytest.mark.parametrize(
  'text, message',
  [
    ('id,weight\na,1\n', "no weight of 1 of 2 proteins of train, first 'b'"),
    ('id,weight\na,1\nb,-1\n', r"w.csv:3 has the weight '-1', not a number"),
    ('id,weight\na,1\nb,nan\n', r"w.csv:3 has the weight 'nan'"),
    ('id,weight\na,1\na,2\n', r"w.csv:3 has id 'a' again, after .*w.csv:2"),
    ('id,weight\na\n', 'w.csv:2 has 1 cells, fewer than its header'),
    ('a,1\nb,1\n', "w.csv:1 must name the columns, .* names 'a, 1'"),
    ('id,weight\n', 'holds no row of id and weight'),
    ('id,weight\na,0\nb,0\n', 'gives every protein of train the weight 0'),
  ],
)
def test_tables_of_weights_that_are_wrong_are_refused(tmp_path, text, message):
  path = write(tmp_path / 'w.csv', text)
  with pytest.raises(ValueError, match=message):
    sequence_weights.read(path, [['a', 'b']], [[1, 1]])


def test_labels_are_found_by_id_and_nan_where_there_is_none(tmp_path):
  path = write(tmp_path / 'l.tsv', 'id\tnote\tlabel\na\tx\t1.5\nb\ty\t\n')
  found = labels.LabelTable(path).of(['b', 'set/a', 'c'], [3, 3, 3])
  np.testing.assert_array_equal(found.values, [np.nan, 1.5, np.nan])
  assert found.num_labels == 1 and not found.is_per_residue


def test_classes_are_numbered_as_bound(tmp_path):
  path = write(tmp_path / 'l.csv', 'id,label\na,soluble\nb,membrane\n')
  table = labels.LabelTable(path, classes=('membrane', 'soluble'))
  np.testing.assert_array_equal(table.of(['a', 'b'], [1, 1]).values, [1, 0])


@pytest.mark.parametrize(
  'text, classes', [('H.C', ('C', 'H')), ('1;;0', None), ('1.0;.;0', None)]
)
def test_residues_have_letters_or_numbers(tmp_path, text, classes):
  path = write(tmp_path / 'l.csv', f'id,label\nb,{text}\n')
  table = labels.LabelTable(path, 'residue', classes)
  found = table.of(['a', 'b'], [2, 3])
  np.testing.assert_array_equal(found.values, [np.nan, np.nan, 1, np.nan, 0])
  assert found.is_per_residue


@pytest.mark.parametrize(
  'text, per, classes, message',
  [
    ('a,x', 'protein', None, "l.csv:2 has the label 'x', not a number; for na"),
    ('a,inf', 'protein', None, "l.csv:2 has the label 'inf'"),
    ('a,x', 'protein', ('y', 'z'), "label 'x'; data.label_classes are y, z"),
    ('a,1;2', 'residue', None, 'l.csv:2 has 2 labels and a has 3 residues'),
    ('a,HHH', 'residue', ('H', 'EE'), "one letter for residues.*got 'EE'"),
    ('a,1', 'protein', ('x',), 'must be two names at least'),
  ],
)
def test_tables_of_labels_that_are_wrong_are_refused(
  tmp_path, text, per, classes, message
):
  path = write(tmp_path / 'l.csv', f'id,label\n{text}\n')
  with pytest.raises(ValueError, match=message):
    labels.LabelTable(path, per, classes).of(['a'], [3])
