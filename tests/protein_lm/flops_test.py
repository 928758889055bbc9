"""Operations of a step against counts by hand and by XLA; speeds of devices.

Letters: N layers, D model width, F MLP width, V vocabulary, H heads, K head
width, M features, C chunk.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
  tables,
)
from protein_lm import flops, vocab
from protein_lm import train_step as steps
from protein_lm.exact_attention import exact_attention
from protein_lm.models import FlaxBERT, FlaxLM

N, D, F, H, K, M = 3, 12, 20, 2, 4, 8
V = vocab.SIZE
BLOCK = 4 * D * H * K + 2 * D * F
# Segments of 5 and 3 tokens.
TOKENS, POSITIONS, PAIRS = 8, 10 + 3, 25 + 9


def abstract(model_cls=FlaxLM, **kwargs):
  """A model without weights."""
  shape = {'emb_dim': D, 'qkv_dim': H * K, 'mlp_dim': F}
  shape |= {'num_layers': N, 'num_heads': H}
  graphdef, params = steps.abstract_model(
    lambda rngs: model_cls(**(shape | kwargs), rngs=rngs)
  )
  return nnx.merge(graphdef, nnx.State(params))


def step_flops(model_cls=FlaxLM, **kwargs):
  return flops.of_step(abstract(model_cls, **kwargs), TOKENS, POSITIONS)


def causal_features(width, rows):
  """Of one head and token."""
  inside = 2 * tables.sweep_chunk() * (4 * width + 3 * K + 3)
  return 14 * width * (K + 1) + 8 * rows * K + inside


WEIGHTS = 6 * (N * BLOCK + D * V) * TOKENS


def test_exact_causal():
  assert step_flops() == WEIGHTS + 7 * K * N * H * PAIRS


def test_exact_bidirectional():
  assert step_flops(FlaxBERT) == WEIGHTS + 14 * K * N * H * PAIRS


@pytest.mark.parametrize(
  'attention_fn, width, rows',
  [
    (make_fast_softmax_attention(nb_features=M), M, M),
    (
      make_fast_softmax_attention(nb_features=M, nonnegative_features=False),
      2 * M,
      M,
    ),
    (
      make_fast_softmax_attention(nb_features=M, features_type='hyperbolic'),
      2 * M,
      2 * M,
    ),
    (make_fast_generalized_attention(nb_features=M), K, 0),
    (
      make_fast_generalized_attention(nb_features=M, features_type='iid'),
      M,
      M,
    ),
  ],
)
def test_fast_causal(attention_fn, width, rows):
  attention = N * H * causal_features(width, rows) * TOKENS
  assert step_flops(attention_fn=attention_fn) == WEIGHTS + attention


def test_fast_bidirectional():
  attention_fn = make_fast_softmax_attention(nb_features=M)
  attention = N * H * (12 * M * (K + 1) + 8 * M * K) * TOKENS
  assert step_flops(FlaxBERT, attention_fn=attention_fn) == WEIGHTS + attention


def test_hybrid_repeats_its_pattern():
  fast = make_fast_softmax_attention(nb_features=M)
  attention = H * 2 * 7 * K * PAIRS + H * causal_features(M, M) * TOKENS
  hybrid = (exact_attention(), fast)
  assert step_flops(attention_fn=hybrid) == WEIGHTS + attention


def test_gate_of_swiglu_is_counted():
  extra = step_flops(mlp='swiglu') - step_flops()
  assert extra == 6 * N * D * F * TOKENS


def test_tied_output_is_counted_once():
  assert step_flops(tie_embeddings=True) == step_flops()


@pytest.mark.parametrize('how', [{'remat': True}, {'scan_layers': False}])
def test_how_it_runs_changes_nothing(how):
  assert step_flops(**how) == step_flops()


def test_grows_with_the_sums():
  model = abstract()
  one = flops.of_step(model, TOKENS, POSITIONS)
  assert flops.of_step(model, 3 * TOKENS, 3 * POSITIONS) == pytest.approx(
    3 * one
  )


def test_weights_agree_with_xla():
  """A forward pass without attention: two operations a weight and token."""
  shape = {'emb_dim': 128, 'qkv_dim': 128, 'mlp_dim': 512, 'num_layers': 1}
  model = abstract(attention_fn=lambda query, key, value, **_: value, **shape)
  graphdef, params = steps.split_model(model)
  tokens_BL = jax.ShapeDtypeStruct((2, 32), np.int32)
  compiled = (
    jax.jit(lambda params, tokens: steps.merge_model(graphdef, params)(tokens))
    .lower(params, tokens_BL)
    .compile()
  )
  # Queries and keys are not used, so not computed either.
  weights = flops.num_matmul_weights(model) - 2 * 128 * 128
  measured = compiled.cost_analysis()['flops']
  assert measured == pytest.approx(2 * weights * 64, rel=0.08)
  assert measured > 2 * weights * 64


@pytest.mark.parametrize(
  'kind, bfloat16, float32',
  [
    ('NVIDIA A100-SXM4-80GB', 312, 156),
    ('NVIDIA H100 80GB HBM3', 989, 494),
    ('NVIDIA H100 PCIe', 756, 378),
    ('NVIDIA A10G', 70, 35),
    ('NVIDIA GeForce RTX 4090', 165, 82),
    ('TPU v5 lite', 197, 197),
    ('TPU v5p', 459, 459),
  ],
)
def test_known_accelerators(kind, bfloat16, float32):
  assert flops.peak(kind, 'bfloat16') == bfloat16 * 1e12
  assert flops.peak(kind, 'float32') == float32 * 1e12


def test_unknown_accelerator_elsewhere_is_refused():
  with pytest.raises(ValueError, match="speed of 'Abacus' is not known"):
    flops.peak('Abacus')


@pytest.fixture
def small_gemm(monkeypatch):
  monkeypatch.setattr(flops, '_GEMM_SIZE', {'cpu': 64})
  flops.gemm_rate.cache_clear()
  yield
  flops.gemm_rate.cache_clear()


def test_cpu_is_measured_once_and_shared_by_its_devices(small_gemm):
  first = flops.peak()
  assert first > 0
  assert flops.peak() == first
  assert flops.gemm_rate() == pytest.approx(first * jax.local_device_count())
