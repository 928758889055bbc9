"""One tensor of a Hugging Face model, and where its numbers lie in ours.

There a layer has tensors of its own and a kernel is [out, in]; here layers are
stacked on axis N and a kernel is [in, out], its axes split by heads.
"""

from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
  """A tensor by both names.

  Attributes:
    hf: name there.
    ours: path name in our parameters.
    shape: there.
    layer: index on axis N; None outside of the layers.
    is_kernel: transposed here.
    has_tokens: axis 0 there is the vocabulary, in the order there.
    absent: number of a token that our model lacks.
    first_row: of axis 0 there, rows before which are zeros and not ours.
  """

  hf: str
  ours: str
  shape: tuple[int, ...]
  layer: int | None = None
  is_kernel: bool = False
  has_tokens: bool = False
  absent: float = 0.0
  first_row: int = 0


def gather(tensors, read, shapes, token_ids=None):
  """Our parameters from theirs.

  Args:
    tensors: sequence of Tensor.
    read: gives the numpy array of a name there.
    shapes: path name -> shape of our parameters.
    token_ids: for each of our token ids the id there.

  Returns:
    Path name -> float32 array.
  """
  params = {}
  for tensor in tensors:
    array = np.asarray(read(tensor.hf)).astype(np.float32)
    array = array[tensor.first_row :]
    if tensor.has_tokens:
      array = array[token_ids]
    if tensor.is_kernel:
      array = array.T
    shape = shapes[tensor.ours]
    if tensor.layer is None:
      params[tensor.ours] = array.reshape(shape)
    else:
      stacked = params.setdefault(tensor.ours, np.empty(shape, np.float32))
      stacked[tensor.layer] = array.reshape(shape[1:])
  return params


def scatter(tensors, params, token_ids=None):
  """Their tensors from our parameters, the inverse of `gather`.

  Args:
    tensors: sequence of Tensor.
    params: path name -> array.
    token_ids: for each of our token ids the id there.

  Returns:
    Name there -> float32 array.
  """
  found = {}
  for tensor in tensors:
    array = np.asarray(params[tensor.ours])
    if tensor.layer is not None:
      array = array[tensor.layer]
    shape = (tensor.shape[0] - tensor.first_row, *tensor.shape[1:])
    if tensor.has_tokens:
      shape = (len(token_ids), *shape[1:])
    if tensor.is_kernel:
      array = array.reshape(shape[::-1]).T
    array = array.reshape(shape)
    if tensor.has_tokens:
      rows = np.full(tensor.shape, tensor.absent, array.dtype)
      rows[token_ids] = array
      array = rows
    if tensor.first_row:
      zeros = np.zeros((tensor.first_row, *shape[1:]), array.dtype)
      array = np.concatenate([zeros, array])
    found[tensor.hf] = array
  return found


def flattened(params):
  """Path name -> leaf of a nested dict of parameters."""
  import jax

  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }


def without_scale(model, params, output):
  """Parameters of the same function without the sqrt(D) of the embeddings.

  Args:
    model: a FlaxModel, for its options.
    params: path name -> array.
    output: path name of the kernel of an output layer that is not tied.

  Returns:
    (path name -> array, whether the output is still tied to the embedding).
  """
  if not model.scale_embeddings:
    return params, model.tie_embeddings
  scale = np.float32(model.emb_dim**0.5)
  embedding_VD = params['embed/embedding']
  params = {**params, 'embed/embedding': embedding_VD * scale}
  if model.tie_embeddings:  # the two factors differ, so it gets its own
    params[output] = embedding_VD.T / scale
  return params, False
