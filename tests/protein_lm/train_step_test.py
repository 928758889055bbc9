"""One step: it learns, it is pure, and parts of a batch are the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import (
  block,
  checkpoint,
  microbatches,
  models,
  objectives,
  optimizer,
  train_step,
)
from protein_lm.data import Batch


def make_model(cls=models.FlaxLM, attention_fn=None, dtype='float32'):
  return cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=2,
    dropout_rate=0.0,
    max_len=32,
    dtype=dtype,
    rngs=nnx.Rngs(0),
  )


@functools.cache
def build(cls, attention_fn, learning_rate, trainable, options):
  """(graphdef, params, tx, step), the step compiled once for all tests."""
  graphdef, params = train_step.split_model(make_model(cls, attention_fn))
  tx, _ = optimizer.make_optimizer(
    100,
    learning_rate=learning_rate,
    warmup_steps=1,
    schedule='constant',
    trainable=trainable,
  )
  objective = objectives.make_objective(cls.objective)
  step = train_step.make_train_step(graphdef, tx, objective, **dict(options))
  return graphdef, jax.tree.map(np.array, params), tx, step


def make_step(
  cls=models.FlaxLM,
  attention_fn=None,
  learning_rate=1e-2,
  trainable=None,
  **options,
):
  graphdef, params, tx, step = build(
    cls, attention_fn, learning_rate, trainable, tuple(options.items())
  )
  params = jax.tree.map(jnp.array, params)
  return step, train_step.init_state(
    params, tx, graphdef, options.get('ema_decay')
  )


def make_batch():
  tokens = np.tile(np.arange(4, dtype=np.int32), (2, 8))
  return Batch(
    tokens,
    np.ones_like(tokens),
    np.tile(np.arange(32, dtype=np.int32), (2, 1)),
    np.ones(tokens.shape, np.float32),
  )


def make_mesh(**axes):
  kinds = (jax.sharding.AxisType.Auto,) * len(axes)
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds)


def make_uneven_batch(num_rows=8):
  """Packed rows, each with less padding and more that counts."""
  generator = np.random.default_rng(0)
  shape = (num_rows, 32)
  tokens = generator.integers(0, 20, shape).astype(np.int32)
  segment_ids = np.repeat([[1, 2]], [12, 20], axis=1).repeat(num_rows, 0)
  for row in range(num_rows - 1):
    segment_ids[row, 14 + 5 * row :] = 0
  tokens[segment_ids == 0] = models.vocab.PAD_ID
  positions = np.r_[:12, :20][None].repeat(num_rows, 0)
  weights = (segment_ids > 0) * (generator.uniform(size=shape) < 0.7)
  return Batch(
    tokens,
    segment_ids.astype(np.int32),
    np.where(segment_ids > 0, positions, 0).astype(np.int32),
    weights.astype(np.float32),
  )


SOFTMAX = make_fast_softmax_attention(nb_features=16)
RELU = make_fast_generalized_attention()


@pytest.mark.parametrize(
  'cls, attention_fn',
  [
    pytest.param(models.FlaxLM, SOFTMAX, marks=pytest.mark.slow),
    pytest.param(models.FlaxBERT, RELU, marks=pytest.mark.slow),
    pytest.param(models.FlaxBERT, None, marks=pytest.mark.slow),
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


@pytest.mark.slow
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


def test_a_batch_without_counted_tokens_is_skipped(rng):
  step, state = make_step()
  before = jax.tree.map(np.array, (state.params, state.opt_state))
  batch = make_batch()._replace(weights=np.zeros((2, 32), np.float32))
  state, sums = step(state, batch, rng)
  assert sums['skipped_steps'] == 1
  assert sums['nonfinite_steps'] == sums['spiked_steps'] == 0
  jax.tree.map(
    np.testing.assert_array_equal, (state.params, state.opt_state), before
  )


def test_batches_of_a_shape_share_one_program_and_the_state_is_donated(rng):
  step, state = make_step()
  for batch in (make_batch(), make_batch()._replace(weights=np.ones((2, 32)))):
    before = state
    batch = batch._replace(weights=batch.weights.astype(np.float32))
    state, _ = step(state, batch, rng)
    assert all(x.is_deleted() for x in jax.tree.leaves(before))
  assert step._cache_size() == 1
  memory = step.lower(state, make_batch(), rng).compile().memory_analysis()
  num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
  assert memory.alias_size_in_bytes >= num_bytes


# Parts of a batch.

EXACT_BERT = (models.FlaxBERT, None)
REDRAWN_LM = (models.FlaxLM, SOFTMAX)


@pytest.mark.parametrize(
  'cls, attention_fn',
  [REDRAWN_LM, pytest.param(*EXACT_BERT, marks=pytest.mark.slow)],
  ids=['causal', 'masked'],
)
def test_parts_of_a_batch_give_the_step_of_the_whole(cls, attention_fn, rng):
  """Counts differ from part to part; masks and features do not."""
  results = []
  for n in (1, 2):
    step, state = make_step(cls, attention_fn, num_microbatches=n)
    results.append(step(state, make_uneven_batch(), rng))
  (state_1, sums_1), (state_2, sums_2) = results
  assert sums_1['num_tokens'] > 10
  for name, value in sums_1.items():
    assert float(sums_2[name]) == pytest.approx(float(value), rel=1e-5), name
  moments_1, moments_2 = (s.opt_state[0].mu for s in (state_1, state_2))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
    moments_1,
    moments_2,
  )


def test_each_part_draws_its_dropout_and_none_its_features(rng):
  graphdef, params = train_step.split_model(make_model(attention_fn=SOFTMAX))
  batch = make_uneven_batch()

  @functools.partial(jax.jit, static_argnums=0)
  def logits(dropout_rate, i):
    model = train_step.merge_model(graphdef, params)
    model.dropout_rate = model.blocks.dropout_rate = dropout_rate
    rngs = block.StepRng(rng, block.microbatch_rng(rng, i))
    return model(batch.tokens, rng=rngs, deterministic=False)

  np.testing.assert_array_equal(logits(0.0, 0), logits(0.0, 1))
  assert np.any(logits(0.5, 0) != logits(0.5, 1))


@pytest.mark.parametrize(
  'num_rows, n, words',
  [
    (6, 4, 'num_microbatches=4 must divide the 6 rows'),
    (16, 4, 'leaves 4 rows of 16 for the 8 devices'),
  ],
)
def test_rows_that_cannot_be_parted_are_refused(num_rows, n, words):
  mesh = make_mesh(data=4, fsdp=2)
  with jax.set_mesh(mesh), pytest.raises(ValueError, match=words):
    microbatches.split(jnp.zeros((num_rows, 3)), n)


def test_parts_have_rows_of_every_device_so_that_none_moves():
  mesh = make_mesh(data=8)
  rows = NamedSharding(mesh, PartitionSpec('data'))
  x_BL = jax.device_put(np.arange(32.0).reshape(32, 1), rows)
  with jax.set_mesh(mesh):
    split = jax.jit(lambda x: microbatches.split(x, 2) + 0)
    text = split.lower(x_BL).compile().as_text()
    parts = split(x_BL)
  assert not [x for x in ('all-', 'permute', 'gather') if x in text]
  assert parts.sharding.spec[:2] == (None, 'data')
  np.testing.assert_array_equal(parts[0, :, 0], np.arange(0, 32, 2))


@pytest.mark.slow
def test_parts_on_eight_devices_give_the_step_of_one(rng):
  results = []
  for devices in (1, 8):
    step, state = make_step(*REDRAWN_LM, num_microbatches=2)
    mesh = make_mesh(data=devices)
    with jax.set_mesh(mesh):
      state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
      rows = NamedSharding(mesh, PartitionSpec('data'))
      batch = jax.device_put(make_uneven_batch(16), rows)
      results.append(step(state, batch, rng)[1])
  for name, value in results[0].items():
    assert float(results[1][name]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize('n', [0, -1])
def test_no_parts_are_refused(n):
  with pytest.raises(ValueError, match=f'must be at least 1, got {n}'):
    make_step(num_microbatches=n)


# What a step reports.


@pytest.mark.slow
def test_norms_and_work_are_what_they_say(rng):
  step, state = make_step(*REDRAWN_LM, num_microbatches=1)
  before = jax.tree.map(np.array, state.params)
  batch = make_uneven_batch()
  for _ in range(2):  # the first has a learning rate of 0
    old = jax.tree.map(np.array, state.params)
    state, sums = step(state, batch, rng)
  change = jax.tree.map(jnp.subtract, state.params, old)
  for name, tree in (('param_norm', state.params), ('update_norm', change)):
    assert float(sums[name]) == pytest.approx(
      float(optax.tree.norm(tree)), rel=1e-4
    )
  graphdef, _ = train_step.split_model(make_model(*REDRAWN_LM))

  def mean_loss(params):
    model = train_step.merge_model(graphdef, params)
    scores = objectives.CausalObjective().train_scores(model, batch, rng)
    return jnp.sum(scores.nll * scores.weights) / jnp.sum(scores.weights)

  grads = jax.jit(jax.grad(mean_loss))(before)
  assert float(sums['grad_norm']) == pytest.approx(
    float(optax.tree.norm(grads)), rel=1e-4
  )
  is_protein = batch.segment_ids > 0
  assert sums['num_unpadded'] == is_protein.sum()
  assert sums['sum_positions'] == batch.positions[is_protein].sum()


def test_only_what_is_trainable_has_a_gradient_and_moves(rng):
  whole, state = make_step(learning_rate=1e-2)
  _, all_sums = whole(state, make_batch(), rng)
  step, state = make_step(trainable=('blocks/query/*',))
  before = jax.tree.map(np.array, state.params)
  for _ in range(2):
    state, sums = step(state, make_batch(), rng)
  after = jax.tree.map(np.array, state.params)
  assert np.any(
    before['blocks'].pop('query')['kernel']
    != after['blocks'].pop('query')['kernel']
  )
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert 0 < sums['grad_norm'] < 0.5 * all_sums['grad_norm']


def test_bfloat16_computes_with_float32_masters_moments_and_gradients(rng):
  graphdef, params = train_step.split_model(make_model(dtype='bfloat16'))
  tx, _ = optimizer.make_optimizer(10)
  seen = set()

  def update(grads, state, params):
    seen.update(x.dtype.name for x in jax.tree.leaves(grads))
    return tx.update(grads, state, params)

  step = train_step.make_train_step(
    graphdef,
    optax.GradientTransformation(tx.init, update),
    objectives.CausalObjective(),
    num_microbatches=2,
  )
  state = jax.eval_shape(lambda: train_step.init_state(params, tx))
  after, sums = jax.eval_shape(step, state, make_batch(), rng)
  assert seen == {'float32'}
  assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(
    lambda x: x.dtype, state
  )
  assert {x.dtype.name for x in jax.tree.leaves(sums)} == {'float32'}
  jaxpr = str(jax.make_jaxpr(step)(state, make_batch(), rng))
  assert 'bf16[' in jaxpr


# Averaged parameters.


def test_the_average_follows_the_parameters_and_is_what_is_evaluated(
  rng, tmp_path
):
  step, state = make_step(ema_decay=0.2)
  expected = np.array(state.params['output']['kernel'])
  assert np.all(
    train_step.weights_of(state).params['output']['kernel'] == expected
  )
  for decay in (0.1, 2 / 11, 0.2):  # (1 + t) / (10 + t), then 0.2
    state, _ = step(state, make_batch(), rng)
    kernel = np.array(state.params['output']['kernel'])
    expected = decay * expected + (1 - decay) * kernel
  found = train_step.weights_of(state).params
  np.testing.assert_allclose(
    found['output']['kernel'], expected, rtol=1e-5, atol=1e-7
  )
  assert np.any(found['output']['kernel'] != kernel)
  checkpoint.save(tmp_path, 3, state, config='', metadata={})
  stored, _ = checkpoint.restore_params(tmp_path, found, 3, 'ema_params')
  jax.tree.map(np.testing.assert_array_equal, stored, found)


def test_without_an_average_the_parameters_are_evaluated():
  _, state = make_step()
  assert train_step.weights_of(state).params is state.params


def test_a_decay_of_one_is_refused():
  with pytest.raises(ValueError, match=r'within \[0, 1\) or None, got 1.0'):
    make_step(ema_decay=1.0)
