"""The tensors of an EsmForMaskedLM: checked, read into FlaxBERT, written."""

import re
from typing import Any

import numpy as np

from protein_lm import esm
from protein_lm.hf_tensor import gather, scatter
from protein_lm.positions import rotary_frequencies

_DTYPES = ('F32', 'F16', 'BF16')
# Tensors that have no part in the logits; they are kept for the way back.
_SPARE = re.compile(
  r'esm\.(contact_head\.regression\.(weight|bias)|embeddings\.position_ids|'
  r'pooler\.dense\.(weight|bias))'
)
_FREQUENCIES = re.compile(r'esm\.(.+\.)?rotary_embeddings\.inv_freq')


# Older names, which transformers 5 writes too.
_OLD_NAMES = {'LayerNorm.gamma': 'LayerNorm.weight'}
_OLD_NAMES |= {'LayerNorm.beta': 'LayerNorm.bias'}


def renamed(weights):
  """The weights under the names of today's EsmForMaskedLM.

  Args:
    weights: hf_folder.Weights.

  Returns:
    (hf_folder.Weights, name -> name in the file where these differ).
  """
  stored = {}
  for name in weights.shapes:
    for old, new in _OLD_NAMES.items():
      today = name.removesuffix(old) + new
      if name.endswith(f'.{old}') and today not in weights.shapes:
        stored[today] = name
  today = {name: name for name in weights.shapes.keys() - stored.values()}
  today |= stored
  weights = weights._replace(
    shapes={k: weights.shapes[v] for k, v in today.items()},
    dtypes={k: weights.dtypes[v] for k, v in today.items()},
    read=lambda name, read=weights.read: read(today[name]),
  )
  return weights, stored


def check(config, weights, source: str) -> list[str]:
  """Compares the tensors of a folder with its configuration.

  Args:
    config: complete.
    weights: hf_folder.Weights.
    source: names them in errors.

  Returns:
    The names of tensors that FlaxBERT has not.

  Raises:
    ESMError: one is missing, unknown, or of another shape or type.
  """
  wanted = {tensor.hf: tensor.shape for tensor in esm.tensors(config)}
  spare = []
  for name in sorted(wanted.keys() | weights.shapes.keys()):
    if name not in weights.shapes:
      raise esm.ESMError(f'{source} lacks {name}, a tensor of EsmForMaskedLM.')
    if name not in wanted:
      is_known = _SPARE.fullmatch(name) or _FREQUENCIES.fullmatch(name)
      # The last two stand in files beside rotary positions and tied outputs.
      if not is_known and name not in (esm.POSITIONS, esm.DECODER):
        raise esm.ESMError(
          f'{source} has {name}, which EsmForMaskedLM has not.'
        )
      spare.append(name)
      continue
    shape, dtype = weights.shapes[name], weights.dtypes[name]
    if shape != wanted[name]:
      raise esm.ESMError(
        f'{source}: {name} is {shape}, and {wanted[name]} by its config.json.'
      )
    if dtype not in _DTYPES:
      raise esm.ESMError(
        f'{source}: {name} is {dtype}; weights are {", ".join(_DTYPES)}.'
      )
  return spare


def spare_arrays(config, weights, names, source: str) -> dict[str, Any]:
  """What the parameters do not hold: name -> array, as it is stored.

  Raises:
    ESMError: an output layer that is said to be tied is not.
  """
  arrays = {name: np.asarray(weights.read(name)) for name in names}
  decoder = arrays.get(esm.DECODER)
  if decoder is not None and not np.array_equal(
    decoder, weights.read(esm.EMBEDDING)
  ):
    raise esm.ESMError(
      f'{source}: {esm.DECODER} is not the embedding, though '
      'tie_word_embeddings is true; set that to false in its config.json.'
    )
  if config['position_embedding_type'] == 'absolute':
    arrays[esm.POSITIONS] = weights.read(esm.POSITIONS)[: esm.FIRST_ROW]
  return arrays


def rotary_dtype(config, spare: dict[str, Any], source: str) -> str:
  """The type that the stored frequencies of rotary positions are rounded to.

  Raises:
    ESMError: they are others than ours.
  """
  width = config['hidden_size'] // config['num_attention_heads']
  ours = {
    dtype: rotary_frequencies(width, dtype) for dtype in ('float32', 'float16')
  }
  found = 'float32'
  for name in filter(_FREQUENCIES.fullmatch, spare):
    array = np.asarray(spare[name], np.float32)
    fit = [
      dtype
      for dtype, frequencies in ours.items()
      if array.shape == frequencies.shape
      and np.allclose(array, frequencies, rtol=1e-6, atol=0)
    ]
    if not fit:
      raise esm.ESMError(
        f'{source}: {name} holds other frequencies than those of ESM-2.'
      )
    found = fit[0]
  return found


def to_params(config, weights, shapes, ids) -> dict[str, Any]:
  """FlaxBERT's parameters: path name -> float32 array.

  Args:
    config: complete.
    weights: hf_folder.Weights that fit.
    shapes: path name -> shape of the parameters.
    ids: from esm.token_ids.
  """
  return gather(esm.tensors(config), weights.read, shapes, ids)


def from_params(config, params, ids, spare) -> dict[str, Any]:
  """The tensors of EsmForMaskedLM: name -> array.

  Args:
    config: complete.
    params: path name -> array; FlaxBERT's, embeddings not scaled.
    ids: for each of our token ids the id there; 29 of them or 33.
    spare: from spare_arrays, or other tensors that the logits do not need.
  """
  found = scatter(esm.tensors(config), params, ids)
  if config['position_embedding_type'] == 'absolute' and esm.POSITIONS in spare:
    found[esm.POSITIONS][: esm.FIRST_ROW] = spare[esm.POSITIONS]
  return spare | found
