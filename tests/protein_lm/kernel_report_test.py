"""The report on fast attention: a line a layer, and the logits."""

import jax
import numpy as np
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import kernel_report, models
from protein_lm.kernel_error import kernel_errors


@pytest.fixture(scope='module')
def model():
  return models.FlaxLM(
    emb_dim=8,
    qkv_dim=8,
    mlp_dim=8,
    num_layers=2,
    num_heads=2,
    position_embedding='rotary',
    rngs=nnx.Rngs(0),
  )


@pytest.mark.slow
def test_a_layer_has_its_mean_error_and_that_of_equal_weights(model):
  fast = make_fast_softmax_attention(nb_features=8)
  lines = kernel_report.report(model, fast).splitlines()
  errors = jax.jit(
    lambda: kernel_errors(model, kernel_report.tokens(), attention_fn=fast)
  )()
  for n, line in enumerate(lines[1:3]):
    layer, error, uniform = line.split()
    assert int(layer) == n + 1
    assert float(error) == pytest.approx(
      float(errors.error_H[n].mean()), abs=1e-3
    )
    assert float(uniform) == pytest.approx(
      float(errors.uniform_H[n].mean()), abs=1e-3
    )


def test_the_model_keeps_its_attention(model):
  before = model.attention_fns
  fast = make_fast_softmax_attention(nb_features=8)
  other = kernel_report.with_attention(model, fast)
  assert model.attention_fns == before and other.attention_fns == (fast,)


def test_long_proteins_are_cut_to_the_table_of_positions():
  assert kernel_report.tokens(20).shape == (3, 20)
  assert np.all(kernel_report.tokens()[:, 0] == 25)
