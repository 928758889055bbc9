"""Batches that would ruin a run: skipped, counted, and the same on replay.

The objective here multiplies the loss by a number hidden in the weights, so a
batch of weights 100 has a hundredfold loss and gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import checkpoint, models, objectives, optimizer, train_step
from protein_lm.data import Batch

NUM_STEPS = 16
FAULTS = {11: np.nan, 12: 100.0, 14: 1e30}  # what the loss is multiplied by
EMA_DECAY = 0.9


@dataclasses.dataclass(frozen=True)
class FaultyObjective(objectives.CausalObjective):
  def train_scores(self, model, batch, rng):
    scores = super().train_scores(model, batch, rng)
    factor = jnp.max(batch.weights)
    return scores._replace(
      nll=scores.nll * factor, weights=scores.weights / factor
    )


def make_batch(step, factor=1.0):
  generator = np.random.default_rng(step)
  shape = (4, 24)
  return Batch(
    generator.integers(0, 6, shape).astype(np.int32),
    np.repeat([1, 2, 0], [10, 9, 5])[None].repeat(4, 0).astype(np.int32),
    np.r_[:10, :9, [0] * 5][None].repeat(4, 0).astype(np.int32),
    np.full(shape, factor, np.float32),
  )


def batch_of(step):
  return make_batch(step, FAULTS.get(step, 1.0))


def make_step():
  """Everything that a state can hold is in it."""
  model = models.FlaxLM(
    attention_fn=make_fast_softmax_attention(
      nb_features=8, features_type='centred_aderf'
    ),
    emb_dim=8,
    qkv_dim=8,
    mlp_dim=8,
    num_heads=1,
    num_layers=2,
    dropout_rate=0.1,
    max_len=24,
    rngs=nnx.Rngs(0),
  )
  graphdef, params = train_step.split_model(model)
  tx, _ = optimizer.make_optimizer(
    NUM_STEPS, warmup_steps=4, schedule='cosine', grad_clip_norm=1.0
  )
  step = train_step.make_train_step(
    graphdef, tx, FaultyObjective(), 0.9, EMA_DECAY, num_microbatches=2
  )
  return step, train_step.init_state(params, tx, graphdef, EMA_DECAY)


def take(step, state, first, last):
  """The state and the sums of steps first .. last - 1."""
  sums = []
  for i in range(first, last):
    rng = jax.random.fold_in(jax.random.key(1), i)
    state, one = step(state, batch_of(i), rng)
    sums.append({name: float(x) for name, x in one.items()})
  return state, sums


def host(state):
  return jax.tree.map(np.array, state)


@pytest.fixture(scope='module')
def run():
  """(step function, the states before each step and after all, their sums)."""
  step, state = make_step()
  states, sums = [host(state)], []
  for i in range(NUM_STEPS):
    state, one = take(step, state, i, i + 1)
    states.append(host(state))
    sums += one
  return step, states, sums


@pytest.mark.parametrize('i', FAULTS)
def test_a_bad_step_changes_nothing_but_its_number(i, run):
  _, states, _ = run
  assert states[i + 1].step == i + 1
  before = states[i]._replace(step=i + 1)
  assert all(x != () for x in before)
  jax.tree.map(np.testing.assert_array_equal, before, states[i + 1])


def test_the_steps_between_are_taken(run):
  _, states, _ = run
  assert states[-1].spike_stats.num_steps == NUM_STEPS - len(FAULTS)
  for i in set(range(1, NUM_STEPS)) - FAULTS.keys():  # 0: no learning rate
    before, after = (s.params['embed']['embedding'] for s in states[i : i + 2])
    assert np.any(before != after)


@pytest.mark.parametrize(
  'i, reason',
  [(11, 'nonfinite_steps'), (12, 'spiked_steps'), (14, 'nonfinite_steps')],
)
def test_a_bad_step_is_counted_by_its_reason(i, reason, run):
  sums = run[2][i]
  reasons = {'nonfinite_steps': 0, 'spiked_steps': 0, reason: 1}
  assert {name: sums[name] for name in reasons} == reasons
  assert sums['skipped_steps'] == 1
  for name in ('loss', 'num_tokens', 'grad_norm', 'update_norm', 'param_norm'):
    assert sums[name] == 0
  assert sums['num_unpadded'] == 4 * 19


def test_a_good_step_is_counted_as_none_of_them(run):
  for name in ('skipped_steps', 'nonfinite_steps', 'spiked_steps'):
    assert [i for i, sums in enumerate(run[2]) if sums[name]] == [
      i
      for i in FAULTS
      if name == 'skipped_steps' or (name == 'spiked_steps') == (i == 12)
    ]


def test_no_number_of_bad_steps_in_a_row_is_applied(run):
  step, states, _ = run
  state = jax.tree.map(jnp.array, states[5])
  for i in range(12):
    state, sums = step(state, make_batch(i, np.nan), jax.random.key(i))
    assert sums['nonfinite_steps'] == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, states[5].params)


@pytest.mark.parametrize('name', ['embed', 'output'])
def test_parameters_that_overflow_do_not_spread(name, run):
  step, states, _ = run
  state = jax.tree.map(jnp.array, states[5])
  state.params[name] = jax.tree.map(lambda x: x * 1e38, state.params[name])
  before = host(state.params)
  state, sums = step(state, make_batch(5), jax.random.key(5))
  assert sums['skipped_steps'] == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, before)


@pytest.mark.slow
def test_resuming_at_any_step_ends_the_same_bit_for_bit(run, tmp_path):
  """Faults, schedule, redraw, dropout, accumulation and average included."""
  step, states, sums = run
  for k in range(NUM_STEPS):
    state = jax.tree.map(jnp.array, states[k])
    checkpoint.save(tmp_path / str(k), k, state, config='', metadata={})
    state, _ = checkpoint.restore(
      tmp_path / str(k), jax.eval_shape(lambda s: s, state)
    )
    # Two steps say the same as all: what follows is known to be equal.
    last = min(k + 2, NUM_STEPS)
    state, again = take(step, state, k, last)
    assert again == sums[k:last]
    jax.tree.map(np.testing.assert_array_equal, state, states[last])


def test_a_step_is_compiled_once(run):
  assert run[0]._cache_size() == 1
