"""FlaxLM as a LlamaForCausalLM.

Axes: D model width, F MLP width, V vocabulary.
"""

import numpy as np

from protein_lm import hf_tensor, hf_tokenizer, vocab
from protein_lm.hf_tensor import Tensor

# What LlamaForCausalLM is; see also `_check`.
_NEEDED = {
  'norm': 'rmsnorm',
  'mlp': 'swiglu',
  'position_embedding': 'rotary',
  'output_head': 'linear',
  'qk_norm': False,
  'norm_embeddings': False,
  'rotary_dtype': 'float32',
}
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_MLP = {'mlp_gate': 'gate', 'mlp_in': 'up', 'mlp_out': 'down'}


class LlamaError(ValueError):
  """A model that Llama cannot be."""


def export(model, params):
  """The tensors and the other files of the folder of a LlamaForCausalLM.

  Args:
    model: FlaxLM, for its options.
    params: path name -> array of its parameters, without LoRA factors.

  Returns:
    (tensors by name, texts by file name), for hf_folder.write. Token ids are
    ours; the tokenizer puts BOS before a protein.

  Raises:
    LlamaError: Llama cannot be this model; names the bindings that it needs.
  """
  _check(model, params)
  params, is_tied = hf_tensor.without_scale(model, params, 'output/kernel')
  tensors = hf_tensor.scatter(_tensors(model, is_tied), params)
  texts = {
    'config.json': _config(model, is_tied),
    'generation_config.json': {
      'bos_token_id': vocab.BOS_ID,
      'do_sample': True,
      'eos_token_id': vocab.EOS_ID,
      'pad_token_id': vocab.PAD_ID,
      'suppress_tokens': [vocab.BOS_ID, vocab.PAD_ID, vocab.MASK_ID],
    },
  }
  return tensors, texts | hf_tokenizer.lm_files()


def _check(model, params):
  if model.objective != 'causal':
    raise LlamaError(
      f'a {type(model).__name__} is no causal language model, as Llama is; '
      'export a FlaxLM.'
    )
  wanted = [
    f'FlaxModel.{name} = {value!r} (it is {getattr(model, name)!r})'
    for name, value in _NEEDED.items()
    if getattr(model, name) != value
  ]
  if np.any(params.get('output/bias', 0)):
    wanted.append('FlaxModel.use_bias = False (its output layer has a bias)')
  if model.emb_dim % model.num_heads:
    wanted.append(
      f'FlaxModel.emb_dim to be a multiple of num_heads = {model.num_heads} '
      f'(it is {model.emb_dim})'
    )
  if wanted:
    raise LlamaError(
      f'a LlamaForCausalLM needs {", ".join(wanted)}; train with '
      'configs/model_llama.gin.'
    )


def _config(model, is_tied):
  return {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': model.use_bias,
    'attention_dropout': model.attention_dropout_rate,
    'bos_token_id': vocab.BOS_ID,
    'eos_token_id': vocab.EOS_ID,
    'head_dim': model.qkv_dim // model.num_heads,
    'hidden_act': 'silu',
    'hidden_size': model.emb_dim,
    'initializer_range': 0.02,
    'intermediate_size': model.mlp_dim,
    'max_position_embeddings': model.max_len,
    'mlp_bias': model.use_bias,
    'model_type': 'llama',
    'num_attention_heads': model.num_heads,
    'num_hidden_layers': model.num_layers,
    'num_key_value_heads': model.num_heads,
    'pad_token_id': vocab.PAD_ID,
    'rms_norm_eps': model.norm_eps,
    'rope_theta': 10_000.0,
    'tie_word_embeddings': is_tied,
    'torch_dtype': 'float32',
    'use_cache': True,
    'vocab_size': model.vocab_size,
  }


def _tensors(model, is_tied):
  """Every tensor of LlamaForCausalLM."""
  D, F, V = model.emb_dim, model.mlp_dim, model.vocab_size
  shapes = dict.fromkeys(('query', 'key', 'value'), (model.qkv_dim, D))
  shapes |= {'out': (D, model.qkv_dim), 'mlp_out': (D, F)}
  shapes |= {'mlp_gate': (F, D), 'mlp_in': (F, D)}
  found = [
    Tensor('model.embed_tokens.weight', 'embed/embedding', (V, D)),
    Tensor('model.norm.weight', 'final_norm/scale', (D,)),
  ]
  for n in range(model.num_layers):
    layer = f'model.layers.{n}'
    names = {k: f'self_attn.{v}_proj' for k, v in _PROJECTIONS.items()}
    names |= {k: f'mlp.{v}_proj' for k, v in _MLP.items()}
    for ours, hf in names.items():
      hf, ours, shape = f'{layer}.{hf}', f'blocks/{ours}', shapes[ours]
      found.append(
        Tensor(f'{hf}.weight', f'{ours}/kernel', shape, n, is_kernel=True)
      )
      if model.use_bias:
        found.append(Tensor(f'{hf}.bias', f'{ours}/bias', shape[:1], n))
    for hf, ours in (
      ('input_layernorm', 'attention_norm'),
      ('post_attention_layernorm', 'mlp_norm'),
    ):
      name = f'{layer}.{hf}.weight'
      found.append(Tensor(name, f'blocks/{ours}/scale', (D,), n))
  if not is_tied:
    kernel = Tensor('lm_head.weight', 'output/kernel', (V, D), is_kernel=True)
    found.append(kernel)
  return found
