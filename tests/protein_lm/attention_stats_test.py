"""Statistics of queries and keys: measured in training, kept, never leaking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import lower_variance, make_fast_softmax_attention
from protein_lm import checkpoint, models, objectives, optimizer, train_step
from protein_lm.data import Batch

ADERF = make_fast_softmax_attention(
  nb_features=16, features_type='centred_aderf', redraw_features=False
)
POSITIVE = make_fast_softmax_attention(nb_features=16)


def make_model(attention_fn=ADERF, num_layers=2, **options):
  return models.FlaxLM(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=num_layers,
    dropout_rate=0.0,
    max_len=32,
    rngs=nnx.Rngs(0),
    **options,
  )


def make_state(model):
  graphdef, params = train_step.split_model(model)
  tx, _ = optimizer.make_optimizer(100, learning_rate=1e-2, warmup_steps=1)
  step = train_step.make_train_step(
    graphdef, tx, objectives.make_objective('causal'), 0.5
  )
  return step, train_step.init_state(params, tx, graphdef)


@pytest.fixture
def batch():
  tokens = np.random.default_rng(0).integers(0, 20, (2, 32)).astype(np.int32)
  return Batch(
    tokens,
    np.ones_like(tokens),
    np.tile(np.arange(32, dtype=np.int32), (2, 1)),
    np.ones(tokens.shape, np.float32),
  )


def assert_trees_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b
  )


@pytest.mark.parametrize(
  'options',
  [
    {},
    pytest.param({'scan_layers': False}, marks=pytest.mark.slow),
    pytest.param({'remat': True}, marks=pytest.mark.slow),
  ],
  ids=['scan', 'unrolled', 'remat'],
)
@pytest.mark.slow
def test_a_step_averages_what_its_batch_measures(options, batch, rng):
  model = make_model(**options)
  measured = jax.jit(models.FlaxLM.measure_attention_stats)(model, batch.tokens)
  step, state = make_state(model)
  state, _ = step(state, batch, rng)
  expected = jax.tree.map(lambda x: 0.5 * x, measured)
  assert_trees_close(state.attention_stats, expected)
  assert state.attention_stats.query_mean_JK.shape == (2, 2, 8)


@pytest.mark.slow
def test_a_step_uses_the_statistics_of_earlier_steps_alone(batch, rng):
  """The loss of a batch does not depend on that batch's statistics."""
  step, state = make_state(make_model())
  state, _ = step(state, batch, rng)
  graphdef, _ = train_step.split_model(make_model())
  weights = train_step.weights_of(state)
  scores = objectives.make_objective('causal').eval_scores(
    train_step.merge_model(graphdef, weights), batch
  )
  expected = float(objectives.sums(scores, batch.tokens)['loss'])
  _, sums = step(state, batch, rng)
  assert float(sums['loss']) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_later_tokens_leave_earlier_logits_bit_equal(batch, rng):
  step, state = make_state(make_model())
  state, _ = step(state, batch, rng)
  graphdef, _ = train_step.split_model(make_model())
  model = train_step.merge_model(graphdef, train_step.weights_of(state))
  changed = batch.tokens.copy()
  changed[:, 20:] = (changed[:, 20:] + 3) % 20
  call = jax.jit(lambda tokens: model(tokens))
  before, after = call(batch.tokens), call(changed)
  np.testing.assert_array_equal(before[:, :20], after[:, :20])
  assert np.any(before[:, 20:] != after[:, 20:])


def test_a_step_without_a_finite_gradient_keeps_the_statistics(batch, rng):
  step, state = make_state(make_model())
  state, _ = step(state, batch, rng)
  before = jax.tree.map(np.array, state.attention_stats)
  weights = np.full_like(batch.weights, np.nan)
  state, sums = step(state, batch._replace(weights=weights), rng)
  assert sums['skipped_steps'] == 1
  jax.tree.map(np.testing.assert_array_equal, before, state.attention_stats)


def test_a_model_of_other_features_keeps_none():
  model = make_model(POSITIVE)
  assert not model.needs_attention_stats
  assert make_state(model)[1].attention_stats == ()


@pytest.mark.slow
def test_hybrids_pass_statistics_to_those_that_need_them(batch, rng):
  step, state = make_state(make_model((ADERF, POSITIVE), num_layers=3))
  state, sums = step(state, batch, rng)
  assert np.isfinite(sums['loss'])
  assert np.all(state.attention_stats.weight_J == 0.5)


def test_padding_is_not_measured(batch):
  tokens = batch.tokens.copy()
  model = make_model()
  measure = jax.jit(models.FlaxLM.measure_attention_stats)
  expected = measure(model, tokens[:, :24])
  tokens[:, 24:] = models.vocab.PAD_ID
  assert_trees_close(measure(model, tokens), expected)


@pytest.mark.slow
def test_checkpoints_keep_them_and_an_attention_may_be_swapped(
  batch, rng, tmp_path, caplog
):
  step, state = make_state(make_model())
  state, _ = step(state, batch, rng)
  save = dict(config='', metadata={})
  checkpoint.save(tmp_path / 'a', 1, state, **save)
  restored, _ = checkpoint.restore(tmp_path / 'a', state)
  jax.tree.map(
    np.testing.assert_array_equal,
    restored.attention_stats,
    state.attention_stats,
  )
  assert checkpoint.has_attention_stats(tmp_path / 'a', 1)
  # To an attention that needs none, and from it.
  _, other = make_state(make_model(POSITIVE))
  restored, _ = checkpoint.restore(tmp_path / 'a', other)
  assert restored.attention_stats == ()
  checkpoint.save(tmp_path / 'b', 1, other, **save)
  assert not checkpoint.has_attention_stats(tmp_path / 'b', 1)
  restored, _ = checkpoint.restore(tmp_path / 'b', state)
  assert jnp.all(restored.attention_stats.weight_J == 0)
  assert lower_variance.corrected(restored.attention_stats)
