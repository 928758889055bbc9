"""The layers of a model one after another: scanned or not, rematerialised.

Axes: B batch, L length, D model width, N layers, P layers of a pattern of
attentions, G such patterns.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fast_attention import FastAttention, residuals
from protein_lm import sharding
from protein_lm.block import DROPOUT_MASK

Remat = Literal['none', 'dots', 'states', 'full']

# What jax.checkpoint keeps of a layer; None is nothing.
_SAVED = {
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(residuals.NAME, DROPOUT_MASK),
  ),
  'full': None,
}
_SAVED['states'] = _SAVED['dots']


def apply_layers(
  model, x_BLD, rotation, segment_ids_BL, rng, stats, measured_BL
):
  """The output of the last layer, and what all layers measured.

  Args:
    model: the FlaxModel: its stacked `blocks`, its attentions, and how it runs
      them (`scan_layers`, `remat`).
    x_BLD: input of the first layer.
    rotation: of the positions, of rotary embeddings, else None.
    segment_ids_BL: attention stays within runs of equal ids.
    rng: key of the training step, or None to run deterministically.
    stats: statistics of queries and keys, with leading axis N, or ().
    measured_BL: bool, positions whose queries and keys are measured, or None.

  Returns:
    [B, L, D], and the statistics measured, with leading axis N, or None.
  """
  graphdef, params_N = nnx.split(model.blocks)
  num_layers, fns = model.num_layers, model.attention_fns
  if model.remat == 'states':
    fns = tuple(map(_keeping_states, fns))

  def apply_layer(x_BLD, layer, params, stats, fn):
    block = nnx.merge(graphdef, params)
    x_BLD, measured = block(
      x_BLD,
      fn,
      layer,
      rotation,
      segment_ids_BL,
      rng,
      stats,
      measured_BL,
    )
    return sharding.constrain(x_BLD), measured

  # Whole patterns of layers are scanned; what remains is unrolled.
  period = len(fns) if model.scan_layers else num_layers
  num_scanned = num_layers // period * period
  if num_scanned <= period:
    num_scanned = 0
  if model.remat != 'none':
    apply_layer = jax.checkpoint(
      apply_layer,
      static_argnums=(4,),
      prevent_cse=num_scanned < num_layers,
      policy=_SAVED[model.remat],
    )

  def apply_pattern(x_BLD, inputs):
    layers_P, params_P, stats_P = inputs
    measured_P = []
    for p in range(layers_P.shape[0]):
      params, stats = jax.tree.map(lambda a, p=p: a[p], (params_P, stats_P))
      x_BLD, measured = apply_layer(
        x_BLD, layers_P[p], params, stats, fns[p % len(fns)]
      )
      measured_P.append(measured)
    return x_BLD, jax.tree.map(lambda *x: jnp.stack(x), *measured_P)

  inputs_N = (jnp.arange(num_layers), params_N, stats)
  measured = []
  if num_scanned:
    inputs_GP = jax.tree.map(
      lambda a: a[:num_scanned].reshape(-1, period, *a.shape[1:]), inputs_N
    )
    x_BLD, measured_GP = jax.lax.scan(apply_pattern, x_BLD, inputs_GP)
    measured.append(
      jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), measured_GP)
    )
    inputs_N = jax.tree.map(lambda a: a[num_scanned:], inputs_N)
  if num_scanned < num_layers:
    x_BLD, measured_P = apply_pattern(x_BLD, inputs_N)
    measured.append(measured_P)
  return x_BLD, jax.tree.map(lambda *a: jnp.concatenate(a), *measured)


def _keeping_states(attention_fn):
  """The attention, which keeps its states for the backward pass if it can."""
  if isinstance(attention_fn, FastAttention):
    return dataclasses.replace(attention_fn, keep_states=True)
  return attention_fn
