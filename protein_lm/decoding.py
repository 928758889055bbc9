"""Decoding with a causal model: a prompt at once, then a token at a time.

What the past amounts to is a state for each layer: running sums of fixed size
for fast attention, all keys and values for exact attention.

Axes: B batch, L length, H heads, K head width, D model width, M features,
V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fast_attention import FastAttention, lower_variance
from protein_lm import train_step as steps
from protein_lm import vocab
from protein_lm.exact_attention import ExactAttention

_LEAST_BUCKET = 32  # tokens
_ROOM_MULTIPLE = 64  # tokens; lengths in between share a compiled program


class Layer(NamedTuple):
  """What a layer decodes with.

  Attributes:
    params: of its Block.
    projection: [H, M, K], of a fast attention with random features.
    stats: lower_variance.Reshaping, of an attention that needs statistics.
  """

  params: Any
  projection: jax.Array | None
  stats: Any


def check(model) -> None:
  """Refuses models that cannot decode, each with the way out.

  Raises:
    ValueError: the model is not causal, or an attention has no state.
  """
  if model.objective != 'causal':
    raise ValueError(
      f'{type(model).__name__} does not write from left to right: that takes a '
      'FlaxLM. A FlaxBERT fills gaps, --infill=MK____LLVA or infill().'
    )
  for fn in model.attention_fns:
    if not isinstance(fn, FastAttention | ExactAttention):
      raise ValueError(
        f'{type(fn).__name__} has no state to decode with; bind another, such '
        'as FlaxModel.attention_fn = @exact_attention().'
      )


@functools.partial(jax.jit, static_argnums=0)
def split_layers(graphdef, weights) -> list[Layer]:
  """What each layer decodes with, computed once.

  Args:
    graphdef: of a FlaxLM.
    weights: train_step.Weights.

  Returns:
    The layers in order.
  """
  model = steps.merge_model(graphdef, weights)
  params_N = nnx.to_pure_dict(nnx.split(model.blocks)[1])
  head_dim = model.qkv_dim // model.num_heads
  layers = []
  for layer, fn in _attentions(model):
    params = jax.tree.map(lambda x, layer=layer: x[layer], params_N)
    projection = stats = None
    if isinstance(fn, FastAttention):
      rng = fn.projection_rng(layer)
      projection = fn.projection(rng, model.num_heads, head_dim)
      if fn.needs_stats:
        stats = lower_variance.reshaping(
          fn.features_type,
          jax.tree.map(
            lambda x, layer=layer: x[layer], weights.attention_stats
          ),
          head_dim,
        )
    layers.append(Layer(params, projection, stats))
  return layers


def _attentions(model):
  """Yields the number and the attention of each layer."""
  for layer in range(model.num_layers):
    yield layer, model.attention_fns[layer % len(model.attention_fns)]


def room_for(num_tokens: int) -> int:
  """The tokens that a cache is made for, so that lengths share programs."""
  return -(-num_tokens // _ROOM_MULTIPLE) * _ROOM_MULTIPLE


def bucket_of(num_tokens: int, most: int) -> int:
  """The padded length of a prompt: a power of two, but not above `most`."""
  return min(max(_LEAST_BUCKET, 1 << (num_tokens - 1).bit_length()), most)


def init_states(model, batch_size: int, room: int):
  """The states of all layers before the first token."""
  head_dim = model.qkv_dim // model.num_heads
  states = []
  for _, fn in _attentions(model):
    if isinstance(fn, ExactAttention):
      states.append(
        fn.init_state(batch_size, model.num_heads, head_dim, room, model.dtype)
      )
    else:
      states.append(fn.init_state((batch_size,), model.num_heads, head_dim))
  return states


@functools.partial(jax.jit, static_argnums=(0, 5))
def prefill(graphdef, weights, layers, tokens_BL, length, room: int):
  """The states after a prompt.

  Args:
    graphdef: of a FlaxLM.
    weights: train_step.Weights.
    layers: of split_layers.
    tokens_BL: prompts of one length, padded on the right.
    length: [] int, that length.
    room: tokens that the states can hold; at least L.

  Returns:
    A list of states, whose arrays begin with the axis B.
  """
  model = steps.merge_model(graphdef, weights)
  positions_BL = jnp.broadcast_to(
    jnp.arange(tokens_BL.shape[1]), tokens_BL.shape
  )
  is_prompt_BL = positions_BL < length
  states = []

  def attend(fn, layer, query, key, value):
    if isinstance(fn, ExactAttention):
      out_BLHK, state = fn.prefill(query, key, value, room)
    else:
      out_BLHK, state = fn.prefill(
        query,
        key,
        value,
        mask=is_prompt_BL[:, None, None],
        projection=layer.projection,
        stats=layer.stats,
      )
    states.append(state)
    return out_BLHK

  _run(model, layers, tokens_BL, positions_BL, attend)
  return states


def step(model, layers, token_B, position, states):
  """Logits of the next token, and the states after this one.

  Args:
    model: FlaxLM.
    layers: of split_layers.
    token_B: int, the token at `position` of each sequence.
    position: [] int, tokens before it.
    states: after these.

  Returns:
    ([B, V] float32, the next states).
  """
  next_states = []

  def attend(fn, layer, query, key, value):
    state = states[len(next_states)]
    if isinstance(fn, ExactAttention):
      out_B1HK, state = fn.step(query, key, value, state, position)
    else:
      out_B1HK, state = fn.step(
        query,
        key,
        value,
        state,
        projection=layer.projection,
        stats=layer.stats,
      )
    next_states.append(state)
    return out_B1HK

  positions_B1 = jnp.full((len(token_B), 1), position)
  x_B1D = _run(model, layers, token_B[:, None], positions_B1, attend)
  return model.logits(model.final_norm(x_B1D))[:, 0], next_states


def _run(model, layers, tokens_BL, positions_BL, attend):
  """The output of the last layer."""
  graphdef, _ = nnx.split(model.blocks)
  x_BLD = model.embed_tokens(tokens_BL, positions_BL)
  rotation = model.rotation(positions_BL)
  for (_, fn), layer in zip(_attentions(model), layers, strict=True):
    block = nnx.merge(graphdef, nnx.State(layer.params))
    query_BLHK, key_BLHK, value_BLHK = block.project(x_BLD, rotation)
    attended_BLHK = attend(fn, layer, query_BLHK, key_BLHK, value_BLHK)
    x_BLD = block.finish(x_BLD, attended_BLHK)
  return x_BLD


def start(model, graphdef, weights, layers, prompt_L, batch_size, max_tokens):
  """The states with which to read the last token of a prompt.

  Args:
    model: FlaxLM.
    graphdef: its graph.
    weights: train_step.Weights.
    layers: of split_layers.
    prompt_L: numpy ints, BOS first; the same for all sequences.
    batch_size: B.
    max_tokens: tokens that will be read, the prompt included.

  Returns:
    A list of states after all tokens but the last.
  """
  room = room_for(max_tokens)
  num_before = len(prompt_L) - 1
  if not num_before:
    return init_states(model, batch_size, room)
  most = room
  if model.position_embedding == 'learned':
    most = min(room, model.max_len)
  tokens_1L = jnp.full((1, bucket_of(num_before, most)), vocab.PAD_ID)
  tokens_1L = tokens_1L.at[0, :num_before].set(prompt_L[:-1])
  states = prefill(graphdef, weights, layers, tokens_1L, num_before, room)
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x, (batch_size, *x.shape[1:])), states
  )
