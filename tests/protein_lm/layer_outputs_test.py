"""Outputs of every layer, against the blocks applied one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import heads, models, vocab
from protein_lm.exact_attention import exact_attention
from protein_lm.layer_outputs import layer_outputs
from protein_lm.models import AttentionStats
from protein_lm.positions import positions_in_segments

FAST = make_fast_softmax_attention(nb_features=8)
ADERF = make_fast_softmax_attention(
  nb_features=8, features_type='centred_aderf', redraw_features=False
)
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 13)).astype(np.int32)
TOKENS[0, 9:] = vocab.PAD_ID


def make_model(cls=models.FlaxLM, attention_fn=None, **options):
  return cls(
    attention_fn=attention_fn,
    emb_dim=8,
    qkv_dim=8,
    mlp_dim=8,
    num_heads=2,
    num_layers=3,
    max_len=16,
    rngs=nnx.Rngs(0),
    **options,
  )


def one_by_one(model, tokens):
  """The inputs of all layers and the last output, without the final norm."""
  segment_ids = (tokens != vocab.PAD_ID).astype(np.int32)
  positions = positions_in_segments(jnp.asarray(segment_ids))
  x_BLD = model.embed_tokens(tokens, positions)
  rotation = model.rotation(positions)
  graphdef, params_N = nnx.split(model.blocks)
  found = [x_BLD]
  for n in range(model.num_layers):
    block = nnx.merge(graphdef, jax.tree.map(lambda a, n=n: a[n], params_N))
    fn = model.attention_fns[n % len(model.attention_fns)]
    x_BLD, _ = block(x_BLD, fn, n, rotation, segment_ids, None, None)
    found.append(x_BLD)
  return found


@jax.jit
def both(model):
  """Of the last layer: what is tested, and the model's own."""
  return layer_outputs(model, TOKENS, (3,))[0], model.hidden(TOKENS)


def test_layers_are_counted_from_the_input():
  model = make_model()
  expected = jax.jit(one_by_one)(model, TOKENS)
  found = jax.jit(lambda model: layer_outputs(model, TOKENS, (2, 0, 1)))(model)
  for x_BLD, n in zip(found, (2, 0, 1), strict=True):
    np.testing.assert_allclose(x_BLD, expected[n], atol=1e-5)


@pytest.mark.parametrize(
  'cls, attention_fn, options',
  [
    (
      models.FlaxLM,
      (FAST, exact_attention()),
      {'position_embedding': 'rotary'},
    ),
    pytest.param(models.FlaxBERT, FAST, {}, marks=pytest.mark.slow),
    pytest.param(
      heads.FlaxRegressor, FAST, {'qk_norm': True}, marks=pytest.mark.slow
    ),
  ],
)
def test_the_last_layer_is_the_hidden_state(cls, attention_fn, options):
  model = make_model(cls, attention_fn, **options)
  found, expected = both(model)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_comes_out_as_float32():
  found, expected = both(make_model(dtype='bfloat16'))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected.astype(np.float32), atol=0.05)


@pytest.mark.slow
def test_statistics_reach_their_layer():
  model = make_model(attention_fn=ADERF)
  stats = model.measure_attention_stats(TOKENS)
  model.attention_stats = AttentionStats(stats)
  np.testing.assert_allclose(*both(model), atol=1e-5)
