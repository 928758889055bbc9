"""Frozen layers stay bit for bit, decay and clipping included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protein_lm.frozen_layers import freeze_layers


def make_params():
  return {
    'embed': {'embedding': jnp.full((5, 2), 0.3)},
    'position_table': jnp.full((4, 2), 0.3),
    'blocks': {
      'mlp_in': {'kernel': jnp.full((3, 2, 4), 0.3), 'bias': jnp.ones((3, 4))}
    },
    'output': {'kernel': jnp.full((2, 5), 0.3)},
  }


@functools.partial(jax.jit, static_argnums=0)
def three_steps(num_frozen, params):
  tx = freeze_layers(
    optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.5)
    ),
    num_frozen,
  )
  state = tx.init(params)
  for _ in range(3):
    grads = jax.tree.map(lambda x: jnp.full_like(x, 7.0), params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_the_first_layers_and_what_feeds_them_stay_bit_for_bit():
  before = make_params()
  after = three_steps(2, before)
  for name in ('embed', 'position_table'):
    jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
  for leaf in ('kernel', 'bias'):
    old, new = (x['blocks']['mlp_in'][leaf] for x in (before, after))
    np.testing.assert_array_equal(new[:2], old[:2])
    assert (new[2] != old[2]).all()
  assert (after['output']['kernel'] != before['output']['kernel']).all()


def test_frozen_gradients_count_in_no_clipping():
  tx = freeze_layers(optax.clip_by_global_norm(1.0), 2)
  grads = jax.tree.map(jnp.zeros_like, make_params())
  grads['blocks']['mlp_in']['bias'] = jnp.zeros((3, 4)).at[:2].set(100.0)
  grads['output']['kernel'] = jnp.full((2, 5), 0.1)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_array_equal(
    updates['output']['kernel'], grads['output']['kernel']
  )


def test_no_frozen_layer_is_the_transformation_itself():
  tx = optax.sgd(0.1)
  assert freeze_layers(tx, 0) is tx


def test_numbers_that_train_nothing_are_refused():
  with pytest.raises(ValueError, match='must be at least 0, got -1'):
    freeze_layers(optax.sgd(0.1), -1)
  with pytest.raises(ValueError, match='= 3 leaves none of 3 layers'):
    freeze_layers(optax.sgd(0.1), 3).init(make_params())
