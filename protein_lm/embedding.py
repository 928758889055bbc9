"""Embeddings of proteins in memory: what the layers of a model make of them.

Vectors are of residues only, without BOS and EOS: `mean` and `max` over them,
`last` of the last one, `per_tok` of each; `bos` of BOS, of models that are not
causal. Layers are counted as layer_outputs.py says.

Axes: L length, D model width, N layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from protein_lm import vocab
from protein_lm.datasets import letters
from protein_lm.embedder import INCLUDE, Embedder
from protein_lm.embedding_arrays import combine, name_of

# Keys of what `embed` returns, named as fair-esm's extract.py names its own.
_KEYS = {'per_tok': 'representations'} | {
  kind: f'{kind}_representations' for kind in INCLUDE[:-1]
}


def embed(
  loaded,
  sequences: Sequence[str] | Mapping[str, str],
  *,
  repr_layers: Sequence[int] = (-1,),
  include: Sequence[str] = ('mean',),
  batch_size: int | None = None,
  max_len: int | None = None,
) -> list[dict[str, Any]]:
  """Embeds proteins, all in memory.

  Args:
    loaded: of `protein_lm.load`, of any kind of model.
    sequences: proteins, or id -> protein; an id of a list is its index.
    repr_layers: from 0, the input of the first layer, to N; or from the end,
      -1 being N.
    include: some of INCLUDE.
    batch_size: rows of data.max_len tokens that are computed at once; default
      data.batch_size.
    max_len: tokens, BOS and EOS among them, up to which a protein is read in
      one pass, and longer ones in windows; default MAX_LEN, and data.max_len
      for a model with a learned table of positions.

  Returns:
    A dict a protein, in order: `id`, `length`, and of what was included
    `mean_representations`, `max_representations`, `last_representations`,
    `bos_representations` (layer as asked for -> [D] float32) and
    `representations` (layer -> [L, D], of `per_tok`).

  Raises:
    ValueError: a layer that the model lacks, an unknown word in include, bos
      of a causal model, a letter that is no residue, an empty protein.

  Example:
    loaded = protein_lm.load('runs/quickstart')
    (found,) = embedding.embed(loaded, ['MKTAYIAKQR'], repr_layers=(0, -1))
    found['mean_representations'][-1]  # [D]
  """
  if isinstance(sequences, str):
    raise ValueError(
      'sequences must be a list of proteins or a dict of id to protein, got '
      'one string; write [sequence].'
    )
  if not isinstance(sequences, Mapping):
    sequences = dict(enumerate(sequences))
  embedder = Embedder.of(
    loaded,
    repr_layers=repr_layers,
    include=include,
    batch_size=batch_size,
    max_len=max_len,
  )
  ids = [str(id_) for id_ in sequences]
  encoded = [encode(id_, x) for id_, x in sequences.items()]
  batches = embedder.plan(encoded)
  outputs = list(embedder.run(batches, ids, encoded))
  results = []
  for id_, residues, arrays in zip(
    ids, encoded, combine(len(ids), batches, outputs), strict=True
  ):
    result = {'id': id_, 'length': len(residues)}
    for kind in embedder.include:
      result[_KEYS[kind]] = {
        layer: arrays[name_of(kind, layer)] for layer in embedder.repr_layers
      }
    results.append(result)
  return results


def encode(id_, sequence: str) -> np.ndarray:
  """Residues [L] uint8 of letters as they stand in a FASTA file.

  Raises:
    ValueError: names the protein, for a symbol or for no letter at all.
  """
  try:
    cleaned, _, _ = letters.DEFAULT.clean(sequence.encode())
    residues = vocab.encode(cleaned.decode().replace('J', 'X'))
  except ValueError as error:
    raise ValueError(f'sequence {id_!r}: {error}') from error
  if not len(residues):
    raise ValueError(f'sequence {id_!r} holds no residue.')
  return residues
