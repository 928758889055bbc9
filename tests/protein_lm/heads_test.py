"""Heads: pooled by segment, the same alone and packed, a trunk as any."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from protein_lm import heads, label_objectives, models, train_step, vocab
from protein_lm.batches import LabelledBatch

SIZES = dict(
  emb_dim=16,
  qkv_dim=16,
  mlp_dim=16,
  num_heads=2,
  num_layers=2,
  max_len=16,
  dropout_rate=0.0,
)
CLASSES = ('a', 'b', 'c')


@functools.cache
def regressor(**kwargs):
  return heads.FlaxRegressor(rngs=nnx.Rngs(0), **SIZES, **kwargs)


def test_pooling_is_the_mean_over_a_segment(rng):
  x_BLD = jax.random.normal(rng, (2, 7, 3))
  ids_BL = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
  counted_BL = jnp.array([[0, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1]]) > 0
  found = heads.pooled(x_BLD, counted_BL, ids_BL)
  np.testing.assert_allclose(found[0, 0], x_BLD[0, 1:3].mean(0), rtol=1e-6)
  np.testing.assert_array_equal(found[0, 0], found[0, 2])
  np.testing.assert_array_equal(found[0, 3], 0)
  np.testing.assert_allclose(
    found[1, 4], (x_BLD[1, 0] + x_BLD[1, 6]) / 2, rtol=1e-6
  )


@pytest.mark.slow
@pytest.mark.parametrize('pooling', ['mean', 'token'])
def test_a_protein_gives_the_same_alone_and_packed(pooling):
  one, other = vocab.encode('ACDEF'), vocab.encode('GHI')
  packed = np.full((1, 11), vocab.PAD_ID, np.int32)
  packed[0, :3], packed[0, 3:8] = other, one
  ids = np.array([[1] * 3 + [2] * 5 + [0] * 3])
  model = regressor(head_pooling=pooling)
  alone = model(one[None].astype(np.int32))
  np.testing.assert_allclose(
    model(packed, segment_ids=ids)[0, 3:8], alone[0], atol=1e-5
  )


def test_the_trunk_has_the_parameters_of_a_language_model():
  shapes = {}
  for cls in (models.FlaxLM, heads.FlaxRegressor):
    make = functools.partial(cls, **SIZES)
    _, shapes[cls] = train_step.abstract_model(make)
  lm, head = shapes.values()
  assert head.keys() - lm.keys() == {'head'}
  assert lm.keys() - head.keys() == {'output'}
  del lm['output'], head['head']
  assert jax.tree.map(jnp.shape, lm) == jax.tree.map(jnp.shape, head)


def test_causal_heads_see_no_later_token():
  tokens = np.arange(8, dtype=np.int32)[None]
  model = regressor(head_pooling='token', causal=True)
  changed = tokens.copy()
  changed[0, 5] = 12
  before, after = model(tokens), model(changed)
  np.testing.assert_array_equal(before[0, :5], after[0, :5])
  assert (before[0, 5:] != after[0, 5:]).all()


def labelled_batch():
  tokens = np.arange(8, dtype=np.int32)[None]
  labels = np.full((1, 8), np.nan, np.float32)
  labels[0, [3, 7]] = 1, 2
  weights = np.zeros((1, 8), np.float32)
  weights[0, [3, 7]] = 1, 3
  return LabelledBatch(
    tokens, np.ones_like(tokens), np.arange(8)[None], weights, labels
  )


def test_regression_scores_squared_errors_where_there_are_labels(rng):
  batch, model = labelled_batch(), regressor(head_pooling='token')
  objective = label_objectives.regression_objective()
  scores = objective.train_scores(model, batch, rng)
  output = np.asarray(objective.eval_scores(model, batch)[0, :, 0])
  assert np.isfinite(scores.nll).all()
  np.testing.assert_allclose(scores.nll[0, 3], (output[3] - 1) ** 2, rtol=1e-5)
  np.testing.assert_allclose(scores.nll[0, 7], (output[7] - 2) ** 2, rtol=1e-5)
  np.testing.assert_array_equal(scores.weights, batch.weights)


def test_classification_scores_cross_entropy_of_the_classes(rng):
  batch = labelled_batch()
  model = heads.FlaxClassifier(
    classes=CLASSES, head_pooling='token', rngs=nnx.Rngs(0), **SIZES
  )
  objective = label_objectives.classification_objective()
  scores = objective.train_scores(model, batch, rng)
  logits = objective.eval_scores(model, batch)[0]
  assert logits.shape == (8, 3)
  np.testing.assert_allclose(
    scores.nll[0, 7], -jax.nn.log_softmax(logits[7])[2], rtol=1e-5
  )
  assert scores.correct[0, 7] == (jnp.argmax(logits[7]) == 2)


class _Data:
  def __init__(self, per, classes):
    self.label_table = self
    self.per, self.classes = per, classes


@pytest.mark.parametrize(
  'model, data, message',
  [
    (regressor, _Data('residue', None), "residues need .*pooling = 'token'"),
    (regressor, _Data('protein', CLASSES), 'has the classes None and data.lab'),
  ],
)
def test_a_head_that_does_not_fit_its_labels_is_refused(model, data, message):
  with pytest.raises(ValueError, match=message):
    label_objectives.check(model(), data)


def test_labels_and_models_of_labels_need_each_other():
  lm = models.FlaxLM(rngs=nnx.Rngs(0), **SIZES)
  with pytest.raises(ValueError, match='data.labels are for FlaxRegressor'):
    label_objectives.check(lm, _Data('protein', None))
  without = _Data('protein', None)
  without.label_table = None
  with pytest.raises(ValueError, match='FlaxRegressor needs labels'):
    label_objectives.check(regressor(), without)
  assert label_objectives.check(lm, without) is None


def test_an_unknown_pooling_is_refused():
  with pytest.raises(ValueError, match="must be 'mean' or 'token', got 'max'"):
    regressor(head_pooling='max')
