"""FlaxLM as Llama: its logits from the exported tensors, written down again.

Axes: L length, H heads, K head width.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from protein_lm import hf_tensor, llama, models, train_step

OPTIONS = {
  'emb_dim': 8,
  'qkv_dim': 16,
  'mlp_dim': 12,
  'num_layers': 2,
  'num_heads': 2,
  'norm': 'rmsnorm',
  'mlp': 'swiglu',
  'position_embedding': 'rotary',
}


def make(**options):
  """(model, parameters by name), random, none of them zero."""
  graphdef, params = train_step.split_model(
    models.FlaxLM(**{**OPTIONS, **options}, rngs=nnx.Rngs(0))
  )
  generator = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * generator.normal(size=x.shape).astype(np.float32),
    params,
  )
  return train_step.merge_model(graphdef, params), hf_tensor.flattened(params)


def logits_of(tensors, config, ids_L):
  """Llama for one protein, in float64."""
  w = {k: v.astype(np.float64) for k, v in tensors.items()}
  H, K = config['num_attention_heads'], config['head_dim']
  L = len(ids_L)

  def dense(name, x):
    return x @ w[f'{name}.weight'].T + w.get(f'{name}.bias', 0)

  def norm(name, x):
    mean = (x**2).mean(-1, keepdims=True)
    return x / np.sqrt(mean + config['rms_norm_eps']) * w[f'{name}.weight']

  def rotated(x_HLK):
    frequencies = config['rope_theta'] ** (-np.arange(0, K, 2) / K)
    turns = np.exp(1j * np.outer(np.arange(L), frequencies))
    turns = turns * (x_HLK[..., : K // 2] + 1j * x_HLK[..., K // 2 :])
    return np.concatenate([turns.real, turns.imag], -1)

  x_LD = w['model.embed_tokens.weight'][ids_L]
  for n in range(config['num_hidden_layers']):
    layer = f'model.layers.{n}'
    h_LD = norm(f'{layer}.input_layernorm', x_LD)
    q, k, v = (
      dense(f'{layer}.self_attn.{name}_proj', h_LD)
      .reshape(L, H, K)
      .swapaxes(0, 1)
      for name in 'qkv'
    )
    p_HLL = np.exp(rotated(q) @ rotated(k).swapaxes(1, 2) / np.sqrt(K))
    p_HLL *= np.tri(L)
    p_HLL /= p_HLL.sum(-1, keepdims=True)
    out_LD = (p_HLL @ v).swapaxes(0, 1).reshape(L, H * K)
    x_LD = x_LD + dense(f'{layer}.self_attn.o_proj', out_LD)
    h_LD = norm(f'{layer}.post_attention_layernorm', x_LD)
    gate = dense(f'{layer}.mlp.gate_proj', h_LD)
    h_LF = gate / (1 + np.exp(-gate)) * dense(f'{layer}.mlp.up_proj', h_LD)
    x_LD = x_LD + dense(f'{layer}.mlp.down_proj', h_LF)
  tied = config['tie_word_embeddings']
  head = 'model.embed_tokens' if tied else 'lm_head'
  return dense(head, norm('model.norm', x_LD))


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'tie_embeddings': True, 'use_bias': True, 'norm_eps': 1e-2},
    {'tie_embeddings': True, 'scale_embeddings': False},
  ],
)
def test_exported_tensors_give_our_logits(options):
  model, params = make(**options)
  tensors, texts = llama.export(model, params)
  ids_L = np.array([25, 10, 3, 23, 7, 7, 26])
  np.testing.assert_allclose(
    jax.jit(lambda ids: model(ids))(ids_L[None])[0],
    logits_of(tensors, texts['config.json'], ids_L),
    atol=1e-4,
  )


@pytest.mark.parametrize(
  'options, message',
  [
    ({'mlp': 'gelu'}, "FlaxModel.mlp = 'swiglu'"),
    ({'norm': 'layernorm'}, "FlaxModel.norm = 'rmsnorm'"),
    ({'position_embedding': 'sinusoidal'}, "position_embedding = 'rotary'"),
    ({'qk_norm': True}, 'FlaxModel.qk_norm = False'),
    ({'use_bias': True}, 'FlaxModel.use_bias = False'),
    ({'emb_dim': 9}, 'a multiple of num_heads = 2'),
  ],
)
def test_a_model_that_llama_cannot_be_is_refused(options, message):
  with pytest.raises(llama.LlamaError, match=message):
    llama.export(*make(**options))


def test_an_output_bias_of_zeros_is_left_out():
  model, params = make(use_bias=True)
  params['output/bias'] = np.zeros_like(params['output/bias'])
  assert 'lm_head.bias' not in llama.export(model, params)[0]


def test_a_masked_model_is_refused():
  model = models.FlaxBERT(**OPTIONS, rngs=nnx.Rngs(0))
  with pytest.raises(llama.LlamaError, match='FlaxBERT is no causal'):
    llama.export(model, {})
