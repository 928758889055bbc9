"""Attention in linear time and memory, for Flax modules or raw arrays.

    from fast_attention import make_fast_softmax_attention
    attention_fn = make_fast_softmax_attention(nb_features=128)

See README.md for the mathematics, and when to use which option.
"""

from fast_attention.attention import FastAttention
from fast_attention.factories import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)

__all__ = [
  'FastAttention',
  'make_fast_generalized_attention',
  'make_fast_softmax_attention',
]
