"""Batches: a function of seed and step; every residue evaluated once."""

import itertools

import gin
import numpy as np
import pytest

from protein_lm import data, vocab
from protein_lm.proteins import from_sequences

LETTERS = 'ACDEFGHIKLMNPQRSTVWYUBXZ'


def random_sequences(size, longest, seed=0):
  rng = np.random.default_rng(seed)
  return {
    f'p{i}': ''.join(rng.choice(list(LETTERS), rng.integers(1, longest + 1)))
    for i in range(size)
  }


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
  work_dir = tmp_path_factory.mktemp('work')
  sequences = random_sequences(300, 90)
  text = ''.join(f'>{id_}\n{s}\n' for id_, s in sequences.items())
  (work_dir / 'my.fasta').write_text(text)
  return work_dir


@pytest.fixture(scope='module')
def opened(work_dir):
  return data.open_data(
    work_dir, source=str(work_dir / 'my.fasta'), max_len=64, batch_size=4
  )


@pytest.fixture(scope='module')
def padded(work_dir):
  source = str(work_dir / 'my.fasta')
  return data.open_data(
    work_dir, source=source, max_len=64, batch_size=4, layout='padded'
  )


def segments(batch):
  """Yields the tokens and positions of each protein in a batch."""
  for row in range(len(batch.tokens)):
    for segment in range(1, batch.segment_ids[row].max() + 1):
      inside = batch.segment_ids[row] == segment
      yield (
        vocab.decode(batch.tokens[row][inside]),
        batch.positions[row][inside],
      )


def assert_equal(one, other):
  for array, expected in zip(one, other, strict=True):
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


# Training


def test_arrays_have_the_published_shapes(opened):
  batch = opened.train_batch(0, 0)
  assert {array.shape for array in batch} == {(4, 64)}
  assert [str(a.dtype) for a in batch] == ['int32', 'int32', 'int32', 'float32']


@pytest.mark.parametrize('layout', ['opened', 'padded'])
def test_an_epoch_shows_each_protein_once(layout, request):
  opened = request.getfixturevalue(layout)
  train = opened.proteins('train')
  whole = {
    vocab.decode(train.residues[a:b])
    for a, b in itertools.pairwise(train.offsets)
  }
  num_rows = opened.epochs.plan.num_rows
  steps = -(-num_rows // 4)
  rows = [opened.train_batch(3, step) for step in range(steps)]
  epoch = data.Batch(
    *(np.concatenate(a)[:num_rows] for a in zip(*rows, strict=True))
  )
  seen = [tokens for tokens, _ in segments(epoch)]
  assert len(seen) == len(whole)
  assert {t[1:-1] for t in seen if t[-1] == '>' and t[0] == '<'} == {
    sequence for sequence in whole if len(sequence) <= 62
  }
  for tokens in seen:
    assert tokens.strip('<>') in whole or len(tokens) == 64


def test_bos_and_eos_stand_only_at_true_ends(opened):
  train = opened.proteins('train')
  flat = [
    '<' + vocab.decode(train.residues[a:b]) + '>'
    for a, b in itertools.pairwise(train.offsets)
  ]
  crops = 0
  for step in range(60):
    for tokens, _ in segments(opened.train_batch(0, step)):
      assert '<' not in tokens[1:] and '>' not in tokens[:-1]
      assert any(tokens in whole for whole in flat)
      crops += tokens[0] != '<' and tokens[-1] != '>'
  assert crops > 10


def test_positions_restart_and_padding_is_empty(opened):
  batch = opened.train_batch(0, 5)
  for tokens, positions in segments(batch):
    np.testing.assert_array_equal(positions, np.arange(len(tokens)))
  empty = batch.segment_ids == 0
  assert (batch.tokens[empty] == vocab.PAD_ID).all()
  assert (batch.tokens[~empty] != vocab.PAD_ID).all()
  assert not batch.positions[empty].any() and not batch.weights[empty].any()


def test_weights_count_residues_and_eos(opened):
  batch = opened.train_batch(0, 7)
  counted = {vocab.decode([t]) for t in batch.tokens[batch.weights == 1]}
  others = {vocab.decode([t]) for t in batch.tokens[batch.weights == 0]}
  assert counted == set('ACDEFGHIKLMNPQRSTVWYU>') and others <= set('BXZ<_')


def test_padded_rows_hold_one_protein(padded):
  assert padded.train_batch(0, 0).segment_ids.max() == 1
  assert padded.epochs.plan.num_rows == padded.splits['train'][0]


@pytest.mark.parametrize('start', [0, 37])
def test_the_iterator_gives_the_batches_of_its_steps(opened, start):
  iterator = opened.train_batches(2, start)
  for step in range(start, start + 5):
    assert_equal(next(iterator), opened.train_batch(2, step))
  iterator.close()


def test_batches_do_not_depend_on_what_was_made_before(opened, work_dir):
  fresh = data.open_data(work_dir, str(work_dir / 'my.fasta'), 64, 4)
  expected = fresh.train_batch(1, 1000)
  opened.train_batch(9, 3)
  assert_equal(opened.train_batch(1, 1000), expected)
  assert not np.array_equal(opened.train_batch(2, 1000).tokens, expected.tokens)


def test_rows_flow_on_whatever_the_batch_size(opened, work_dir):
  wide = data.open_data(work_dir, str(work_dir / 'my.fasta'), 64, 12)
  three = [opened.train_batch(0, step) for step in range(30, 33)]
  joined = data.Batch(*map(np.concatenate, zip(*three, strict=True)))
  assert_equal(wide.train_batch(0, 10), joined)


def test_tokens_per_epoch_is_what_a_causal_model_is_scored_on(opened):
  num_rows = opened.epochs.plan.num_rows
  steps = range(num_rows)  # four epochs of rows
  total = 0
  for step in steps:
    batch = opened.train_batch(0, step)
    total += (batch.weights * (batch.positions > 0)).sum()
  assert opened.steps_per_epoch == num_rows / 4
  # B, X and Z inside crops are not taken off: at most 3/24 of those tokens.
  assert 0.9 * opened.tokens_per_epoch < total / 4 <= opened.tokens_per_epoch


# Evaluation


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
def test_every_residue_is_scored_once(opened, max_len, batch_size):
  proteins = from_sequences(
    random_sequences(20, 100)
    | {'one': 'M', 'six': 'MKVLAC', 'seven': 'MKVLACD'}
  )
  batches = opened.eval_batches(proteins, batch_size, max_len)
  expected = {}
  for p, (a, b) in enumerate(itertools.pairwise(proteins.offsets)):
    tokens = [*proteins.residues[a:b], vocab.EOS_ID]
    for index, token in enumerate(tokens):
      if token not in vocab.UNCOUNTED_IDS:
        expected[p, index] = token
  assert scored(batches) == expected
  assert {b.batch.tokens.shape for b in batches} == {(batch_size, max_len)}


def test_a_window_scores_only_what_is_new_with_context(opened):
  proteins = from_sequences({'long': 'M' * 100})
  seen = -1
  windows = []
  for eval_batch in opened.eval_batches(proteins, 1, 20):
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


def test_evaluation_says_where_its_tokens_are_from(opened):
  proteins = from_sequences(random_sequences(9, 40))
  (eval_batch,) = opened.eval_batches(proteins, 64, 64)
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


def test_batches_of_evaluation_can_be_indexed_and_counted(opened):
  batches = opened.eval_batches(opened.proteins('validation'), 2)
  assert len(list(batches)) == len(batches) > 1
  assert_equal(batches[-1].batch, list(batches)[-1].batch)
  assert len(batches[:2]) == 2
  with pytest.raises(IndexError):
    batches[len(batches)]


# The data set


def test_splits_and_fingerprint_do_not_depend_on_the_files_name(
  opened, work_dir, tmp_path
):
  copy = tmp_path / 'copy.fa'
  copy.write_text((work_dir / 'my.fasta').read_text().lower())
  other = data.open_data(tmp_path, str(copy), max_len=128)
  assert other.fingerprint == opened.fingerprint
  assert other.splits == opened.splits
  assert sum(n for n, _ in other.splits.values()) == 300


def test_fingerprint_changes_with_one_residue(opened, work_dir, tmp_path):
  changed = tmp_path / 'my.fasta'
  text = (work_dir / 'my.fasta').read_text()
  changed.write_text(text.replace('>p7\n', '>p7\nM'))
  other = data.open_data(tmp_path, str(changed))
  assert other.fingerprint != opened.fingerprint


def test_a_files_copy_lives_in_the_work_dir_for_its_owner_only(
  opened, work_dir
):
  assert (work_dir / 'data').stat().st_mode & 0o777 == 0o700
  assert str(opened.builder.data_dir).startswith(f'{work_dir}/data/fasta/my_')


def test_gin_binds_the_published_names(work_dir):
  bindings = [
    f"data.source = '{work_dir}/my.fasta'",
    'data.batch_size = 3',
    'data.max_len = 32',
    "data.layout = 'padded'",
  ]
  with gin.unlock_config():
    gin.parse_config(bindings)
  try:
    assert data.open_data(work_dir).train_batch(0, 0).tokens.shape == (3, 32)
  finally:
    gin.clear_config()


@pytest.mark.parametrize(
  'argument, value, told',
  [
    (
      'batch_size',
      0,
      'data.batch_size must be a whole number, at least 1, got 0',
    ),
    ('batch_size', 2.0, 'data.batch_size'),
    ('batch_size', True, 'data.batch_size'),
    ('max_len', 7, 'data.max_len must be a whole number, at least 8, got 7'),
    ('max_len', '512', 'data.max_len'),
    ('layout', 'bucket', "data.layout must be 'packed' or 'padded'"),
    ('source', 'human_swisprot', "data.source.*mean 'human_swissprot'"),
    ('source', 'no.fasta', 'data.source.*no.fasta.*no such file'),
    ('source', 3, 'data.source must be'),
  ],
)
def test_wrong_values_are_refused_in_one_sentence(
  tmp_path, argument, value, told
):
  with pytest.raises(ValueError, match=told):
    data.open_data(tmp_path, **{argument: value})


def test_an_unusable_work_dir_is_named(work_dir):
  with pytest.raises(ValueError, match='my.fasta/data cannot be made'):
    data.open_data(work_dir / 'my.fasta', str(work_dir / 'my.fasta'))
