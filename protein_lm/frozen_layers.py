"""Keeps the lowest layers of a model as they are, bit for bit.

Layers are stacked in one array a parameter (axis N), so a pattern of names
cannot tell them apart; a mask along that axis can.
"""

import jax
import jax.numpy as jnp
import optax

_BELOW = ('embed', 'embed_norm', 'position_table')  # what feeds the first layer
_STACKED = 'blocks'


def freeze_layers(tx, num_frozen):
  """A transformation that leaves the embedding and the first layers alone.

  Neither gradients nor weight decay reach them, and they count in no clipping.
  Their moments are kept, as zeros. With tied embeddings the output is frozen
  too.

  Args:
    tx: optax transformation of the whole tree of parameters.
    num_frozen: layers frozen, from the input on; 0 returns tx.

  Returns:
    An optax.GradientTransformation with the state of tx.

  Raises:
    ValueError: for a negative number, or, at init, for one that leaves no
      layer to train.
  """
  if num_frozen < 0:
    raise ValueError(
      f'make_optimizer.frozen_layers must be at least 0, got {num_frozen}.'
    )
  if not num_frozen:
    return tx

  def masked(path, x):
    top = getattr(path[0], 'key', None)
    if top in _BELOW:
      return jnp.zeros_like(x)
    if top != _STACKED:
      return x
    is_trained_N = jnp.arange(x.shape[0]) >= num_frozen
    shape = (-1, *[1] * (x.ndim - 1))
    return jnp.where(is_trained_N.reshape(shape), x, jnp.zeros_like(x))

  def mask(tree):
    return jax.tree_util.tree_map_with_path(masked, tree)

  def init(params):
    stacked = jax.tree.leaves(params.get(_STACKED, ()))
    num_layers = stacked[0].shape[0] if stacked else 0
    if num_frozen >= num_layers:
      raise ValueError(
        f'make_optimizer.frozen_layers = {num_frozen} leaves none of '
        f'{num_layers} layers to train; to train a head alone bind '
        "make_optimizer.trainable = ('head/*',)."
      )
    return tx.init(params)

  def update(grads, state, params=None):
    updates, state = tx.update(mask(grads), state, params)
    return mask(updates), state

  return optax.GradientTransformation(init, update)
