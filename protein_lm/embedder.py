"""A model that embeds proteins batch by batch.

Axes: B batch, L length, D model width.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from protein_lm import loading, pieces
from protein_lm import train_step as steps
from protein_lm.data_arguments import MIN_LEN
from protein_lm.embedding_arrays import is_per_residue, name_of, to_dtype
from protein_lm.layer_outputs import layer_outputs

INCLUDE = ('mean', 'max', 'last', 'bos', 'per_tok')
# Tokens of a whole protein; titin has 34,350. A longer one is read in windows.
MAX_LEN = 2**16


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(graphdef, layers, weights, tokens_BL, segment_ids_BL):
  model = steps.merge_model(graphdef, weights)
  return layer_outputs(model, tokens_BL, layers, segment_ids=segment_ids_BL)


@dataclasses.dataclass(frozen=True, eq=False)
class Embedder:
  """A model with what is asked of it.

  Attributes:
    graphdef: of the model.
    weights: train_step.Weights of the model.
    layers: counted from 0.
    repr_layers: the same, as they were asked for.
    include: kinds of vectors.
    emb_dim: D.
    is_causal: whether the model is.
    max_len: tokens of the longest piece.
    row_len: tokens of a row.
    batch_size: rows of so many tokens.
    dtype: of `per_tok`, 'float32' or 'float16'.
  """

  graphdef: Any
  weights: Any
  layers: tuple[int, ...]
  repr_layers: tuple[int, ...]
  include: tuple[str, ...]
  emb_dim: int
  is_causal: bool
  max_len: int
  row_len: int
  batch_size: int
  dtype: str = 'float32'

  @classmethod
  def of(
    cls,
    loaded,
    *,
    repr_layers,
    include,
    batch_size=None,
    max_len=None,
    dtype='float32',
  ):
    """Checks what is asked of a LoadedModel; arguments as of `embed`."""
    check_include(include)
    repr_layers = tuple(repr_layers)
    model = loaded.model
    layers = _check_layers(repr_layers, model.num_layers)
    if 'bos' in include and model.causal:
      raise ValueError(
        f'include=bos is of masked models: {type(model).__name__} is causal, '
        'its BOS sees no residue and is the same for every protein; use mean '
        'or last.'
      )
    row_len = loaded.data_arguments.get('max_len', 512)
    most = MAX_LEN
    if model.position_embedding == 'learned':
      most = row_len = min(row_len, model.max_len)
    max_len = most if max_len is None else max_len
    if batch_size is None:
      batch_size = loaded.data_arguments.get('batch_size', 32)
    _check_whole('batch_size', batch_size, 1)
    _check_whole('max_len', max_len, MIN_LEN)
    if max_len > most:
      why = 'this run is made for' if most < MAX_LEN else 'one pass may have'
      raise ValueError(f'max_len={max_len} is beyond the {most} tokens {why}.')
    loaded = loading.calibrated(loaded)
    return cls(
      loaded.graphdef,
      loaded.weights,
      layers,
      repr_layers,
      tuple(include),
      model.emb_dim,
      model.causal,
      max_len,
      row_len,
      batch_size,
      dtype,
    )

  @property
  def names(self) -> list[str]:
    """Of all arrays, in the order of their files."""
    return [name_of(k, n) for k in self.include for n in self.repr_layers]

  def plan(self, sequences) -> list[pieces.PlannedBatch]:
    """The batches of some proteins."""
    return pieces.plan(
      [len(residues) for residues in sequences],
      max_len=self.max_len,
      row_len=self.row_len,
      batch_size=self.batch_size,
      is_causal=self.is_causal,
    )

  def run(self, batches, ids, sequences) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of each batch.

    Args:
      batches: of `plan`, some or all.
      ids: of the proteins.
      sequences: residues of the proteins.

    Yields:
      name -> [pieces, D] float32, in the order of the batch's places; of
      `per_tok` [residues, D] of `dtype`, those of one piece after another.

    Raises:
      ValueError: numbers that are not finite, or too large for `dtype`.
    """
    waiting = None  # one batch late: the device works while the host collects
    try:
      for batch in batches:
        earlier = waiting
        tokens_BL, segment_ids_BL = batch.fill(sequences)
        waiting = (
          batch,
          _forward(
            self.graphdef, self.layers, self.weights, tokens_BL, segment_ids_BL
          ),
        )
        if earlier:
          yield self._collect(*earlier, ids)
      if waiting:
        yield self._collect(*waiting, ids)
    finally:  # a process that ends while the device works may crash
      jax.block_until_ready(waiting and waiting[1])

  def _collect(self, batch, outputs, ids):
    found = {name: [] for name in self.names}
    for layer, x_BLD in zip(self.repr_layers, outputs, strict=True):
      x_BLD = np.asarray(x_BLD)
      for piece, row, column in batch.places:
        x_LD = x_BLD[row, column + piece.start : column + piece.stop]
        mean_D = x_LD.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean_D).all():
          raise ValueError(
            f'layer {layer} gives numbers that are not finite for '
            f'{ids[piece.protein]}; embed with another --step.'
          )
        vectors = {
          'mean': lambda mean_D=mean_D: mean_D.astype(np.float32),
          'max': lambda x_LD=x_LD: x_LD.max(axis=0),
          'last': lambda x_LD=x_LD: x_LD[-1],
          'bos': lambda x_BLD=x_BLD, r=row, c=column: x_BLD[r, c],
          'per_tok': lambda x_LD=x_LD: to_dtype(x_LD, self.dtype),
        }
        for kind in self.include:
          found[name_of(kind, layer)].append(vectors[kind]())
    return {
      name: np.concatenate(x) if is_per_residue(name) else np.stack(x)
      for name, x in found.items()
    }


def check_include(include: Sequence[str]) -> None:
  """Refuses unknown kinds of vectors, none, and one that is named twice."""
  if isinstance(include, str) or not include:
    raise ValueError(f'include must list some of {_or(INCLUDE)}: {include!r}.')
  for kind in include:
    if kind not in INCLUDE:
      raise ValueError(f'include must list {_or(INCLUDE)}, got {kind!r}.')
    if list(include).count(kind) > 1:
      raise ValueError(f'include names {kind} twice.')


def _check_layers(repr_layers, num_layers):
  """The layers counted from 0."""
  if not repr_layers:
    raise ValueError('repr_layers names no layer; -1 is the last.')
  for layer in repr_layers:
    if not isinstance(layer, int | np.integer):
      raise ValueError(f'repr_layers must be whole numbers, got {layer!r}.')
    if not -num_layers - 1 <= layer <= num_layers:
      raise ValueError(
        f'there is no layer {layer}: this model has {num_layers}, so '
        f'repr_layers go from 0 (its input) to {num_layers}, or from '
        f'{-num_layers - 1} to -1 (the last).'
      )
    if repr_layers.count(layer) > 1:
      raise ValueError(f'repr_layers names {layer} twice.')
  return tuple(layer % (num_layers + 1) for layer in repr_layers)


def _check_whole(name, value, least):
  if not isinstance(value, int | np.integer) or value < least:
    raise ValueError(
      f'{name} must be a whole number, at least {least}, got {value!r}.'
    )


def _or(names):
  return f'{", ".join(names[:-1])} or {names[-1]}'
