"""Files of tokenizers that transformers loads: one residue, one token."""

import json
from typing import Any

from protein_lm import esm, vocab

_MAX_LEN = 10**30  # transformers' number for no limit
_BOS, _EOS, _PAD, _MASK = (
  vocab.TOKENS[i]
  for i in (vocab.BOS_ID, vocab.EOS_ID, vocab.PAD_ID, vocab.MASK_ID)
)
# A letter that is none reads as the residue that can be any.
_UNKNOWN = 'X'


def esm_files(
  tokens=esm.TOKENS, max_len: int = _MAX_LEN
) -> dict[str, str | dict[str, Any]]:
  """Files of an EsmTokenizer, which frames a protein with <cls> and <eos>.

  Args:
    tokens: in the order of their ids.
    max_len: tokens that the model reads, for a table of positions.

  Returns:
    File name -> text, or dict to be written as JSON.
  """
  special = {
    name: f'<{name.removesuffix("_token")}>'
    for name in (
      'cls_token',
      'eos_token',
      'mask_token',
      'pad_token',
      'unk_token',
    )
  }
  return {
    'vocab.txt': '\n'.join(tokens) + '\n',
    'special_tokens_map.json': special,
    'tokenizer_config.json': {
      'tokenizer_class': 'EsmTokenizer',
      'model_max_length': max_len,
      'clean_up_tokenization_spaces': False,
      **special,
    },
  }


def lm_files() -> dict[str, str | dict[str, Any]]:
  """Files of a tokenizer with our ids, which puts BOS before a protein.

  Letters become upper case; spaces are left out, and what is no residue reads
  as X.

  Returns:
    File name -> text, or dict to be written as JSON.
  """
  special = {
    'bos_token': _BOS,
    'eos_token': _EOS,
    'pad_token': _PAD,
    'mask_token': _MASK,
  }
  return {
    'tokenizer.json': json.dumps(_tokenizer(), indent=2) + '\n',
    'special_tokens_map.json': special,
    'tokenizer_config.json': {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'model_max_length': _MAX_LEN,
      'clean_up_tokenization_spaces': False,
      'padding_side': 'right',
      'model_input_names': ['input_ids', 'attention_mask'],
      **special,
    },
  }


def _tokenizer() -> dict[str, Any]:
  """What tokenizer.json says, in the format of the package tokenizers."""
  first = {'SpecialToken': {'id': _BOS, 'type_id': 0}}
  bos = {'id': _BOS, 'ids': [vocab.BOS_ID], 'tokens': [_BOS]}
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      {
        'id': vocab.TOKENS.index(token),
        'content': token,
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'special': True,
      }
      for token in (_BOS, _EOS, _PAD, _MASK)
    ],
    'normalizer': {
      'type': 'Sequence',
      'normalizers': [
        _replace({'Regex': r'\s+'}, ''),
        *(_replace({'String': x.lower()}, x) for x in vocab.RESIDUES),
      ],
    },
    'pre_tokenizer': {
      'type': 'Split',
      'pattern': {'Regex': '.'},
      'behavior': 'Isolated',
      'invert': False,
    },
    'post_processor': {
      'type': 'TemplateProcessing',
      'single': [first, {'Sequence': {'id': 'A', 'type_id': 0}}],
      'pair': [
        first,
        {'Sequence': {'id': 'A', 'type_id': 0}},
        first,
        {'Sequence': {'id': 'B', 'type_id': 0}},
      ],
      'special_tokens': {_BOS: bos},
    },
    'decoder': {'type': 'Fuse'},
    'model': {
      'type': 'WordLevel',
      'vocab': {token: i for i, token in enumerate(vocab.TOKENS)},
      'unk_token': _UNKNOWN,
    },
  }


def _replace(pattern, content):
  return {'type': 'Replace', 'pattern': pattern, 'content': content}
