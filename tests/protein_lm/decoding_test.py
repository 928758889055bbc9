"""Decoding: a prompt and steps give the logits of the full pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import decoding, models, train_step, vocab
from protein_lm.exact_attention import exact_attention

SOFTMAX = make_fast_softmax_attention(nb_features=16)
GENERALIZED = make_fast_generalized_attention()
HYBRID = (SOFTMAX, exact_attention(), GENERALIZED)
MODERN = {
  'position_embedding': 'rotary',
  'norm': 'rmsnorm',
  'mlp': 'swiglu',
  'tie_embeddings': True,
  'qk_norm': True,
}
LEARNED = {'position_embedding': 'learned'}
SINUSOIDAL = {'position_embedding': 'sinusoidal'}


def make(attention_fn, num_layers=2, max_len=40, cls=models.FlaxLM, **options):
  return cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=24,
    num_heads=2,
    num_layers=num_layers,
    max_len=max_len,
    **options,
    rngs=nnx.Rngs(0),
  )


def random_tokens(length, batch_size=2):
  """Rows that begin with the same 7 tokens."""
  rng = np.random.default_rng(0)
  tokens_BL = rng.integers(0, 20, (batch_size, length)).astype(np.int32)
  tokens_BL[:, 0] = vocab.BOS_ID
  tokens_BL[:, :7] = tokens_BL[0, :7]
  return tokens_BL


def decode(model, tokens_BL, num_prompt, stats=()):
  """Logits of the tokens from num_prompt - 1 on."""
  graphdef, params = train_step.split_model(model)
  weights = train_step.Weights(params, stats)
  layers = decoding.split_layers(graphdef, weights)
  batch_size, length = tokens_BL.shape
  prompt_L = tokens_BL[0, :num_prompt]
  states = decoding.start(
    model, graphdef, weights, layers, prompt_L, batch_size, length
  )

  @jax.jit
  def run(weights, layers, states, tokens_LB):
    model = train_step.merge_model(graphdef, weights)

    def body(states, inputs):
      logits_BV, states = decoding.step(model, layers, *inputs, states)
      return states, logits_BV

    positions = jnp.arange(num_prompt - 1, length)
    return jax.lax.scan(body, states, (tokens_LB, positions))[1]

  logits_LBV = run(weights, layers, states, tokens_BL[:, num_prompt - 1 :].T)
  return logits_LBV.swapaxes(0, 1)


def check(model, length, num_prompt, stats=(), atol=1e-4):
  tokens_BL = random_tokens(length)
  full_BLV = jax.jit(functools.partial(model, stats=stats or None))(tokens_BL)
  decoded_BLV = decode(model, tokens_BL, num_prompt, stats)
  expected_BLV = full_BLV[:, num_prompt - 1 :]
  np.testing.assert_allclose(decoded_BLV, expected_BLV, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
  'attention_fn, options',
  [(SOFTMAX, LEARNED), (GENERALIZED, SINUSOIDAL), (exact_attention(), MODERN)],
  ids=['softmax', 'generalized', 'exact'],
)
def test_steps_equal_the_full_pass(attention_fn, options):
  check(make(attention_fn, **options), length=11, num_prompt=1)


def test_a_prompt_and_steps_equal_the_full_pass():
  check(make(HYBRID, 3, **MODERN), length=11, num_prompt=7)


@pytest.mark.slow
@pytest.mark.parametrize(
  'options, num_prompt',
  [(LEARNED, 1), (SINUSOIDAL, 2), (MODERN, 7), ({'lora_rank': 2}, 7)],
  ids=['learned', 'sinusoidal', 'modern', 'lora'],
)
@pytest.mark.parametrize(
  'attention_fn',
  [SOFTMAX, GENERALIZED, exact_attention(), HYBRID],
  ids=['softmax', 'generalized', 'exact', 'hybrid'],
)
def test_hundreds_of_steps_equal_the_full_pass(
  attention_fn, options, num_prompt
):
  model = make(attention_fn, 3, max_len=400, **options)
  check(model, length=387, num_prompt=num_prompt)


@pytest.mark.slow
@pytest.mark.parametrize('attention_fn', [SOFTMAX, exact_attention()])
def test_steps_in_half_precision_are_near_the_full_pass(attention_fn):
  check(make(attention_fn, dtype='bfloat16'), 30, 7, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize('features_type', ['favor_plus_plus', 'aderf'])
def test_features_with_statistics_decode(features_type):
  attention_fn = make_fast_softmax_attention(
    nb_features=16, features_type=features_type
  )
  model = make(attention_fn, **MODERN)
  stats = model.measure_attention_stats(random_tokens(30))
  check(model, 30, 7, stats)


def test_a_cache_has_room_for_all_lengths_nearby():
  assert [decoding.room_for(n) for n in (1, 64, 65)] == [64, 64, 128]


def test_prompts_of_like_length_share_a_bucket():
  lengths = [decoding.bucket_of(n, most=100) for n in (1, 32, 33, 64, 65)]
  assert lengths == [32, 32, 64, 64, 100]


def test_a_masked_model_is_refused():
  model = make(SOFTMAX, cls=models.FlaxBERT)
  with pytest.raises(ValueError, match='FlaxBERT does not write'):
    decoding.check(model)


def test_an_attention_without_a_state_is_refused():
  def attend(query, key, value, **kwargs):
    return value

  with pytest.raises(ValueError, match='function has no state to decode with'):
    decoding.check(make(attend))
