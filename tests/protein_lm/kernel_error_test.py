"""The error of random features in a model, layer by layer."""

import jax
import numpy as np
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import models, train_step
from protein_lm.exact_attention import exact_attention
from protein_lm.kernel_error import kernel_errors

TOKENS = np.random.default_rng(0).integers(0, 20, (2, 24)).astype(np.int32)


def make_model(attention_fn, cls=models.FlaxLM, **options):
  return cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=3,
    max_len=32,
    rngs=nnx.Rngs(0),
    **options,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'cls', [models.FlaxLM, pytest.param(models.FlaxBERT, marks=pytest.mark.slow)]
)
def test_more_features_have_less_error_in_every_layer(cls):
  few, many = (
    jax.jit(kernel_errors)(
      make_model(make_fast_softmax_attention(nb_features=M), cls), TOKENS
    )
    for M in (4, 2048)
  )
  assert few.error_H.shape == few.uniform_H.shape == (3, 2)
  assert np.all(few.error_H.mean(axis=1) > 2 * many.error_H.mean(axis=1))
  assert np.all(many.error_H > 0)


@pytest.mark.slow
def test_an_exact_model_is_asked_what_a_swap_would_cost():
  model = make_model(exact_attention())
  own = kernel_errors(model, TOKENS)
  np.testing.assert_array_equal(own.error_H, 0)
  swapped = kernel_errors(
    model,
    TOKENS,
    attention_fn=make_fast_softmax_attention(nb_features=64),
  )
  assert np.all(swapped.error_H > 0)
  np.testing.assert_array_equal(swapped.uniform_H, own.uniform_H)


@pytest.mark.slow
def test_measuring_leaves_the_model_as_it_was():
  model = make_model(make_fast_softmax_attention(nb_features=8))
  before = model(TOKENS)
  fns = model.attention_fns
  kernel_errors(model, TOKENS)
  assert model.attention_fns == fns
  assert model.scan_layers
  np.testing.assert_array_equal(model(TOKENS), before)


@pytest.mark.slow
def test_statistics_and_hybrids():
  aderf = make_fast_softmax_attention(
    nb_features=16, features_type='centred_aderf'
  )
  model = make_model((aderf, exact_attention(), aderf))
  graphdef, params = train_step.split_model(model)
  stats = model.measure_attention_stats(TOKENS)
  model = train_step.merge_model(graphdef, train_step.Weights(params, stats))
  errors = kernel_errors(model, TOKENS).error_H
  np.testing.assert_array_equal(errors[1], 0)
  assert np.all(errors[::2] > 0)
