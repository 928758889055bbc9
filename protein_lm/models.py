"""Transformer language models of proteins: FlaxLM (causal), FlaxBERT (masked).

Axes: B batch, L length, H heads, K head width, D model width (emb_dim),
F MLP width, V vocabulary, N layers.

The tree of parameters depends on the architecture alone, never on
`attention_fn`, `scan_layers` or `remat`: layers are stacked on a leading axis
N, so one checkpoint runs under every attention.
"""

from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp
from flax import nnx

from fast_attention import lower_variance
from protein_lm import layer_stack, model_check, sharding, vocab
from protein_lm.block import (
  EMBED_DROPOUT,
  Block,
  dropout,
  dropout_rng_of,
  make_norm,
)
from protein_lm.exact_attention import exact_attention
from protein_lm.layer_stack import Remat
from protein_lm.model_check import (
  Dtype,
  Mlp,
  Norm,
  OutputHead,
  PositionEmbedding,
  RotaryDtype,
)
from protein_lm.output_head import DenseHead
from protein_lm.positions import positions_in_segments, rotation, sinusoid
from protein_lm.token_dropout import token_dropout


class AttentionStats(nnx.Variable):
  """Statistics of queries and keys, of every layer (leading axis N)."""


@gin.configurable
class FlaxModel(nnx.Module):
  """A Transformer over protein tokens; use FlaxLM or FlaxBERT.

  Bindings of `FlaxModel` in gin reach both.

  `attention_stats`, AttentionStats or None, is set where a model is merged with
  its state (train_step.merge_model); a training call leaves those of its batch
  in `measured_stats`.
  """

  causal = None
  objective = None

  def __init__(
    self,
    attention_fn: Callable | tuple[Callable, ...] | None = None,
    vocab_size: int = vocab.SIZE,
    emb_dim: int = 512,
    qkv_dim: int = 512,
    mlp_dim: int = 2048,
    num_layers: int = 6,
    num_heads: int = 8,
    max_len: int = 512,
    dropout_rate: float = 0.1,
    attention_dropout_rate: float = 0.0,
    position_embedding: PositionEmbedding = 'learned',
    norm: Norm = 'layernorm',
    mlp: Mlp = 'gelu',
    tie_embeddings: bool = False,
    qk_norm: bool = False,
    dtype: Dtype = 'float32',
    scan_layers: bool = True,
    remat: bool | Remat = 'dots',
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    lora_targets: tuple[str, ...] = ('query', 'value'),
    use_bias: bool | None = None,
    norm_eps: float = 1e-6,
    norm_embeddings: bool = False,
    scale_embeddings: bool = True,
    token_dropout: bool = False,
    output_head: OutputHead = 'linear',
    rotary_dtype: RotaryDtype = 'float32',
    *,
    rngs: nnx.Rngs,
  ):
    """Builds the model.

    Args:
      attention_fn: one callable, or a tuple of them repeated over the layers
        (hybrids). None is exact attention.
      vocab_size: number of token ids, V.
      emb_dim: model width, D.
      qkv_dim: width of all heads together, H x K.
      mlp_dim: MLP width, F.
      num_layers: N.
      num_heads: H.
      max_len: rows of a learned position table; the other position embeddings
        take sequences of any length.
      dropout_rate: of embeddings and of both residual branches.
      attention_dropout_rate: of attention weights; fast attention refuses it.
      position_embedding: 'learned' (started from the sinusoid), 'sinusoidal'
        or 'rotary'.
      norm: 'layernorm' or 'rmsnorm'.
      mlp: 'gelu' (its tanh approximation), 'gelu_exact' (with erf) or 'swiglu'
        (arXiv 2002.05202).
      tie_embeddings: the output layer is the transposed input embedding.
      qk_norm: RMSNorm with a learned scale on the queries and keys of a head.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters and logits
        stay float32.
      scan_layers: compile one layer and scan over it.
      remat: what of a layer the backward pass computes again instead of
        storing it: 'none' (or False) nothing; 'dots' all but the products with
        weights, the output of attention and the dropout masks, which takes
        less memory and on CPU less time; 'states' the same, but the states of
        fast attention are kept too (FastAttention.keep_states), which takes
        less time yet; 'full' (or True) everything, which takes the least memory
        and the time of a forward pass.
      lora_rank: rank of the factors beside the kernels that lora_targets names
        (lora.py); 0 for none.
      lora_alpha: their product counts lora_alpha / lora_rank.
      lora_targets: some of query, key, value, out, mlp_in, mlp_out, mlp_gate.
      use_bias: biases in the linear layers and the output layer; None has them
        with 'layernorm', and none with 'rmsnorm'.
      norm_eps: added to the variance in every normalisation.
      norm_embeddings: normalises the input of the first layer.
      scale_embeddings: multiplies embeddings by sqrt(D), and tied ones at the
        output by 1 / sqrt(D).
      token_dropout: of a masked model, MASK is read as zeros and the other
        tokens are scaled up for it (token_dropout.py).
      output_head: 'linear', or 'dense': a dense layer, exact GELU and a
        normalisation stand before it, as in ESM-2.
      rotary_dtype: 'float16' rounds the frequencies of rotary positions, as
        models do that were trained in half precision.
      rngs: nnx.Rngs for the initial weights.

    Raises:
      ValueError: for a contradiction among these, or between the model and an
        attention (its direction, attention dropout).
    """
    self.emb_dim, self.qkv_dim, self.mlp_dim = emb_dim, qkv_dim, mlp_dim
    self.num_layers, self.num_heads = num_layers, num_heads
    self.vocab_size, self.max_len = vocab_size, max_len
    self.dropout_rate = dropout_rate
    self.attention_dropout_rate = attention_dropout_rate
    self.position_embedding, self.norm, self.mlp = position_embedding, norm, mlp
    self.tie_embeddings, self.qk_norm = tie_embeddings, qk_norm
    self.dtype = str(dtype)
    self.scan_layers = scan_layers
    self.remat = {False: 'none', True: 'full'}.get(remat, remat)
    self.lora_rank, self.lora_alpha = lora_rank, lora_alpha
    self.lora_targets = tuple(lora_targets)
    self.use_bias = norm == 'layernorm' if use_bias is None else use_bias
    self.norm_eps, self.norm_embeddings = norm_eps, norm_embeddings
    self.scale_embeddings = scale_embeddings
    self.token_dropout, self.output_head = token_dropout, output_head
    self.rotary_dtype = str(rotary_dtype)
    if attention_fn is None:
      attention_fn = exact_attention()
    if not isinstance(attention_fn, (tuple, list)):
      attention_fn = (attention_fn,)
    self.attention_fns = tuple(attention_fn)
    model_check.check(self)

    stddev = emb_dim**-0.5 if scale_embeddings else 0.02  # 0.02 as ESM-2
    self.embed = nnx.Embed(
      vocab_size,
      emb_dim,
      embedding_init=nnx.initializers.normal(stddev),
      dtype=self.dtype,
      rngs=rngs,
    )
    if position_embedding == 'learned':
      self.position_table = nnx.Param(sinusoid(jnp.arange(max_len), emb_dim))
    if norm_embeddings:
      self.embed_norm = make_norm(self, rngs)

    @nnx.split_rngs(splits=num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make_blocks(rngs):
      return Block(self, rngs=rngs)

    self.blocks = make_blocks(rngs)
    self.final_norm = make_norm(self, rngs)
    self._make_output(rngs)

  def _make_output(self, rngs):
    if self.output_head == 'dense':
      self.output = DenseHead(self, rngs=rngs)
    elif not self.tie_embeddings:
      self.output = nnx.Linear(
        self.emb_dim,
        self.vocab_size,
        use_bias=self.use_bias,
        kernel_init=nnx.initializers.normal(0.02),
        rngs=rngs,
      )

  def __call__(
    self,
    tokens,
    *,
    positions=None,
    segment_ids=None,
    rng=None,
    deterministic=True,
    stats=None,
  ):
    """Logits of every position.

    Args:
      tokens: [B, L] int token ids.
      positions: [B, L] int; counted within segments if None.
      segment_ids: [B, L] int, attention stays within runs of equal ids; if
        None, padding (`vocab.PAD_ID`) is one segment and the rest another.
      rng: key of the training step, for dropout and redrawn projections.
      deterministic: True evaluates; False trains and needs rng.
      stats: statistics of queries and keys, with leading axis N, for an
        attention that needs them; default the model's `attention_stats`.

    Returns:
      [B, L, V] float32. FlaxLM's logits at t are of token t + 1, FlaxBERT's
      of token t.

    Raises:
      ValueError: if a learned position table is shorter than L, or rng is
        missing.
    """
    x_BLD = self.hidden(
      tokens,
      positions=positions,
      segment_ids=segment_ids,
      rng=rng,
      deterministic=deterministic,
      stats=stats,
    )
    return self.logits(x_BLD)

  def logits(self, x_BLD):
    """Logits [B, L, V], float32, of what `hidden` gives."""
    x_BLD = x_BLD.astype(jnp.float32)
    if not self.tie_embeddings:
      return self.output(x_BLD)
    is_dense = self.output_head == 'dense'
    if is_dense:
      x_BLD = self.output.features(x_BLD)
    embedding_VD = self.embed.embedding[...].astype(jnp.float32)
    if self.scale_embeddings:
      x_BLD *= self.emb_dim**-0.5
    logits_BLV = jnp.einsum('bld,vd->blv', x_BLD, embedding_VD)
    if is_dense and self.use_bias:
      logits_BLV += self.output.bias[...][None, None]
    return logits_BLV

  def hidden(
    self,
    tokens,
    *,
    positions=None,
    segment_ids=None,
    rng=None,
    deterministic=True,
    stats=None,
  ):
    """The last layer's normalised output, [B, L, D]; arguments as __call__."""
    if deterministic:
      rng = None
    elif rng is None:
      raise ValueError('training (deterministic=False) needs rng, got None.')
    if stats is None and getattr(self, 'attention_stats', None) is not None:
      stats = self.attention_stats.get_value()
    measures = self.needs_attention_stats and rng is not None
    x_BLD, measured = self._run(
      tokens, positions, segment_ids, rng, stats, measures
    )
    if measures:
      self.measured_stats = AttentionStats(measured)
    return self.final_norm(x_BLD)

  def _run(self, tokens, positions, segment_ids, rng, stats, measures):
    """The output of the last layer, and what all layers measured."""
    if segment_ids is None:
      segment_ids = (tokens != vocab.PAD_ID).astype(jnp.int32)
    if positions is None:
      positions = positions_in_segments(segment_ids)
    x_BLD = sharding.constrain(
      self.embed_tokens(tokens, positions, segment_ids)
    )
    if rng is not None:
      embed_rng = dropout_rng_of(rng, EMBED_DROPOUT)
      x_BLD = dropout(x_BLD, self.dropout_rate, embed_rng)
    measured_BL = tokens != vocab.PAD_ID if measures else None
    return layer_stack.apply_layers(
      self,
      x_BLD,
      self.rotation(positions),
      segment_ids,
      rng,
      stats,
      measured_BL,
    )

  @property
  def needs_attention_stats(self):
    """Whether an attention of this model needs statistics."""
    return any(getattr(fn, 'needs_stats', False) for fn in self.attention_fns)

  def init_attention_stats(self):
    """Statistics of nothing, with leading axis N; () if none are needed."""
    if not self.needs_attention_stats:
      return ()
    head_dim = self.qkv_dim // self.num_heads
    stats = lower_variance.init(self.num_heads, head_dim)
    return jax.tree.map(
      lambda x: jnp.zeros((self.num_layers, *x.shape), x.dtype), stats
    )

  def measure_attention_stats(self, tokens, *, segment_ids=None, stats=None):
    """Statistics of every layer's queries and keys in a batch.

    Args:
      tokens: [B, L] int token ids.
      segment_ids: as in a call.
      stats: those that the attention uses meanwhile; default none yet, with
        which it uses plain positive features.

    Returns:
      lower_variance.Statistics with leading axis N, of weight 1.
    """
    stats = self.init_attention_stats() if stats is None else stats
    return self._run(tokens, None, segment_ids, None, stats, True)[1]

  def embed_tokens(self, tokens, positions, segment_ids=None):
    """The input of the first layer, [B, L, D]; masked models want segments."""
    x_BLD = self.embed(tokens)
    if self.scale_embeddings:
      # Rows of the table have unit variance, as positions do.
      x_BLD = x_BLD * self.emb_dim**0.5
    if self.token_dropout:
      x_BLD = token_dropout(x_BLD, tokens, segment_ids)
    x_BLD = self._add_positions(x_BLD, positions)
    return self.embed_norm(x_BLD) if self.norm_embeddings else x_BLD

  def rotation(self, positions_BL):
    """What every layer rotates queries and keys by; None unless rotary."""
    if self.position_embedding != 'rotary':
      return None
    head_dim = self.qkv_dim // self.num_heads
    return rotation(positions_BL, head_dim, self.rotary_dtype)

  def _add_positions(self, x_BLD, positions_BL):
    if self.position_embedding == 'rotary':
      return x_BLD
    if self.position_embedding == 'sinusoidal':
      return x_BLD + sinusoid(positions_BL, self.emb_dim).astype(x_BLD.dtype)
    if x_BLD.shape[1] > self.max_len:
      raise ValueError(
        f'the learned position table ends at max_len={self.max_len}, got '
        f'{x_BLD.shape[1]} tokens; score in windows, or train with '
        "position_embedding = 'rotary'."
      )
    # A position past the table is NaN, never its last row.
    table_LD = self.position_table[...].astype(x_BLD.dtype)
    return x_BLD + table_LD.at[positions_BL].get(
      mode='fill', fill_value=jnp.nan
    )


@gin.configurable
class FlaxLM(FlaxModel):
  """Causal language model: position t predicts token t + 1."""

  causal = True
  objective = 'causal'


@gin.configurable
class FlaxBERT(FlaxModel):
  """Masked language model: every position sees the whole protein."""

  causal = False
  objective = 'masked'


def num_params(params):
  """Number of scalars in a tree of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
