"""Attention maps against the definitions, and in their shape."""

import jax
import numpy as np
import pytest
from flax import nnx

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import attention_maps as maps_lib
from protein_lm import loading, models, train_step
from protein_lm.exact_attention import exact_attention

SEQUENCE = 'MKTAYIAKQ'


def make_loaded(cls, attention_fn, scale=3):
  model = cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=2,
    max_len=32,
    rngs=nnx.Rngs(0),
  )
  graphdef, params = train_step.split_model(model)
  params = jax.tree.map(lambda x: scale * x, params)
  return loading.LoadedModel(
    'run', 1, graphdef, params, (), '', {'max_len': 32}, None, {}
  )


def first_layer(loaded, tokens):
  """Queries and keys of layer 0, from its own weights."""
  model = loaded.model
  graphdef, params_N = nnx.split(model.blocks)
  block = nnx.merge(graphdef, jax.tree.map(lambda x: x[0], params_N))
  positions = np.arange(tokens.shape[1])[None]
  x_BLD = model.embed_tokens(tokens, positions)
  return block.project(x_BLD, model.rotation(positions))[:2]


@pytest.mark.parametrize('cls', [models.FlaxLM, models.FlaxBERT])
def test_exact_maps_are_the_softmax_weights(cls):
  loaded = make_loaded(cls, exact_attention())
  maps = maps_lib.attention_maps(loaded, SEQUENCE)
  assert maps.shape == (2, 2, 11, 11)
  tokens = np.array([[25, 10, 8, 16, 0, 19, 7, 0, 8, 13, 26]], np.int32)
  query, key = jax.jit(lambda: first_layer(loaded, tokens))()
  logits = np.einsum('blhk,bshk->hls', query, key) * 8**-0.5
  if cls.causal:
    logits = np.where(np.tri(11, dtype=bool), logits, -np.inf)
  expected = jax.nn.softmax(logits, axis=-1)
  np.testing.assert_allclose(maps[0], expected, atol=1e-5)


@pytest.mark.parametrize(
  'attention_fn',
  [
    make_fast_softmax_attention(nb_features=8),
    pytest.param(
      make_fast_generalized_attention(nb_features=8), marks=pytest.mark.slow
    ),
    pytest.param(
      (exact_attention(), make_fast_softmax_attention(nb_features=8)),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_rows_of_fast_maps_sum_to_one_and_see_no_future(attention_fn):
  loaded = make_loaded(models.FlaxLM, attention_fn)
  maps = maps_lib.attention_maps(loaded, SEQUENCE)
  np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-5)
  assert maps.min() >= 0 and not np.triu(maps, 1).any()


@pytest.mark.slow
def test_more_features_are_nearer_to_exact():
  exact = maps_lib.attention_maps(
    make_loaded(models.FlaxBERT, exact_attention(), scale=1), SEQUENCE
  )
  few, many = (
    maps_lib.attention_maps(
      make_loaded(
        models.FlaxBERT, make_fast_softmax_attention(nb_features=M), scale=1
      ),
      SEQUENCE,
      layers=(0,),
    )
    for M in (4, 4096)
  )
  errors = [np.abs(x[0] - exact[0]).sum() for x in (few, many)]
  assert errors[1] < errors[0] / 2


def test_layers_are_chosen():
  loaded = make_loaded(models.FlaxLM, exact_attention())
  all_maps = maps_lib.attention_maps(loaded, SEQUENCE)
  last = maps_lib.attention_maps(loaded, SEQUENCE, layers=(-1,))
  np.testing.assert_allclose(last, all_maps[1:], atol=1e-6)
  with pytest.raises(ValueError, match='no layer 2: the 2 layers are 0 to 1'):
    maps_lib.attention_maps(loaded, SEQUENCE, layers=(2,))


def test_labels_are_the_tokens():
  assert maps_lib.labels('MKT') == ['<', 'M', 'K', 'T', '>']
