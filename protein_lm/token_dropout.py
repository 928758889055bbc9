"""Masked tokens read as zeros, and the others scaled up for them.

Axes: B batch, L length, D model width.
"""

import jax
import jax.numpy as jnp

from fast_attention.reference import run_ids
from protein_lm import vocab

_TRAINED_SHARE = 0.15 * 0.8  # of tokens shown as MASK when ESM-2 was trained


def token_dropout(x_BLD, tokens_BL, segment_ids_BL=None):
  """Embeddings (1 - 0.12) / (1 - r), where r of a segment's tokens are MASK.

  BOS and EOS count among the tokens. MASK itself gives zeros. The mean size of
  an input is then that of training, whatever the number of masks; what ESM-2
  does (its published code, `token_dropout`).

  Args:
    x_BLD: embeddings of the tokens.
    tokens_BL: token ids.
    segment_ids_BL: int; a segment is a run of equal ids. None takes padding as
      one and the rest as another.

  Returns:
    [B, L, D] in the dtype of x.
  """
  is_mask_BL = tokens_BL == vocab.MASK_ID
  if segment_ids_BL is None:
    segment_ids_BL = (tokens_BL != vocab.PAD_ID).astype(jnp.int32)
  run_BL = run_ids(segment_ids_BL)

  def sums(values_L, run_L):
    total_S = jax.ops.segment_sum(values_L, run_L, values_L.shape[0])
    return total_S[run_L]

  count = jax.vmap(sums)
  is_read_BL = (~is_mask_BL).astype(jnp.float32)
  num_read_BL = count(is_read_BL, run_BL)
  num_tokens_BL = count(jnp.ones_like(is_read_BL), run_BL)
  # A segment of masks alone is zeros, not 0 / 0.
  scale_BL = num_tokens_BL / jnp.maximum(num_read_BL, 1)
  scale_BL *= (1 - _TRAINED_SHARE) * is_read_BL
  return x_BLD * scale_BL[:, :, None].astype(x_BLD.dtype)
