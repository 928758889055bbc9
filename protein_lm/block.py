"""One layer of the Transformer.

Axes: B batch, L length, H heads, K head width, D model width (emb_dim),
F MLP width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from protein_lm import attention_sharding
from protein_lm.layer_norm import LayerNorm
from protein_lm.lora import LoraLinear
from protein_lm.positions import rotate

# What the key of a training step is folded with, one number a purpose.
DROPOUT, EMBED_DROPOUT, PROJECTION, MICROBATCH = range(4)


class StepRng(NamedTuple):
  """The key of a training step, and another one for its dropout.

  A model takes it in place of the plain key that serves both.
  """

  step: jax.Array
  dropout: jax.Array


def microbatch_rng(rng, i):
  """The key of the dropout in the i-th part of a step's batch."""
  return jax.random.fold_in(jax.random.fold_in(rng, MICROBATCH), i)


def dropout_rng_of(rng, purpose):
  """The key of a training step's dropout, one for each purpose."""
  rng = rng.dropout if isinstance(rng, StepRng) else rng
  return jax.random.fold_in(rng, purpose)


# Name of the masks, which a rematerialised layer keeps: a draw is slow.
DROPOUT_MASK = 'dropout_mask'


class Block(nnx.Module):
  """One pre-norm Transformer layer: attention, then MLP, both residual."""

  def __init__(self, model, *, rngs):
    """Builds the layer.

    Args:
      model: the FlaxModel whose numbers shape the layer.
      rngs: nnx.Rngs for the initial weights.
    """
    num_heads, head_dim = model.num_heads, model.qkv_dim // model.num_heads

    def dense(name, *args, **kwargs):
      linear = nnx.LinearGeneral
      if model.lora_rank and name in model.lora_targets:
        linear = functools.partial(
          LoraLinear, rank=model.lora_rank, alpha=model.lora_alpha
        )
      return linear(
        *args,
        dtype=model.dtype,
        use_bias=model.use_bias,
        kernel_init=nnx.initializers.xavier_uniform(),
        rngs=rngs,
        **kwargs,
      )

    self.attention_norm = make_norm(model, rngs)
    self.query = dense('query', model.emb_dim, (num_heads, head_dim))
    self.key = dense('key', model.emb_dim, (num_heads, head_dim))
    self.value = dense('value', model.emb_dim, (num_heads, head_dim))
    self.out = dense('out', (num_heads, head_dim), model.emb_dim, axis=(-2, -1))
    self.qk_norm = model.qk_norm
    if self.qk_norm:
      norm = functools.partial(
        nnx.RMSNorm, epsilon=model.norm_eps, dtype=model.dtype, rngs=rngs
      )
      self.query_norm, self.key_norm = norm(head_dim), norm(head_dim)
    self.mlp_norm = make_norm(model, rngs)
    self.mlp_in = dense('mlp_in', model.emb_dim, model.mlp_dim)
    self.mlp_out = dense('mlp_out', model.mlp_dim, model.emb_dim)
    self.gated = model.mlp == 'swiglu'
    self.approximate_gelu = model.mlp == 'gelu'
    if self.gated:
      self.mlp_gate = dense('mlp_gate', model.emb_dim, model.mlp_dim)
    self.causal = model.causal
    self.dropout_rate = model.dropout_rate
    self.attention_dropout_rate = model.attention_dropout_rate

  def __call__(
    self,
    x_BLD,
    attention_fn,
    layer,
    rotation,
    segment_ids_BL,
    rng,
    stats,
    measured_BL=None,
  ):
    """Applies the layer.

    Args:
      x_BLD: the residual stream.
      attention_fn: the attention of this layer.
      layer: index of the layer, may be traced.
      rotation: of the positions, of rotary embeddings, else None.
      segment_ids_BL: attention stays within runs of equal ids.
      rng: key of the training step, or None to run deterministically.
      stats: statistics of this layer's queries and keys, for an attention
        that needs them, or None.
      measured_BL: bool, positions whose queries and keys are measured, or None.

    Returns:
      [B, L, D], and the statistics measured (None unless asked for).
    """
    dropout_rngs = [None] * 3
    if rng is not None:
      dropout_rng = dropout_rng_of(rng, DROPOUT)
      dropout_rngs = jax.random.split(jax.random.fold_in(dropout_rng, layer), 3)
    query_BLHK, key_BLHK, value_BLHK = self.project(x_BLD, rotation)
    measured = None
    if measured_BL is not None:
      measured = attention_sharding.measure(query_BLHK, key_BLHK, measured_BL)
    needs_stats = getattr(attention_fn, 'needs_stats', False)
    attended_BLHK = attention_sharding.attend(
      attention_fn,
      query_BLHK,
      key_BLHK,
      value_BLHK,
      segment_ids=segment_ids_BL,
      is_causal=self.causal,
      rng=_projection_rng(attention_fn, layer, rng),
      deterministic=rng is None,
      dropout_rate=self.attention_dropout_rate,
      dropout_rng=dropout_rngs[0],
      stats=stats if needs_stats else None,
    )
    return self.finish(x_BLD, attended_BLHK, *dropout_rngs[1:]), measured

  def project(self, x_BLD, rotation):
    """Queries, keys and values of every position, [B, L, H, K] each.

    Args:
      x_BLD: the input of the layer.
      rotation: as in a call.
    """
    h_BLD = self.attention_norm(x_BLD)
    query_BLHK, key_BLHK = self.query(h_BLD), self.key(h_BLD)
    if self.qk_norm:
      query_BLHK = self.query_norm(query_BLHK)
      key_BLHK = self.key_norm(key_BLHK)
    if rotation is not None:
      query_BLHK = rotate(query_BLHK, rotation)
      key_BLHK = rotate(key_BLHK, rotation)
    return query_BLHK, key_BLHK, self.value(h_BLD)

  def finish(self, x_BLD, attended_BLHK, out_rng=None, mlp_rng=None):
    """The layer's output from its input and what its attention gave.

    Args:
      x_BLD: the input of the layer.
      attended_BLHK: output of the attention of all heads.
      out_rng: key of the dropout of the first residual branch, or None.
      mlp_rng: that of the second.

    Returns:
      [B, L, D].
    """
    x_BLD += dropout(self.out(attended_BLHK), self.dropout_rate, out_rng)
    h_BLD = self.mlp_norm(x_BLD)
    h_BLF = self.mlp_in(h_BLD)
    if self.gated:
      h_BLF *= jax.nn.silu(self.mlp_gate(h_BLD))
    else:
      h_BLF = jax.nn.gelu(h_BLF, approximate=self.approximate_gelu)
    return x_BLD + dropout(self.mlp_out(h_BLF), self.dropout_rate, mlp_rng)


def make_norm(model, rngs, dtype=None):
  """The normalisation that the model names, over its width, in its dtype."""
  norm = LayerNorm if model.norm == 'layernorm' else nnx.RMSNorm
  return norm(
    model.emb_dim,
    epsilon=model.norm_eps,
    dtype=dtype or model.dtype,
    rngs=rngs,
  )


def dropout(x, rate, rng):
  """Zeroes a share of x and scales the rest; all of x stays without rng."""
  if rng is None or rate == 0:
    return x
  keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
  keep = checkpoint_name(keep, DROPOUT_MASK)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def _projection_rng(attention_fn, layer, step_rng):
  """The key of this layer's random features; None for exact attention."""
  if not hasattr(attention_fn, 'projection_rng'):
    return None
  if isinstance(step_rng, StepRng):
    step_rng = step_rng.step
  if step_rng is not None:
    step_rng = jax.random.fold_in(step_rng, PROJECTION)
  return attention_fn.projection_rng(layer, step_rng)
