"""What every layer of a model makes of its tokens.

Layers are counted as in fair-esm: 0 is the input of the first layer, n the
output of layer n, and the last one, N, is taken after the final norm.

Axes: B batch, L length, D model width, N layers.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from protein_lm import vocab
from protein_lm.positions import positions_in_segments


def layer_outputs(model, tokens, layers, *, segment_ids=None):
  """The residual stream at some layers.

  Args:
    model: any FlaxModel.
    tokens: [B, L] int token ids.
    layers: from 0 to N; N is what `model.hidden` gives.
    segment_ids: as in a call of the model.

  Returns:
    A list of [B, L, D] float32, one for each of `layers`.
  """
  if segment_ids is None:
    segment_ids = (tokens != vocab.PAD_ID).astype(jnp.int32)
  positions = positions_in_segments(segment_ids)
  rotation = model.rotation(positions)
  stats = getattr(model, 'attention_stats', None)
  stats = stats if stats is None else stats.get_value()
  graphdef, params_N = nnx.split(model.blocks)
  fns = model.attention_fns

  def apply(fn, x_BLD, layer, params, stats):
    block = nnx.merge(graphdef, params)
    return block(x_BLD, fn, layer, rotation, segment_ids, None, stats)[0]

  def step(x_BLD, inputs):
    layer, params, stats = inputs
    branches = [functools.partial(apply, fn) for fn in fns]
    index = layer % len(fns)
    return jax.lax.switch(index, branches, x_BLD, layer, params, stats), None

  # One scan from each layer that is asked for to the next.
  x_BLD = model.embed_tokens(tokens, positions, segment_ids)
  found = {}
  inputs_N = (jnp.arange(model.num_layers), params_N, stats)
  last = 0
  for layer in sorted(set(layers)):
    its_inputs = jax.tree.map(lambda a, i=last, j=layer: a[i:j], inputs_N)
    if layer > last:
      x_BLD, _ = jax.lax.scan(step, x_BLD, its_inputs)
    is_last = layer == model.num_layers
    found[layer] = model.final_norm(x_BLD) if is_last else x_BLD
    last = layer
  return [found[layer].astype(jnp.float32) for layer in layers]
