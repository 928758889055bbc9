"""ESM-2 as FlaxBERT: configuration, vocabulary and names of tensors.

The architecture is that of EsmForMaskedLM in transformers (ESM-2,
bioRxiv 2022.07.20.500902; ESM-1b too). A model with its 33 tokens has our 29
ids first, in our order, with BOS for <cls> and EOS for <eos>; ids 29 to 32 are
<unk> . - <null_1>.

Axes: D model width, F MLP width, H heads, K head width, V vocabulary.
"""

from typing import Any

import numpy as np

from protein_lm import vocab
from protein_lm.hf_tensor import Tensor

# In the order of their ids there.
TOKENS = (
  *('<cls>', '<pad>', '<eos>', '<unk>'),
  *'LAGVSERTIDPKQNFYMHWCXBUZO',
  *('.', '-', '<null_1>', '<mask>'),
)
# In the order of ids here.
OUR_TOKENS = (
  *vocab.RESIDUES,
  *('<cls>', '<eos>', '<pad>', '<mask>'),
  *('<unk>', '.', '-', '<null_1>'),
)
# What a configuration leaves out; the defaults of transformers' EsmConfig.
DEFAULTS = {
  'vocab_size': len(TOKENS),
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'hidden_dropout_prob': 0.1,
  'max_position_embeddings': 1026,
  'layer_norm_eps': 1e-12,
  'position_embedding_type': 'absolute',
  'emb_layer_norm_before': False,
  'token_dropout': False,
  'tie_word_embeddings': True,
}
_SIZES = (
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'intermediate_size',
  'max_position_embeddings',
)
_MAX_LEN = 1024  # tokens, of which ESM-2 saw so many in training
FIRST_ROW = 2  # of the position table; those before are of padding
EMBEDDING = 'esm.embeddings.word_embeddings.weight'
POSITIONS = 'esm.embeddings.position_embeddings.weight'
DECODER = 'lm_head.decoder.weight'
OUTPUT_KERNEL = 'output/linear/kernel'


class ESMError(ValueError):
  """A model of another architecture, or one that ESM-2 cannot be."""


def complete(config: dict[str, Any], source: str) -> dict[str, Any]:
  """Returns a configuration with its defaults, checked.

  Args:
    config: what config.json says.
    source: names it in errors.

  Raises:
    ESMError: it is not of EsmForMaskedLM, or of a kind that FlaxBERT is not.
  """
  kind, names = config.get('model_type'), config.get('architectures')
  if kind != 'esm' or names not in (None, [], ['EsmForMaskedLM']):
    raise ESMError(
      f'{source} has model_type {kind!r} and architectures {names!r}; only an '
      "EsmForMaskedLM (model_type 'esm': ESM-2, ESM-1b) can be imported."
    )
  full = {**DEFAULTS, **{k: v for k, v in config.items() if v is not None}}
  rope = full.get('rope_parameters') or full
  refused = {
    'is_folding_model': (full.get('is_folding_model', False), False),
    'is_decoder': (full.get('is_decoder', False), False),
    'add_cross_attention': (full.get('add_cross_attention', False), False),
    'vocab_size': (full['vocab_size'], len(TOKENS)),
    'rope_theta': (rope.get('rope_theta', 10_000), 10_000),
    'rope_type': (rope.get('rope_type', 'default'), 'default'),
  }
  for name, (value, expected) in refused.items():
    if value != expected:
      raise ESMError(
        f'{source}: {name} is {value!r}, and only {expected!r} can be imported.'
      )
  if full['position_embedding_type'] not in ('rotary', 'absolute'):
    raise ESMError(
      f'{source}: position_embedding_type is '
      f"{full['position_embedding_type']!r}, and only 'rotary' and 'absolute' "
      'can be imported.'
    )
  for name in _SIZES:
    value = full[name]
    least = FIRST_ROW if name == 'max_position_embeddings' else 0
    if type(value) is not int or not least < value < 2**31:
      raise ESMError(f'{source}: {name} is {value!r}, which is no size.')
  heads, width = full['num_attention_heads'], full['hidden_size']
  if width % heads:
    raise ESMError(
      f'{source}: hidden_size is {width}, no multiple of its {heads} heads.'
    )
  for name in ('layer_norm_eps', 'hidden_dropout_prob'):
    if type(full[name]) not in (int, float) or not 0 <= full[name] < 1:
      raise ESMError(
        f'{source}: {name} is {full[name]!r}, which is no number from 0 to 1.'
      )
  return full


def token_ids(lines: list[str], source: str) -> np.ndarray:
  """For each of our 33 ids the id of the token there.

  Args:
    lines: of vocab.txt.
    source: names it in errors.

  Raises:
    ESMError: the tokens are not those of ESM-2.
  """
  tokens = [line.strip() for line in lines if line.strip()]
  if sorted(tokens) != sorted(TOKENS):
    odd = sorted(set(tokens) ^ set(TOKENS))
    raise ESMError(
      f'{source} has other tokens than the 33 of ESM-2'
      + (f', such as {odd[0]!r}.' if odd else '.')
    )
  return np.array([tokens.index(token) for token in OUR_TOKENS])


def check_special_ids(config: dict[str, Any], ids, source: str) -> None:
  """Refuses a configuration whose special ids are not those of its tokens."""
  for name, ours in (
    ('mask_token_id', vocab.MASK_ID),
    ('pad_token_id', vocab.PAD_ID),
  ):
    value = config.get(name)
    # The mask is read by token dropout alone, padding by no weight at all.
    if value is not None and value != ids[ours]:
      raise ESMError(
        f'{source}: {name} is {value!r}, and {OUR_TOKENS[ours]} is '
        f'{ids[ours]} among its tokens.'
      )
  if config['token_dropout'] and config.get('mask_token_id') is None:
    raise ESMError(f'{source}: token_dropout needs a mask_token_id.')


def options(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of FlaxBERT, from a complete configuration.

  Dropout of attention weights is left out, so that the attention can be
  swapped.
  """
  is_rotary = config['position_embedding_type'] == 'rotary'
  rows = config['max_position_embeddings'] - FIRST_ROW
  return {
    'vocab_size': config['vocab_size'],
    'emb_dim': config['hidden_size'],
    'qkv_dim': config['hidden_size'],
    'mlp_dim': config['intermediate_size'],
    'num_layers': config['num_hidden_layers'],
    'num_heads': config['num_attention_heads'],
    'max_len': _MAX_LEN if is_rotary else rows,
    'dropout_rate': float(config['hidden_dropout_prob']),
    'attention_dropout_rate': 0.0,
    'position_embedding': 'rotary' if is_rotary else 'learned',
    'norm': 'layernorm',
    'mlp': 'gelu_exact',
    'tie_embeddings': bool(config['tie_word_embeddings']),
    'qk_norm': False,
    'use_bias': True,
    'norm_eps': float(config['layer_norm_eps']),
    'norm_embeddings': bool(config['emb_layer_norm_before']),
    'scale_embeddings': False,
    'token_dropout': bool(config['token_dropout']),
    'output_head': 'dense',
  }


def tensors(config) -> list[Tensor]:
  """Every tensor of EsmForMaskedLM that the logits depend on."""
  D, F = config['hidden_size'], config['intermediate_size']
  V, N = config['vocab_size'], config['num_hidden_layers']

  def norm(hf, ours, layer=None):
    return [
      Tensor(f'{hf}.weight', f'{ours}/scale', (D,), layer),
      Tensor(f'{hf}.bias', f'{ours}/bias', (D,), layer),
    ]

  def dense(hf, ours, shape, layer=None):
    return [
      Tensor(f'{hf}.weight', f'{ours}/kernel', shape, layer, is_kernel=True),
      Tensor(f'{hf}.bias', f'{ours}/bias', shape[:1], layer),
    ]

  found = [Tensor(EMBEDDING, 'embed/embedding', (V, D), has_tokens=True)]
  if config['position_embedding_type'] == 'absolute':
    rows = config['max_position_embeddings']
    table = Tensor(POSITIONS, 'position_table', (rows, D), first_row=FIRST_ROW)
    found.append(table)
  if config['emb_layer_norm_before']:
    found += norm('esm.embeddings.layer_norm', 'embed_norm')
  for n in range(N):
    layer = f'esm.encoder.layer.{n}'
    found += norm(f'{layer}.attention.LayerNorm', 'blocks/attention_norm', n)
    for name in ('query', 'key', 'value'):
      hf = f'{layer}.attention.self.{name}'
      found += dense(hf, f'blocks/{name}', (D, D), n)
    found += dense(f'{layer}.attention.output.dense', 'blocks/out', (D, D), n)
    found += norm(f'{layer}.LayerNorm', 'blocks/mlp_norm', n)
    found += dense(f'{layer}.intermediate.dense', 'blocks/mlp_in', (F, D), n)
    found += dense(f'{layer}.output.dense', 'blocks/mlp_out', (D, F), n)
  found += norm('esm.encoder.emb_layer_norm_after', 'final_norm')
  found += dense('lm_head.dense', 'output/dense', (D, D))
  found += norm('lm_head.layer_norm', 'output/norm')
  bias = 'output/bias'
  if not config['tie_word_embeddings']:
    bias = 'output/linear/bias'
    kernel = Tensor(DECODER, OUTPUT_KERNEL, (V, D), None, True, True)
    found.append(kernel)
  # A token that the model has not is one that it never predicts.
  absent = Tensor('lm_head.bias', bias, (V,), has_tokens=True, absent=-1e9)
  return [*found, absent]
