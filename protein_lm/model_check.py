"""The choices that a model has, and contradictions among them."""

from typing import Literal, get_args

from protein_lm import lora
from protein_lm.layer_stack import Remat

PositionEmbedding = Literal['learned', 'sinusoidal', 'rotary']
Norm = Literal['layernorm', 'rmsnorm']
Mlp = Literal['gelu', 'gelu_exact', 'swiglu']
OutputHead = Literal['linear', 'dense']
Dtype = Literal['float32', 'bfloat16']
RotaryDtype = Literal['float32', 'float16']

_CHOICES = {
  'position_embedding': get_args(PositionEmbedding),
  'norm': get_args(Norm),
  'mlp': get_args(Mlp),
  'output_head': get_args(OutputHead),
  'rotary_dtype': get_args(RotaryDtype),
  'dtype': get_args(Dtype),
  'remat': get_args(Remat),
}


def check(model):
  """Refuses contradictions among a model's arguments, each with its way out.

  Args:
    model: a FlaxModel that has its arguments as attributes.

  Raises:
    ValueError: for an argument that cannot be, alone or beside another.
  """
  name = type(model).__name__
  if model.causal is None:
    raise ValueError(
      'FlaxModel is the common part of the models: use FlaxLM (causal) or '
      'FlaxBERT (masked).'
    )
  for argument, choices in _CHOICES.items():
    if getattr(model, argument) not in choices:
      raise ValueError(
        f'{name}.{argument} must be one of {", ".join(choices)}, got '
        f'{getattr(model, argument)!r}.'
      )
  for argument in ('emb_dim', 'qkv_dim', 'mlp_dim', 'num_layers', 'num_heads'):
    if getattr(model, argument) < 1:
      raise ValueError(
        f'{name}.{argument} must be positive, got {getattr(model, argument)}.'
      )
  for argument in ('dropout_rate', 'attention_dropout_rate'):
    if not 0 <= getattr(model, argument) < 1:
      raise ValueError(
        f'{name}.{argument} must be in [0, 1), got {getattr(model, argument)}.'
      )
  if not model.norm_eps > 0:
    raise ValueError(f'{name}.norm_eps must be positive, got {model.norm_eps}.')
  if model.token_dropout and model.causal:
    raise ValueError(
      f'{name}.token_dropout = True is of masked models: a causal one never '
      'reads MASK; leave it False.'
    )
  lora.check(
    name, model.lora_rank, model.lora_alpha, model.lora_targets, model.mlp
  )
  if model.qkv_dim % model.num_heads:
    raise ValueError(
      f'{name}.qkv_dim={model.qkv_dim} must be a multiple of '
      f'num_heads={model.num_heads}.'
    )
  if model.position_embedding == 'rotary' and (
    model.qkv_dim // model.num_heads % 2
  ):
    raise ValueError(
      'rotary positions need heads of even width, got qkv_dim / num_heads = '
      f'{model.qkv_dim // model.num_heads}.'
    )
  if model.position_embedding != 'rotary' and model.emb_dim % 2:
    raise ValueError(
      f'{model.position_embedding} positions need an even emb_dim, got '
      f'{model.emb_dim}.'
    )
  for fn in model.attention_fns:
    if not callable(fn):
      raise ValueError(
        f'{name}.attention_fn must be callable, got {fn!r}; in gin, call the '
        'factory: @exact_attention() or @make_fast_softmax_attention().'
      )
    direction = getattr(fn, 'unidirectional', None)
    if direction is not None and direction != model.causal:
      raise ValueError(
        f'{name} is {"causal" if model.causal else "not causal"} but its '
        f'attention_fn has unidirectional={direction}; leave unidirectional '
        'unset (None) so that it follows the model.'
      )
    exact = getattr(fn, 'supports_dropout', False)
    if model.attention_dropout_rate and not exact:
      raise ValueError(
        f'{name}.attention_dropout_rate={model.attention_dropout_rate} needs '
        f'@exact_attention(): {type(fn).__name__} has no attention weights to '
        'drop; set it to 0 and use dropout_rate.'
      )
