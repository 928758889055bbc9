"""The optimiser: whose numbers, what decays, what stays where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protein_lm import models
from protein_lm.optimizer import decay_mask, make_optimizer

NAMES = ('adamw', 'lion', 'adafactor', 'muon')


# The tree of a FlaxLM with two layers, without some of its leaves.
SHAPES = {
  'blocks': {
    'query': {'kernel': (2, 8, 2, 4), 'bias': (2, 2, 4)},
    'out': {'kernel': (2, 2, 4, 8), 'bias': (2, 8)},
    'mlp_in': {'kernel': (2, 8, 12), 'bias': (2, 12)},
    'mlp_norm': {'scale': (2, 8), 'bias': (2, 8)},
  },
  'embed': {'embedding': (29, 8)},
  'output': {'kernel': (8, 29), 'bias': (29,)},
  'position_table': (4, 8),
}


def draw(seed, sizes=(1, 1)):
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: generator.normal(0, generator.uniform(*sizes), shape).astype(
      np.float32
    ),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


@pytest.fixture
def params():
  return draw(0)


@pytest.fixture
def grads():
  """Of a size that varies from leaf to leaf."""
  return draw(1, (1e-3, 1))


def first_updates(params, grads, **numbers):
  tx, _ = make_optimizer(10, warmup_steps=0, **numbers)

  @jax.jit
  def update(params, grads):
    return tx.update(grads, tx.init(params), params)

  return jax.tree.map(np.asarray, update(params, grads)[0])


def test_weight_decay_leaves_biases_norms_and_positions_alone(params):
  mask = decay_mask(params)
  assert mask['blocks']['query'] == {'kernel': True, 'bias': False}
  assert mask['blocks']['mlp_norm'] == {'scale': False, 'bias': False}
  assert mask['embed'] == {'embedding': True}
  assert mask['position_table'] is False


@pytest.mark.parametrize('name', NAMES)
def test_without_a_gradient_decayed_leaves_alone_move(name, params):
  zeros = jax.tree.map(np.zeros_like, params)
  updates = first_updates(
    params, zeros, name=name, learning_rate=0.1, weight_decay=0.2
  )
  expected = jax.tree.map(
    lambda x, decays: -0.1 * 0.2 * x * decays, params, decay_mask(params)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9),
    updates,
    expected,
  )


@pytest.mark.parametrize('name', NAMES)
def test_every_optimiser_moves_by_about_the_learning_rate(name, params, grads):
  updates = first_updates(
    params, grads, name=name, learning_rate=0.1, weight_decay=0.0
  )
  for update, grad in zip(*map(jax.tree.leaves, (updates, grads)), strict=True):
    assert 0.01 < np.sqrt(np.mean(update**2)) < 0.11
    assert np.sum(update * grad) < 0


@pytest.mark.parametrize('name', NAMES)
def test_state_is_float32_and_training_goes_downhill(name, params):
  tx, _ = make_optimizer(
    60, name, 0.02, warmup_steps=5, schedule='linear', weight_decay=0.0
  )
  target = jax.tree.map(lambda x, d: x + 0.3 * d, params, draw(2))

  def loss_fn(params):
    return optax.tree.norm(jax.tree.map(jnp.subtract, params, target))

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
    return optax.apply_updates(params, updates), state

  state, start = jax.jit(tx.init)(params), loss_fn(params)
  for _ in range(60):
    params, state = step(params, state)
  assert loss_fn(params) < 0.6 * start
  assert {x.dtype.name for x in jax.tree.leaves(state)} <= {'float32', 'int32'}


def layer_matrices(x, is_out=False):
  """[N, D, H, K] or [N, H, K, D] as matrices of one layer each."""
  num_inputs = np.prod(x.shape[1:-1] if is_out else x.shape[1:2])
  return np.asarray(x).reshape(x.shape[0], num_inputs, -1)


def test_muon_orthogonalises_the_matrix_of_each_layer(params, grads):
  updates = first_updates(
    params, grads, name='muon', learning_rate=1.0, weight_decay=0.0
  )
  for name, leaf in updates['blocks'].items():
    if 'kernel' not in leaf:
      continue
    matrices_NIO = layer_matrices(leaf['kernel'], name == 'out')
    scale = 0.2 * max(matrices_NIO.shape[1:]) ** 0.5
    values = np.linalg.svd(matrices_NIO / scale, compute_uv=False)
    assert values.shape == (2, 8)
    # Five iterations bring singular values near one, not to it.
    assert np.all((values > 0.3) & (values < 1.3)), name


def test_muon_leaves_the_rest_to_adamw(params, grads):
  muon, adamw = (
    first_updates(params, grads, name=name) for name in ('muon', 'adamw')
  )
  for updates in (muon, adamw):
    updates['blocks'] = {
      name: {k: v for k, v in leaf.items() if k != 'kernel'}
      for name, leaf in updates['blocks'].items()
    }
  jax.tree.map(np.testing.assert_array_equal, muon, adamw)


def test_adafactor_keeps_sums_of_rows_and_columns_of_matrices_of_heads():
  kernel = jnp.zeros((4, 64, 2, 32))
  tx, _ = make_optimizer(10, 'adafactor')
  state = tx.init({'kernel': kernel})
  assert models.num_params(state) < 0.06 * kernel.size


def test_clipping_is_to_the_norm_of_all_gradients():
  params = {'kernel': jnp.zeros(3), 'bias': jnp.zeros(1)}
  grads = {'kernel': jnp.full(3, 2.0), 'bias': jnp.full(1, 2.0)}
  tx, _ = make_optimizer(10, 'lion', grad_clip_norm=1.0)
  _, state = tx.update(grads, tx.init(params), params)
  moments = [x for x in jax.tree.leaves(state) if x.dtype == jnp.float32]
  np.testing.assert_allclose(optax.tree.norm(moments), 0.01, rtol=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_not_trainable_has_no_state_and_does_not_move(
  name, params, grads
):
  tx, _ = make_optimizer(
    10,
    name,
    warmup_steps=0,
    grad_clip_norm=1.0,
    trainable=('blocks/query/*', 'embed/embedding'),
  )
  state = jax.jit(tx.init)(params)
  trained = {'embed': params['embed'], 'query': params['blocks']['query']}
  assert models.num_params(state) < 2 * models.num_params(trained) + 40
  updates, _ = jax.jit(tx.update)(grads, state, params)
  assert np.all(updates['blocks']['query']['kernel'] != 0)
  assert np.all(updates['embed']['embedding'] != 0)
  del updates['blocks']['query'], updates['embed']
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), updates)


def test_clipping_does_not_count_what_is_not_trainable(params, grads):
  numbers = dict(name='lion', grad_clip_norm=1e-3, trainable=('output/*',))
  tx, _ = make_optimizer(10, **numbers)
  update = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[1])
  states = []
  for factor in np.float32([1, 1e6]):
    some = jax.tree.map(lambda g, f=factor: f * g, grads)
    some['output'] = grads['output']
    states.append(update(some, params))
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_pattern_that_matches_nothing_names_the_nearest(params):
  tx, _ = make_optimizer(10, trainable=('blocks/qery/kernel',))
  with pytest.raises(
    ValueError, match="'blocks/qery/kernel' matches no .* blocks/query/kernel"
  ):
    tx.init(params)


@pytest.mark.parametrize(
  'numbers, words',
  [
    ({'learning_rate': -1.0}, 'learning_rate must be >= 0, got -1'),
    ({'name': 'adam'}, "name must be one of adamw, lion, .* got 'adam'"),
    ({'name': 'lion', 'epsilon': 1e-8}, 'epsilon=1e-08 is not read by lion'),
    ({'name': 'adafactor', 'beta2': 0.9}, 'beta2=0.9 is not read by adafactor'),
    ({'schedule': 'cosin'}, "schedule must be one of .*, got 'cosin'"),
  ],
)
def test_numbers_that_make_no_optimiser_are_refused(numbers, words):
  with pytest.raises(ValueError, match=words):
    make_optimizer(10, **numbers)
