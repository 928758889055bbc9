"""What a model's attention is called in tables, messages and file names."""

import dataclasses
import inspect
import re

from fast_attention import FastAttention, factories, kernels

# Fields of a fast attention that change no evaluation.
_SILENT_FIELDS = (
  'qkv_dim',
  'unidirectional',
  'redraw_features',
  'lax_scan_unroll',
  'implementation',
)


def describe(loaded) -> str:
  """The model, its step and its attention."""
  model = loaded.model
  attention = attention_name(model.attention_fns)
  return f'{type(model).__name__}, step {loaded.step:,}, {attention} attention'


def attention_name(attention_fns) -> str:
  """A short name of a model's attention: its kind and what changes its scores.

  A hybrid's names are joined by +.
  """
  return ' + '.join(_attention_name(fn) for fn in attention_fns)


def _attention_name(fn):
  if not isinstance(fn, FastAttention):
    name = getattr(fn, '__name__', type(fn).__name__)
    return re.sub('_?attention$', '', name.lower())
  if fn.kernel_fn is None:
    kind, factory = 'softmax', factories.make_fast_softmax_attention
    shown = [f'nb_features={fn.nb_features}']
  else:
    kind, factory = 'generalized', factories.make_fast_generalized_attention
    shown = [kernels.kernel_name(fn.kernel_fn)]
  usual = inspect.unwrap(factory)()  # what gin bindings have not changed
  for field in dataclasses.fields(fn):
    value = getattr(fn, field.name)
    is_told = field.name in (*_SILENT_FIELDS, 'kernel_fn')
    is_told |= field.name == 'nb_features' and kind == 'softmax'
    if not is_told and value != getattr(usual, field.name):
      shown.append(f'{field.name}={value}')
  return f'{kind}({", ".join(shown)})'


def slug(attention: str) -> str:
  """A name of `attention_name` as part of a file's name."""
  return re.sub('[^a-z0-9]+', '-', attention.lower()).strip('-')
