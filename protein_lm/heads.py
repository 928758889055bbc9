"""Models of labels: the trunk of FlaxModel with a head in place of logits.

Axes: B batch, L length, D model width, C outputs.
"""

from typing import Literal

import gin
import jax
import jax.numpy as jnp
from flax import nnx

from protein_lm import vocab
from protein_lm.models import FlaxModel

HeadPooling = Literal['mean', 'token']


class HeadModel(FlaxModel):
  """What both have in common; use FlaxRegressor or FlaxClassifier.

  The parameters of the trunk are those of FlaxLM and FlaxBERT, so that a run
  can start from theirs (`experiment.init_from`); the head starts anew.
  """

  num_outputs = None

  def __init__(self, head_pooling, causal, *, rngs, **kwargs):
    """Builds the model; see the subclasses."""
    if head_pooling not in ('mean', 'token'):
      raise ValueError(
        f"{type(self).__name__}.head_pooling must be 'mean' or 'token', got "
        f'{head_pooling!r}.'
      )
    self.head_pooling, self.causal = head_pooling, causal
    super().__init__(rngs=rngs, **kwargs)

  def _make_output(self, rngs):
    self.head = nnx.Linear(
      self.emb_dim,
      self.num_outputs,
      kernel_init=nnx.initializers.normal(0.02),
      rngs=rngs,
    )

  def __call__(self, tokens, *, segment_ids=None, **kwargs):
    """The outputs of the head at every position.

    Args:
      tokens: [B, L] int token ids.
      segment_ids: as of FlaxModel.
      **kwargs: as of FlaxModel.

    Returns:
      [B, L, C] float32; with head_pooling 'mean' alike in a whole segment.
    """
    if segment_ids is None:
      segment_ids = (tokens != vocab.PAD_ID).astype(jnp.int32)
    x_BLD = self.hidden(tokens, segment_ids=segment_ids, **kwargs)
    x_BLD = x_BLD.astype(jnp.float32)
    if self.head_pooling == 'mean':
      x_BLD = pooled(x_BLD, tokens < vocab.BOS_ID, segment_ids)
    return self.head(x_BLD)


@gin.configurable
class FlaxRegressor(HeadModel):
  """Predicts one standardised number a protein, or a residue."""

  objective = 'regression'
  num_outputs = 1

  def __init__(
    self,
    head_pooling: HeadPooling = 'mean',
    causal: bool = False,
    *,
    rngs: nnx.Rngs,
    **kwargs,
  ):
    """Builds the model.

    Args:
      head_pooling: 'mean' reads the mean over the residues of a protein;
        'token' the state of each token, for labels of residues, and for those
        of proteins the state of the last token.
      causal: whether a token sees only those before it; that of the model it
        starts from.
      rngs: nnx.Rngs for the initial weights.
      **kwargs: of FlaxModel.
    """
    super().__init__(head_pooling, causal, rngs=rngs, **kwargs)


@gin.configurable
class FlaxClassifier(HeadModel):
  """Predicts the class of a protein, or of a residue."""

  objective = 'classification'

  def __init__(
    self,
    classes: tuple[str, ...] = gin.REQUIRED,
    head_pooling: HeadPooling = 'mean',
    causal: bool = False,
    *,
    rngs: nnx.Rngs,
    **kwargs,
  ):
    """Builds the model.

    Args:
      classes: names of the classes, those of `data.label_classes`.
      head_pooling: as of FlaxRegressor.
      causal: as of FlaxRegressor.
      rngs: nnx.Rngs for the initial weights.
      **kwargs: of FlaxModel.
    """
    self.classes = tuple(classes)
    self.num_outputs = len(self.classes)
    super().__init__(head_pooling, causal, rngs=rngs, **kwargs)


def pooled(x_BLD, is_pooled_BL, segment_ids_BL):
  """Means over segments, at every token of a segment.

  Args:
    x_BLD: what is averaged.
    is_pooled_BL: bool, the tokens that count.
    segment_ids_BL: int32, 0 to L.

  Returns:
    [B, L, D]; zeros where no token of a segment counts.
  """
  num_segments = x_BLD.shape[1] + 1

  def pool_row(x_LD, is_pooled_L, segment_ids_L):
    weights_L = is_pooled_L.astype(x_LD.dtype)
    total_SD = jax.ops.segment_sum(
      x_LD * weights_L[:, None], segment_ids_L, num_segments
    )
    count_S = jax.ops.segment_sum(weights_L, segment_ids_L, num_segments)
    mean_SD = total_SD / jnp.maximum(count_S, 1)[:, None]
    return mean_SD[segment_ids_L]

  return jax.vmap(pool_row)(x_BLD, is_pooled_BL, segment_ids_BL)
