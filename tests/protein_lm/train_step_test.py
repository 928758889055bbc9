"""One step: it learns, it is pure, and it refuses what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import models, objectives, optimizer, train_step
from protein_lm.data import Batch


def make_step(cls=models.FlaxLM, attention_fn=None, learning_rate=1e-2):
  model = cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=2,
    dropout_rate=0.0,
    max_len=32,
    rngs=nnx.Rngs(0),
  )
  graphdef, params = train_step.split_model(model)
  tx, _ = optimizer.make_optimizer(
    100, learning_rate=learning_rate, warmup_steps=1, schedule='constant'
  )
  objective = objectives.make_objective(cls.objective)
  step = train_step.make_train_step(graphdef, tx, objective)
  return step, train_step.init_state(params, tx)


def make_batch():
  tokens = np.tile(np.arange(4, dtype=np.int32), (2, 8))
  return Batch(
    tokens,
    np.ones_like(tokens),
    np.tile(np.arange(32, dtype=np.int32), (2, 1)),
    np.ones(tokens.shape, np.float32),
  )


SOFTMAX = make_fast_softmax_attention(nb_features=16)
RELU = make_fast_generalized_attention()


@pytest.mark.parametrize(
  'cls, attention_fn',
  [
    (models.FlaxLM, SOFTMAX),
    (models.FlaxBERT, RELU),
    (models.FlaxBERT, None),
    pytest.param(models.FlaxLM, None, marks=pytest.mark.slow),
    pytest.param(models.FlaxLM, RELU, marks=pytest.mark.slow),
    pytest.param(models.FlaxBERT, SOFTMAX, marks=pytest.mark.slow),
  ],
)
def test_a_repeating_sequence_is_learnt(cls, attention_fn, rng):
  step, state = make_step(cls, attention_fn)
  losses = []
  for i in range(40):
    state, sums = step(state, make_batch(), jax.random.fold_in(rng, i))
    losses.append(sums['loss'] / sums['num_tokens'])
  assert losses[0] > 3.0
  assert losses[-1] < 1.6
  assert state.step == 40


def test_the_same_step_twice_is_the_same_bit_for_bit(rng):
  results = []
  for _ in range(2):
    step, state = make_step(attention_fn=make_fast_softmax_attention())
    for _ in range(3):
      state, _ = step(state, make_batch(), rng)
    results.append(state.params)
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(rng):
  step, state = make_step()
  state, _ = step(state, make_batch(), rng)
  before = jax.tree.map(np.array, (state.params, state.opt_state))
  bad = make_batch()
  bad.weights[0, 3] = np.nan
  state, sums = step(state, bad, rng)
  assert sums['skipped_steps'] == 1
  assert sums['loss'] == 0
  assert state.step == 2
  jax.tree.map(
    np.testing.assert_array_equal, (state.params, state.opt_state), before
  )


def test_a_batch_without_counted_tokens_is_no_division_by_zero(rng):
  step, state = make_step()
  batch = make_batch()._replace(weights=np.zeros((2, 32), np.float32))
  state, sums = step(state, batch, rng)
  assert sums['skipped_steps'] == 0
  assert jax.tree.all(
    jax.tree.map(lambda x: jnp.isfinite(x).all(), state.params)
  )
