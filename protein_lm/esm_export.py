"""FlaxBERT as an EsmForMaskedLM.

Axes: D model width, H heads, K head width, V vocabulary.
"""

from typing import Any

import numpy as np

from protein_lm import esm, esm_weights, hf_tensor, hf_tokenizer, vocab
from protein_lm.positions import rotary_frequencies

# What EsmForMaskedLM is; see also `_check`.
_NEEDED = {
  'norm': 'layernorm',
  'mlp': 'gelu_exact',
  'output_head': 'dense',
  'use_bias': True,
  'qk_norm': False,
}
_CONTACTS = 'esm.contact_head.regression'
_ATTENTION = 'esm.encoder.layer.{}.attention.self'


def export(model, params, metadata=None):
  """The tensors and the other files of the folder of an EsmForMaskedLM.

  Args:
    model: FlaxBERT, for its options.
    params: path name -> array of its parameters, without LoRA factors.
    metadata: `hf` of an imported checkpoint, with `spare`, its other arrays;
      it then gives back what was imported, bit for bit.

  Returns:
    (tensors by name, texts by file name), for hf_folder.write.

  Raises:
    esm.ESMError: ESM-2 cannot be this model; names the bindings that it needs.
  """
  _check(model)
  metadata = metadata or {}
  params, is_tied = hf_tensor.without_scale(model, params, esm.OUTPUT_KERNEL)
  if model.tie_embeddings and not is_tied:
    params['output/linear/bias'] = params['output/bias']
  config = _config(model, is_tied, metadata.get('config', {}))
  tokens = metadata.get('tokens', esm.TOKENS)
  ids = esm.token_ids(tokens, 'the checkpoint')[: model.vocab_size]
  spare = metadata.get('spare') or _spare(model)
  tensors = esm_weights.from_params(config, params, ids, spare)
  tensors = _as_stored(tensors, metadata)
  max_len = config['max_position_embeddings'] - esm.FIRST_ROW
  texts = hf_tokenizer.esm_files(tokens, max_len)
  return tensors, {'config.json': config, **texts}


def _check(model):
  if model.objective != 'masked':
    raise esm.ESMError(
      f'a {type(model).__name__} is no masked language model, as ESM-2 is; '
      'export a FlaxBERT.'
    )
  wanted = [
    f'FlaxModel.{name} = {value!r} (it is {getattr(model, name)!r})'
    for name, value in _NEEDED.items()
    if getattr(model, name) != value
  ]
  if model.position_embedding not in ('rotary', 'learned'):
    wanted.append(
      "FlaxModel.position_embedding = 'rotary' or 'learned' (it is "
      f'{model.position_embedding!r})'
    )
  if model.qkv_dim != model.emb_dim:
    wanted.append(
      f'FlaxModel.qkv_dim = {model.emb_dim}, its emb_dim (it is '
      f'{model.qkv_dim})'
    )
  if model.vocab_size not in (vocab.SIZE, len(esm.TOKENS)):
    wanted.append(
      f'FlaxModel.vocab_size = {len(esm.TOKENS)} (it is {model.vocab_size})'
    )
  if wanted:
    raise esm.ESMError(
      f'an EsmForMaskedLM needs {", ".join(wanted)}; train with '
      'configs/model_esm2.gin.'
    )


def _config(model, is_tied, imported) -> dict[str, Any]:
  """What config.json says: of the model, else what was imported."""
  is_rotary = model.position_embedding == 'rotary'
  rows = imported.get('max_position_embeddings', 1026)
  if not is_rotary:
    rows = model.max_len + esm.FIRST_ROW
  usual = {
    'attention_probs_dropout_prob': model.attention_dropout_rate,
    'eos_token_id': esm.TOKENS.index('<eos>'),
    'hidden_dropout_prob': model.dropout_rate,
    'initializer_range': 0.02,
    'mask_token_id': esm.TOKENS.index('<mask>'),
    'pad_token_id': esm.TOKENS.index('<pad>'),
    'rope_theta': 10_000.0,
  }
  if 'dtype' not in imported:  # what transformers 5 says
    usual['torch_dtype'] = 'float32'
  return (
    usual
    | imported
    | {
      'architectures': ['EsmForMaskedLM'],
      'emb_layer_norm_before': model.norm_embeddings,
      'hidden_size': model.emb_dim,
      'intermediate_size': model.mlp_dim,
      'layer_norm_eps': model.norm_eps,
      'max_position_embeddings': rows,
      'model_type': 'esm',
      'num_attention_heads': model.num_heads,
      'num_hidden_layers': model.num_layers,
      'position_embedding_type': 'rotary' if is_rotary else 'absolute',
      'tie_word_embeddings': is_tied,
      'token_dropout': model.token_dropout,
      'vocab_size': len(esm.TOKENS),
    }
  )


def _spare(model):
  """What the folder holds beside the parameters: a contact head of zeros."""
  num_maps = model.num_layers * model.num_heads
  spare = {
    f'{_CONTACTS}.weight': np.zeros((1, num_maps), np.float32),
    f'{_CONTACTS}.bias': np.zeros(1, np.float32),
  }
  if model.position_embedding == 'rotary':
    frequencies = rotary_frequencies(
      model.qkv_dim // model.num_heads, model.rotary_dtype
    )
    for n in range(model.num_layers):
      name = f'{_ATTENTION.format(n)}.rotary_embeddings.inv_freq'
      spare[name] = frequencies
  return spare


def _as_stored(tensors, metadata):
  """The tensors under the names and in the types that they had."""
  names, dtypes = metadata.get('names', {}), metadata.get('dtypes', {})
  stored = {}
  for name, array in tensors.items():
    if (dtype := dtypes.get(name)) in ('F16', 'BF16'):
      import ml_dtypes

      array = array.astype(np.float16 if dtype == 'F16' else ml_dtypes.bfloat16)
    stored[names.get(name, name)] = array
  return stored
