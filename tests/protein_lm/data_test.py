"""The data of a run: sources, arguments, batches by seed and step."""

import itertools
import json
import math

import gin
import numpy as np
import pytest

from protein_lm import data, proteins, vocab

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


def open_fasta(work_dir, name='my.fasta', **kwargs):
  source = str(work_dir / name)
  return data.open_data(
    work_dir, source, **{'max_len': 64, 'batch_size': 4} | kwargs
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
  num_rows = round(4 * opened.steps_per_epoch)
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


def test_padded_rows_hold_one_protein(padded):
  assert padded.train_batch(0, 0).segment_ids.max() == 1
  assert padded.steps_per_epoch == padded.splits['train'][0] / 4


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


@pytest.mark.parametrize(
  'change, shapes',
  [
    ({}, {(4, 64)}),
    ({'layout': 'padded', 'buckets': [16, 64]}, {(16, 16), (4, 64)}),
    ({'layout': 'concatenated', 'attend_across_proteins': True}, {(4, 64)}),
    ({'directions': 'both'}, {(4, 64)}),
  ],
)
def test_arguments_reach_the_batches(opened, work_dir, change, shapes):
  changed = open_fasta(work_dir, **change)
  batches = [changed.train_batch(0, step) for step in range(20)]
  assert {batch.tokens.shape for batch in batches} == shapes
  first = opened.train_batch(0, 0).tokens
  assert np.array_equal(batches[0].tokens, first) == (not change)


def test_some_rows_of_a_batch(opened):
  whole = opened.train_batch(0, 3)
  part = opened.train_batch(0, 3, rows=slice(1, 3))
  assert_equal(part, data.Batch(*(array[1:3] for array in whole)))


def test_settings_name_what_changes_batches(opened, work_dir):
  padded = open_fasta(work_dir, layout='padded', buckets=(16, 64))
  changed = {
    name: value
    for name, value in padded.settings.items()
    if value != opened.settings[name]
  }
  assert changed == {'data.layout': 'padded', 'data.buckets': [16, 64]}
  assert json.loads(json.dumps(padded.settings)) == padded.settings


def test_old_checkpoints_had_what_are_the_defaults(opened):
  assert opened.settings.keys() > data.SETTING_DEFAULTS.keys()
  new = {**opened.settings, 'data.order': 1}
  assert new == {**new, **data.SETTING_DEFAULTS}


# Mixtures


@pytest.fixture(scope='module')
def mixture(work_dir):
  """my.fasta, and another with its test proteins beside relatives of them.

  Relatives make other clusters, of which most go to train.
  """
  test = open_fasta(work_dir).proteins('test')
  sequences = random_sequences(99, 60, 1)
  for id_, (a, b) in zip(
    test.ids, itertools.pairwise(test.offsets), strict=True
  ):
    sequences[id_] = vocab.decode(test.residues[a:b])
    sequences[f'a{id_}'] = 'MKVLAC' + sequences[id_]
  text = ''.join(f'>{id_}\n{s}\n' for id_, s in sequences.items())
  (work_dir / 'other.fasta').write_text(text)
  return str(work_dir / 'my.fasta'), str(work_dir / 'other.fasta')


def test_sequences_in_train_and_test_of_two_sources_are_counted(
  mixture, work_dir, capsys
):
  opened = data.open_data(work_dir, mixture)
  (line,) = [
    line
    for line in capsys.readouterr().out.splitlines()
    if 'made apart' in line
  ]
  alone = [data.open_data(work_dir, source) for source in mixture]
  trained, held_out = [], []
  for one in alone:
    split = {name: sequences_of(one.proteins(name)) for name in one.splits}
    trained.append(split.pop('train'))
    held_out.append(set().union(*split.values()))
  shared = len(held_out[0] & trained[1]) + len(held_out[1] & trained[0])
  assert shared > 0 and f' {shared} sequences of validation' in line
  assert opened.name == ' + '.join(one.name for one in alone)


def sequences_of(proteins):
  return {
    vocab.decode(proteins.residues[a:b])
    for a, b in itertools.pairwise(proteins.offsets)
  }


def test_a_mixture_has_the_proteins_of_all_sources(mixture, work_dir):
  opened = data.open_data(work_dir, mixture)
  alone = [data.open_data(work_dir, source) for source in mixture]
  for split in ('train', 'test'):
    joined = opened.proteins(split)
    counts = [one.splits[split] for one in alone]
    sums = tuple(sum(x) for x in zip(*counts, strict=True))
    assert opened.splits[split] == sums == (len(joined), len(joined.residues))
    assert len(set(joined.ids)) == len(joined)


def test_a_mixtures_fingerprint_is_of_all_sources(mixture, work_dir):
  prints = {
    data.open_data(work_dir, source).fingerprint
    for source in (*mixture, mixture, mixture[::-1])
  }
  assert len(prints) == 4


def test_weights_change_the_mixture(mixture, work_dir):
  even = data.open_data(work_dir, mixture)
  uneven = data.open_data(work_dir, mixture, weights=(1, 5))
  assert uneven.settings['data.weights'] == [1, 5]
  assert even.steps_per_epoch == uneven.steps_per_epoch
  assert not np.array_equal(
    even.train_batch(0, 0).tokens, uneven.train_batch(0, 0).tokens
  )


def test_one_file_under_two_names_is_no_mixture(work_dir, tmp_path):
  (tmp_path / 'my.fasta').write_text((work_dir / 'my.fasta').read_text())
  sources = str(work_dir / 'my.fasta'), str(tmp_path / 'my.fasta')
  with pytest.raises(ValueError, match='data.source names fasta/my.* twice'):
    data.open_data(work_dir, sources)


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
    'data.buckets = (16, 32)',
    "data.directions = 'both'",
    'data.num_workers = 2',
  ]
  with gin.unlock_config():
    gin.parse_config(bindings)
  try:
    opened = data.open_data(work_dir)
    assert opened.train_batch(0, 0).tokens.shape in {(3, 32), (6, 16)}
    assert opened.directions == 'both' and opened.num_workers == 2
  finally:
    gin.clear_config()


@pytest.mark.parametrize(
  'change, told',
  [
    ({'batch_size': 0}, 'batch_size must be .* at least 1, got 0'),
    ({'batch_size': 2.0}, 'batch_size must be a whole number'),
    ({'batch_size': True}, 'batch_size must be a whole number'),
    ({'max_len': 7}, 'max_len must be a whole number, at least 8, got 7'),
    ({'max_len': '512'}, 'max_len must be a whole number'),
    ({'num_workers': -1}, 'num_workers must be a whole number, at least 0'),
    ({'layout': 'bucket'}, "layout must be 'packed', 'padded' or 'concat.*'"),
    ({'directions': 'back'}, "directions must be 'forward' or 'both', got"),
    ({'source': 'human_swisprot'}, "source.*mean 'human_swissprot'"),
    ({'source': 'no.fasta'}, 'source.*no.fasta.*no such file'),
    ({'source': 3}, 'source must be'),
    ({'source': ()}, 'source must be'),
    ({'source': ('a', 'b', 'a')}, "source names 'a' twice; name it once"),
    ({'source': ('a', 'b'), 'weights': (1,)}, r'weights must be a tuple of 2'),
    ({'source': ('a', 'b'), 'weights': (1, 0)}, 'weights must be positive'),
    ({'weights': (1, math.nan), 'source': ('a', 'b')}, 'weights.*positive'),
    ({'weights': 1.0}, 'weights must be a tuple of 1'),
    ({'buckets': (64, 512)}, "buckets = .*goes with data.layout = 'padded'"),
    ({'buckets': (512, 64)}, 'buckets must ascend to data.max_len = 512'),
    ({'buckets': (64, 128)}, 'buckets must ascend to data.max_len = 512'),
    ({'buckets': (2, 512)}, 'buckets must be a tuple of whole numbers, at'),
    (
      {'source': ('a', 'b'), 'buckets': (512,), 'layout': 'padded'},
      'buckets = .*goes with one data.source, got 2',
    ),
    ({'attend_across_proteins': True}, "attend_across_.*'concatenated' alone"),
    ({'attend_across_proteins': 1}, 'attend_across_proteins must be True or'),
  ],
)
def test_wrong_values_are_refused_in_one_sentence(tmp_path, change, told):
  with pytest.raises(ValueError, match=f'data.{told}') as error:
    data.open_data(tmp_path, **change)
  assert str(error.value).split('\n  In call')[0].count('\n') == 0


def test_an_unusable_work_dir_is_named(work_dir):
  with pytest.raises(ValueError, match='my.fasta/data cannot be made'):
    data.open_data(work_dir / 'my.fasta', str(work_dir / 'my.fasta'))


def test_a_collection_on_disk_gives_the_batches_of_one_in_memory(
  opened, work_dir, monkeypatch
):
  monkeypatch.setattr(proteins, 'MAX_RESIDUES_IN_MEMORY', 0)
  on_disk = open_fasta(work_dir, max_len=64, batch_size=4)
  for step in (0, 7, 10**6):
    for a, b in zip(
      opened.train_batch(1, step), on_disk.train_batch(1, step), strict=True
    ):
      np.testing.assert_array_equal(a, b)
  with on_disk.train_batches(1, 7, num_workers=1) as batches:
    np.testing.assert_array_equal(
      next(batches).tokens, opened.train_batch(1, 7).tokens
    )


@pytest.mark.parametrize('layout', ['packed', 'padded', 'concatenated'])
def test_extreme_lengths_make_batches_of_one_shape(tmp_path, layout):
  sequences = random_sequences(40, 90)
  sequences |= {'titin': 'MKVLAACDEF' * 3_500, 'one': 'M', 'other': 'W'}
  (tmp_path / 'my.fasta').write_text(
    ''.join(f'>{id_}\n{s}\n' for id_, s in sequences.items())
  )
  opened = open_fasta(tmp_path, max_len=64, batch_size=4, layout=layout)
  steps = range(2 * math.ceil(opened.steps_per_epoch))
  shapes = {opened.train_batch(0, step).tokens.shape for step in steps}
  assert shapes == {(4, 64)}
  scored = sum(
    int((batch.residue_BL[batch.batch.weights > 0] >= 0).sum())
    for split in opened.splits
    for batch in opened.eval_batches(opened.proteins(split))
  )
  counted = set(LETTERS) - {'B', 'X', 'Z'}
  residues = ''.join(sequences.values())
  ends = sum(opened.splits[split][0] for split in opened.splits)
  assert scored == sum(letter in counted for letter in residues) + ends
