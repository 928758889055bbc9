"""Starting from another run's weights: what fits, what is refused or told.

The trees are shaped as a model's, without a model.
"""

import itertools

import jax
import numpy as np
import pytest

from protein_lm import checkpoint, init_from, lora, weights_file
from protein_lm.positions import sinusoid
from protein_lm.train_step import TrainState

CONFIG = """
FlaxModel.position_embedding = 'learned'
FlaxModel.num_layers = 2
FlaxModel.lora_alpha = 4.0
"""


def make_params(seed=0, layers=2, width=4, rows=6, vocab=5, rank=0, **heads):
  """Parameters by a model's names; heads are name=width."""
  generator = np.random.default_rng(seed)

  def array(*shape):
    return generator.normal(size=shape).astype(np.float32)

  query = {'kernel': array(layers, width, 2, 3)}
  if rank:
    query['lora_a'] = array(layers, width, rank)
    query['lora_b'] = array(layers, rank, 2, 3)
  heads = {k: {'kernel': array(width, v)} for k, v in heads.items()}
  return {
    'embed': {'embedding': array(vocab, width)},
    'position_table': array(rows, width),
    'blocks': {'query': query},
    **heads,
  }


def make_state(params, **fields):
  params = jax.tree.map(jax.numpy.array, params)
  return TrainState(jax.numpy.int32(0), params, (), **fields)


def save(work_dir, params, step=7, config=CONFIG, **fields):
  checkpoint.save(
    work_dir, step, make_state(params, **fields), config=config, metadata={}
  )
  return work_dir


@pytest.fixture
def source(tmp_path):
  return save(tmp_path / 'a', make_params(output=5))


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_same_architecture_is_taken_whole(source):
  params, report = init_from.load(source, 'latest', make_params(1, output=5))
  assert_equal(params, make_params(output=5))
  assert len(report.loaded) == 4
  assert report.new == report.left_over == ()
  assert report.lines() == [
    f'initialised from {source}, step 7: 4 arrays loaded, 0 new, 0 left over'
  ]


def test_a_head_starts_anew_and_the_old_one_is_left_behind(source):
  params, report = init_from.load(source, 7, make_params(1, head=3))
  assert 'head' not in params
  assert report.new == ('head/kernel',)
  assert report.left_over == ('output/kernel',)
  assert any('head/kernel' in line for line in report.lines())


def test_factors_start_anew(source):
  wanted = make_params(1, rank=2, output=5)
  params, report = init_from.load(source, 'latest', wanted)
  assert report.new == ('blocks/query/lora_a', 'blocks/query/lora_b')
  assert set(params['blocks']['query']) == {'kernel'}


@pytest.mark.parametrize('rank', [0, 3])
def test_factors_of_the_source_are_folded_where_they_have_no_place(
  tmp_path, rank
):
  trained = make_params(rank=2, output=5)
  save(tmp_path, trained)
  wanted = make_params(1, rank=rank, output=5)
  params, report = init_from.load(tmp_path, 'latest', wanted)
  assert_equal(params, lora.merge(trained, 4.0))
  assert 'folded into their kernels (alpha 4.0)' in report.notes[0]


def test_factors_of_the_same_rank_go_on(tmp_path):
  trained = make_params(rank=2, output=5)
  params, report = init_from.load(
    save(tmp_path, trained), 'latest', make_params(1, rank=2, output=5)
  )
  assert_equal(params, trained)
  assert report.notes == ()


@pytest.mark.parametrize('rows', [4, 9])
def test_positions_keep_their_first_rows_and_the_rest_is_the_sinusoid(
  source, rows
):
  wanted = make_params(1, rows=rows, output=5)
  params, report = init_from.load(source, 'latest', wanted)
  expected = np.array(sinusoid(np.arange(rows), 4))
  kept = min(rows, 6)
  expected[:kept] = make_params(output=5)['position_table'][:kept]
  np.testing.assert_array_equal(params['position_table'], expected)
  assert f'6 rows in the source and {rows} here' in report.notes[0]


@pytest.mark.parametrize(
  'change, message',
  [
    ({'layers': 3}, 'has 2 layers and this model 3; set FlaxModel.num_layers'),
    ({'vocab': 6}, r'embed/embedding is \(5, 4\) in the source and \(6, 4\)'),
    ({'width': 6}, 'blocks/query/kernel is .*bind FlaxModel as the source did'),
    ({'output': 6}, r'output/kernel is \(4, 5\) in the source and \(4, 6\)'),
  ],
)
def test_another_architecture_is_refused_with_what_differs(
  source, change, message
):
  wanted = make_params(1, **({'output': 5} | change))
  with pytest.raises(ValueError, match=message):
    init_from.load(source, 'latest', wanted)


@pytest.mark.parametrize('where', ['source', 'here'])
def test_arrays_of_one_side_alone_are_refused(tmp_path, where):
  plain, more = make_params(output=5), make_params(output=5)
  more['blocks']['mlp_gate'] = {'kernel': np.ones((2, 4, 4), np.float32)}
  stored, wanted = (more, plain) if where == 'source' else (plain, more)
  save(tmp_path, stored)
  message = 'in the source only' if where == 'source' else 'not in the source'
  with pytest.raises(ValueError, match=f'mlp_gate/kernel is {message}'):
    init_from.load(tmp_path, 'latest', wanted)


def test_averaged_weights_are_preferred(tmp_path):
  save(tmp_path, make_params(), ema_params=make_params(5))
  params, report = init_from.load(tmp_path, 'latest', make_params(1))
  assert_equal(params, make_params(5))
  assert 'averaged weights' in report.source


def test_a_state_starts_with_weights_averages_and_statistics(tmp_path):
  stats = {'weight': np.full(2, 3, np.float32)}
  save(tmp_path, make_params(), attention_stats=stats)
  empty = {'weight': jax.numpy.zeros(2)}
  state = make_state(
    make_params(1, head=2), ema_params=make_params(1), attention_stats=empty
  )
  started, report = init_from.start(tmp_path, 'latest', state)
  expected = make_params() | {'head': make_params(1, head=2)['head']}
  assert_equal(started.params, expected)
  assert_equal(started.ema_params, expected)
  assert_equal(started.attention_stats, stats)
  leaves = itertools.chain(*map(jax.tree.leaves, started[:5]))
  pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
  assert len(set(pointers)) == len(pointers)  # each can be donated
  assert report.new == ('head/kernel',)


def test_other_positions_are_refused_and_other_attention_is_told(source):
  state = make_state(make_params(1, output=5))
  other = CONFIG + 'FlaxModel.attention_fn = @make_fast_softmax_attention()'
  _, report = init_from.start(source, 'latest', state, other)
  assert 'differs from the source: FlaxModel.attention_fn' in report.notes[0]
  with pytest.raises(ValueError, match="'learned' -> 'rotary'"):
    init_from.start(
      source, 'latest', state, CONFIG.replace('learned', 'rotary')
    )


def test_embeddings_scaled_otherwise_are_refused(source):
  state = make_state(make_params(1, output=5))
  usual = CONFIG + 'FlaxModel.scale_embeddings = True'
  assert init_from.start(source, 'latest', state, usual)[1].notes == ()
  with pytest.raises(ValueError, match='scales embeddings otherwise'):
    init_from.start(
      source, 'latest', state, CONFIG + 'FlaxModel.scale_embeddings = False'
    )


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="no folder or .*nowhere'"):
    init_from.load(tmp_path / 'nowhere', 'latest', {})
  with pytest.raises(checkpoint.NotFoundError, match='no checkpoint in'):
    init_from.load(tmp_path, 'latest', {})


def test_exported_weights_are_a_source_too(tmp_path, source):
  path = tmp_path / 'a.safetensors'
  weights_file.export(source, path)
  params, report = init_from.load(path, 'latest', make_params(1, head=2))
  assert_equal(params['blocks'], make_params(output=5)['blocks'])
  assert report.left_over == ('output/kernel',)
  with pytest.raises(
    ValueError, match="init_from_step = 'best' is of a folder"
  ):
    init_from.load(path, 'best', make_params())


def test_integers_are_no_weights(tmp_path):
  params = make_params()
  params['embed']['embedding'] = params['embed']['embedding'].astype(np.int32)
  with pytest.raises(ValueError, match='embed/embedding is int32'):
    init_from.load(save(tmp_path, params), 'latest', make_params())
