"""The output of a masked model with a layer of its own, as in ESM-2.

Axes: B batch, L length, D model width (emb_dim), V vocabulary.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from protein_lm.block import make_norm


class DenseHead(nnx.Module):
  """logits = norm(gelu(dense(x))) W + b, in float32 (arXiv 1810.04805, 3.1).

  W is the transposed embedding where these are tied; the model multiplies by
  it, and the head holds b alone.
  """

  def __init__(self, model, *, rngs):
    """Builds the head.

    Args:
      model: the FlaxModel whose numbers shape it.
      rngs: nnx.Rngs for the initial weights.
    """
    self.dense = nnx.Linear(
      model.emb_dim,
      model.emb_dim,
      use_bias=model.use_bias,
      kernel_init=nnx.initializers.normal(0.02),
      rngs=rngs,
    )
    self.norm = make_norm(model, rngs, jnp.float32)
    if not model.tie_embeddings:
      self.linear = nnx.Linear(
        model.emb_dim,
        model.vocab_size,
        use_bias=model.use_bias,
        kernel_init=nnx.initializers.normal(0.02),
        rngs=rngs,
      )
    elif model.use_bias:
      self.bias = nnx.Param(jnp.zeros(model.vocab_size))

  def features(self, x_BLD):
    """What the last product is taken of, [B, L, D]."""
    h_BLD = jax.nn.gelu(self.dense(x_BLD), approximate=False)
    return self.norm(h_BLD)

  def __call__(self, x_BLD):
    """Logits [B, L, V] of a head that is not tied."""
    return self.linear(self.features(x_BLD))
