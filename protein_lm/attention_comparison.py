"""The same checkpoint under several kinds of attention.

Axes: B batch, L length, H heads, N layers.
"""

import json
import pathlib

import jax
import numpy as np

from protein_lm import evaluation_table
from protein_lm.attention_name import attention_name
from protein_lm.data import EvalBatches
from protein_lm.kernel_error import kernel_errors
from protein_lm.proteins import Proteins

FILE_NAME = 'evaluation_kernel_error.json'
KEY = ('data', 'split', 'step', 'attention')

# Exact attention is quadratic: weights of so many pairs of positions a head.
_PAIRS = 2**21
_MAX_LEN, _MAX_ROWS = 2048, 8


def kernel_error_rows(scorer, proteins: Proteins) -> list[dict]:
  """How far each layer is from exact attention, on the first rows of a split.

  Args:
    scorer: Scorer.
    proteins: a split.

  Returns:
    A dict for each layer: layer, error and uniform (the mean L1 distance of
    rows of the attention to those of softmax attention on the layer's own
    queries and keys, and that of equal weights, means over heads, from 0 to 2),
    error_H and uniform_H (by head), num_tokens (compared).
  """
  max_len = min(scorer.max_len, _MAX_LEN)
  num_rows = min(max(1, _PAIRS // max_len**2), _MAX_ROWS)
  batch = EvalBatches(proteins, num_rows, max_len)[0].batch
  error_NH, uniform_NH = jax.jit(_errors)(
    scorer.loaded.model, batch.tokens, batch.segment_ids
  )
  num_tokens = int((batch.segment_ids > 0).sum())
  pairs = zip(np.asarray(error_NH), np.asarray(uniform_NH), strict=True)
  return [
    {
      'layer': layer,
      'error': float(error_H.mean()),
      'uniform': float(uniform_H.mean()),
      'error_H': error_H.tolist(),
      'uniform_H': uniform_H.tolist(),
      'num_tokens': num_tokens,
    }
    for layer, (error_H, uniform_H) in enumerate(pairs)
  ]


def _errors(model, tokens, segment_ids):
  return kernel_errors(model, tokens, segment_ids=segment_ids)


def format_errors(scorer, rows) -> str:
  """The rows as a line of text a layer."""
  name = attention_name(scorer.loaded.model.attention_fns)
  lines = [
    f'kernel error of {name} attention (mean L1 distance to softmax attention '
    f'on its own queries and keys, {rows[0]["num_tokens"]:,} tokens):'
  ]
  lines += [
    f'  layer {row["layer"]}: {row["error"]:.3f} (equal weights '
    f'{row["uniform"]:.3f})'
    for row in rows
  ]
  return '\n'.join(lines)


def read_errors(work_dir) -> list[dict]:
  """The rows of evaluation_kernel_error.json, [] without it.

  Raises:
    ValueError: the file is not one of ours.
  """
  path = pathlib.Path(work_dir) / FILE_NAME
  return evaluation_table.read_file(path, KEY, 'kernel errors of an evaluation')


def merge_errors(work_dir, new_rows) -> pathlib.Path:
  """Writes rows with KEY; those of the same key are replaced.

  Returns:
    The path of evaluation_kernel_error.json.
  """
  path = pathlib.Path(work_dir) / FILE_NAME
  keys = {tuple(row[name] for name in KEY) for row in new_rows}
  kept = [
    row
    for row in read_errors(work_dir)
    if tuple(row[name] for name in KEY) not in keys
  ]
  text = json.dumps([*kept, *new_rows], indent=1) + '\n'
  evaluation_table.replace(path, text)
  return path
