"""The optimiser: published numbers, decay where it belongs, schedules."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from protein_lm import models, train_step
from protein_lm.optimizer import decay_mask, make_optimizer, make_schedule


def test_weight_decay_leaves_biases_norms_and_positions_alone():
  _, params = train_step.split_model(
    models.FlaxLM(
      emb_dim=8, qkv_dim=8, mlp_dim=8, num_heads=1, rngs=nnx.Rngs(0)
    )
  )
  mask = decay_mask(params)
  assert mask['blocks']['query'] == {'kernel': True, 'bias': False}
  assert mask['blocks']['mlp_norm'] == {'scale': False, 'bias': False}
  assert mask['embed'] == {'embedding': True}
  assert mask['position_table'] is False


def test_adamw_moves_by_the_learning_rate_and_decays_kernels():
  params = {'kernel': jnp.ones(3), 'bias': jnp.ones(3)}
  tx, _ = make_optimizer(10, learning_rate=0.1, warmup_steps=0, epsilon=1e-9)
  zero = {'kernel': jnp.zeros(3), 'bias': jnp.zeros(3)}
  updates, _ = tx.update(zero, tx.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -0.1 * 0.1, rtol=1e-5)
  np.testing.assert_array_equal(updates['bias'], 0)


@pytest.mark.parametrize(
  'name, at_end',
  [('constant', 1.0), ('rsqrt', 0.5), ('cosine', 0.0), ('linear', 0.0)],
)
def test_schedules_rise_to_the_peak_then_follow_their_rule(name, at_end):
  schedule = make_schedule(name, 1.0, 100, 400)
  assert schedule(0) == 0
  assert schedule(50) == pytest.approx(0.5)
  assert schedule(100) == pytest.approx(1.0)
  assert schedule(400) == pytest.approx(at_end, abs=1e-6)


def test_an_unknown_schedule_names_the_known_ones():
  with pytest.raises(ValueError, match="constant, rsqrt, .*, got 'cosin'"):
    make_schedule('cosin', 1.0, 1, 2)


def test_a_negative_number_is_refused():
  with pytest.raises(ValueError, match='learning_rate must be >= 0, got -1'):
    make_optimizer(10, learning_rate=-1.0)
