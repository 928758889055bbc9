"""Masked tokens read as zeros: scaled a protein at a time, packed or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from protein_lm import models, vocab
from protein_lm.token_dropout import token_dropout

M, P = vocab.MASK_ID, vocab.PAD_ID


@jax.jit
def scales(tokens_L, segment_ids_L):
  x_BLD = jnp.ones((1, 6, 1))
  return token_dropout(x_BLD, tokens_L[None], segment_ids_L[None])[0, :, 0]


@pytest.mark.parametrize(
  'tokens, segment_ids, expected',
  [
    # Of five tokens three are read; 12 % were masked in training.
    ([25, M, 3, M, 26, P], [1, 1, 1, 1, 1, 0], [5 / 3, 0, 5 / 3, 0, 5 / 3, 1]),
    # A run has its own share, whatever its number.
    ([3, M, 4, 5, 6, 7], [1, 1, 2, 2, 1, 1], [2, 0, 1, 1, 1, 1]),
    # Masks alone are zeros.
    ([M, M, 3, M, M, M], [1, 1, 2, 3, 3, 3], [0, 0, 1, 0, 0, 0]),
  ],
)
def test_the_scale_is_that_of_the_masked_share(tokens, segment_ids, expected):
  found = scales(np.array(tokens), np.array(segment_ids))
  np.testing.assert_allclose(found, 0.88 * np.array(expected), rtol=1e-6)


def test_a_masked_protein_has_the_same_logits_alone_and_packed():
  model = models.FlaxBERT(
    emb_dim=8,
    qkv_dim=8,
    mlp_dim=8,
    num_layers=1,
    num_heads=1,
    position_embedding='rotary',
    token_dropout=True,
    output_head='dense',
    norm_embeddings=True,
    rngs=nnx.Rngs(0),
  )
  alone = jnp.array([[25, 3, M, 5, 26]])
  packed = jnp.array([[25, M, 26, 25, 3, M, 5, 26, P, P]])
  segment_ids = jnp.array([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]])
  call = jax.jit(lambda t, s=None: model(t, segment_ids=s))
  np.testing.assert_allclose(
    call(packed, segment_ids)[:, 3:8], call(alone), atol=1e-5
  )


def test_a_causal_model_refuses_it():
  with pytest.raises(ValueError, match='token_dropout = True is of masked'):
    models.FlaxLM(token_dropout=True, rngs=nnx.Rngs(0))
