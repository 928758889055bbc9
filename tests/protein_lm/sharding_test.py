"""The rules of sharding: complete, the same for moments, and they fit."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from fast_attention import make_fast_softmax_attention
from protein_lm import models, sharding
from protein_lm import train_step as steps
from protein_lm.mesh import make_mesh

MODEL = functools.partial(
  models.FlaxLM,
  emb_dim=16,
  qkv_dim=24,
  mlp_dim=48,
  num_heads=4,
  num_layers=3,
  max_len=32,
)
MODELS = {
  'plain': MODEL,
  'tied': functools.partial(MODEL, tie_embeddings=True, norm='rmsnorm'),
  'dense': functools.partial(MODEL, output_head='dense', norm_embeddings=True),
  'gated': functools.partial(
    MODEL, mlp='swiglu', qk_norm=True, position_embedding='rotary'
  ),
}


def paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


@pytest.fixture(scope='module')
def mesh():
  return make_mesh(8, data=1, fsdp=2, tensor=4)


@pytest.mark.parametrize('name', MODELS)
def test_every_leaf_of_the_model_has_a_rule_of_its_rank(name):
  params = steps.abstract_model(MODELS[name])[1]
  for path, leaf in paths(params).items():
    spec = sharding.rule(path)
    assert spec is not None, path
    assert len(spec) <= leaf.ndim, path


def test_every_rule_has_a_leaf():
  names = {
    path
    for cls in MODELS.values()
    for path in paths(steps.abstract_model(cls)[1])
  }
  for path, _ in sharding.RULES:
    assert any(re.fullmatch(path, name) for name in names), path


@pytest.mark.parametrize(
  'tx',
  [
    optax.adamw(1e-3),
    optax.lion(1e-3),
    optax.contrib.muon(1e-3),
    optax.chain(optax.clip(1.0), optax.adafactor(1e-3)),
  ],
  ids=['adamw', 'lion', 'muon', 'adafactor'],
)
def test_moments_and_averages_lie_as_their_parameter(mesh, tx):
  params = steps.abstract_model(MODELS['gated'])[1]
  state = jax.eval_shape(
    lambda p: steps.init_state(p, tx)._replace(ema_params=p), params
  )
  places = paths(sharding.state_shardings(mesh, state))
  leaves = paths(state)
  mirrored = 0
  for path, leaf in leaves.items():
    of_param = [
      name
      for name in paths(params)
      if path.endswith('/' + name)
      and leaves['params/' + name].shape == leaf.shape
    ]
    if of_param:
      mirrored += 1
      assert places[path] == places['params/' + of_param[0]]
  assert mirrored > 2 * len(paths(params))
  assert places['step'].spec == P()


def test_heads_and_width_are_cut_over_tensor_and_the_rest_over_fsdp(mesh):
  params = steps.abstract_model(MODEL)[1]
  places = sharding.state_shardings(mesh, params)['blocks']
  shard = {
    name: places[name]['kernel'].shard_shape(
      params['blocks'][name]['kernel'].shape
    )
    for name in ('query', 'out', 'mlp_in', 'mlp_out')
  }
  assert shard == {
    'query': (3, 8, 1, 6),  # N D H K
    'out': (3, 1, 6, 8),  # N H K D
    'mlp_in': (3, 8, 12),  # N D F
    'mlp_out': (3, 12, 8),  # N F D
  }


def test_statistics_of_an_attention_lie_everywhere(mesh):
  cls = functools.partial(
    MODEL,
    attention_fn=make_fast_softmax_attention(features_type='favor_plus_plus'),
  )
  graphdef, params = steps.abstract_model(cls)
  stats = jax.eval_shape(
    lambda p: steps.init_state(p, optax.sgd(1.0), graphdef), params
  ).attention_stats
  assert stats
  for place in jax.tree.leaves(sharding.state_shardings(mesh, stats)):
    assert place.spec == P()


def test_an_axis_that_does_not_divide_stays_whole_and_large_ones_are_told(
  capsys,
):
  mesh = make_mesh(6, data=1, fsdp=3)
  leaf = jax.ShapeDtypeStruct((2, 512, 4, 64), jnp.float32)
  state = {'params': {'blocks': {'query': {'kernel': leaf}}}}
  place = sharding.state_shardings(mesh, state)
  assert place['params']['blocks']['query']['kernel'].spec == P(
    None, None, 'tensor'
  )
  assert 'params/blocks/query/kernel (2, 512, 4, 64)' in capsys.readouterr().out


@pytest.mark.parametrize(
  'path, shape, spec',
  [
    ('head/kernel', (512, 300), P('fsdp')),
    ('head/kernel', (300, 512), P(None, 'fsdp')),
    ('head/kernel', (513, 301), P()),
    ('head/kernel', (16, 4), P()),  # small
    ('blocks/query/lora_a', (600, 512, 4), P(None, 'fsdp')),
  ],
)
def test_leaves_of_other_modules_are_cut_where_it_pays(mesh, path, shape, spec):
  tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32)}
  assert sharding.state_shardings(mesh, tree)[path].spec == spec


def test_nothing_is_constrained_outside_of_a_mesh():
  x = jnp.ones((3, 5, 2))
  assert sharding.constrain(x) is x


def test_rows_are_constrained_under_a_mesh_if_they_can_be_cut():
  mesh = make_mesh(8, data=2, fsdp=2, sequence=2)
  constrain = jax.jit(sharding.constrain)
  with jax.set_mesh(mesh):
    cut, whole = constrain(jnp.ones((4, 6, 2))), constrain(jnp.ones((3, 6, 2)))
  assert cut.sharding.shard_shape(cut.shape) == (1, 3, 2)
  assert whole.sharding.shard_shape(whole.shape) == whole.shape


def test_batches_of_the_host_are_put_on_the_mesh():
  mesh = make_mesh(8, data=2, fsdp=2, sequence=2)
  tokens = np.arange(24).reshape(4, 6)
  put, nothing = sharding.put(mesh, (tokens, None))
  np.testing.assert_array_equal(put, tokens)
  assert put.sharding == sharding.batch_sharding(mesh)
  assert nothing is None
