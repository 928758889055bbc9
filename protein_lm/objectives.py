"""What a model is trained and scored on: the next token, or masked residues.

Axes: B batch, L length, V vocabulary.

Which tokens count: residues and EOS do; BOS, PAD and the ambiguous letters
B X Z do not (`Batch.weights`); masked models are never asked for EOS.
Everything is aligned with `batch.tokens`: entry (b, l) is about token (b, l)
as a target.

Training minimises the nll, or with label smoothing e and z-loss c

    (1 - e) nll + e (log Z - mean logit) + c (log Z)^2

where log Z is the logsumexp of a token's logits: cross-entropy with the target
spread over the vocabulary (arXiv 1512.00567, 7) and a pull of log Z to 0
(arXiv 2204.02311, 5). The metrics, and evaluation, are of the plain nll.
"""

import dataclasses
import hashlib
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np

from protein_lm import vocab

NUM_AMINO_ACIDS = len(vocab.STANDARD_RESIDUES)


class TokenScores(NamedTuple):
  """One model's verdict on every token of a batch, each [B, L].

  nll: -log p(token) in nats, float32, softmax over the full vocabulary.
  correct: the token is the most probable one.
  weights: 1 where the token counts, else 0.
  loss: what training minimises, float32, or None where that is the nll.
  predicted: int8, the most probable token.
  confidence: its probability, float32.
  rank: int8, the number of tokens more probable than the target.
  """

  nll: jax.Array
  correct: jax.Array
  weights: jax.Array
  loss: jax.Array | None = None
  predicted: jax.Array | None = None
  confidence: jax.Array | None = None
  rank: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
  """What training asks of a model; subclasses give the scores.

  A step calls `draw` for its whole batch, then `train_scores` for parts of
  what that gave (microbatches.py); evaluation calls `eval_scores`.
  """

  counted_share = 1.0  # of the residues and EOS of a training batch

  def draw(self, batch, rng):
    """What is random in a batch, apart from the model.

    Returns:
      (a tree of arrays [B, L] for train_scores, the key for train_scores).
    """
    return batch, rng

  def regularized(self, label_smoothing, z_loss):
    """This objective with label smoothing and z-loss in training.

    Raises:
      ValueError: unless both are 0, where there are no tokens to predict.
    """
    if label_smoothing or z_loss:
      raise ValueError(
        f'make_train_step.label_smoothing={label_smoothing} and z_loss='
        f'{z_loss} are of models that predict tokens, and this one trains on '
        f'{type(self).__name__}: set both to 0.'
      )
    return self


@dataclasses.dataclass(frozen=True)
class TokenObjective(Objective):
  """The part common to the two that predict tokens."""

  label_smoothing: float = 0.0
  z_loss: float = 0.0

  def regularized(self, label_smoothing, z_loss):
    """See Objective.

    Raises:
      ValueError: unless 0 <= label_smoothing < 1 and 0 <= z_loss.
    """
    if not 0 <= label_smoothing < 1:
      raise ValueError(
        'make_train_step.label_smoothing must be within [0, 1), got '
        f'{label_smoothing}.'
      )
    if z_loss < 0:
      raise ValueError(f'make_train_step.z_loss must be >= 0, got {z_loss}.')
    return dataclasses.replace(
      self, label_smoothing=label_smoothing, z_loss=z_loss
    )

  def _with_loss(self, scores, logits_BLV):
    """The scores with what training minimises."""
    if not (self.label_smoothing or self.z_loss):
      return scores
    logits_BLV = logits_BLV.astype(jnp.float32)
    log_normalizer_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    uniform_BL = log_normalizer_BL - jnp.mean(logits_BLV, axis=-1)
    loss_BL = scores.nll + self.label_smoothing * (uniform_BL - scores.nll)
    return scores._replace(loss=loss_BL + self.z_loss * log_normalizer_BL**2)


@dataclasses.dataclass(frozen=True)
class CausalObjective(TokenObjective):
  """Every token from those before it in its segment."""

  def train_scores(self, model, batch, rng):
    """TokenScores of a training step; rng is the step's key."""
    return self._with_loss(*self._scores(model, batch, rng))

  def eval_scores(self, model, batch, mask_BL=None):
    """TokenScores, deterministic. Causal models take no mask.

    Raises:
      ValueError: if a mask is given.
    """
    if mask_BL is not None:
      raise ValueError('a causal model predicts every token; pass no mask.')
    return self._scores(model, batch, None)[0]

  def _scores(self, model, batch, rng):
    logits_BLV = _apply(model, batch.tokens, batch, rng)
    # Logits at l speak of token l + 1; the first token has nobody before it.
    ahead_BLV = jnp.pad(logits_BLV[:, :-1], ((0, 0), (1, 0), (0, 0)))
    same_BL = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    same_BL = jnp.pad(same_BL, ((0, 0), (1, 0)))
    scores = _token_scores(ahead_BLV, batch.tokens, batch.weights * same_BL)
    return scores, ahead_BLV


@dataclasses.dataclass(frozen=True)
class MaskedObjective(TokenObjective):
  """A share of the residues from all the others (arXiv 1810.04805, 3.1)."""

  mask_rate: float = 0.15

  @property
  def counted_share(self):
    """Share of the residues of a training batch that counts."""
    return self.mask_rate

  def draw(self, batch, rng):
    """((batch with the weights of the masked residues, tokens shown), key)."""
    corrupt_rng, model_rng = jax.random.split(rng)
    tokens_BL, mask_BL = corrupt(corrupt_rng, batch, self.mask_rate)
    asked = batch._replace(weights=batch.weights * mask_BL)
    return (asked, tokens_BL), model_rng

  def train_scores(self, model, drawn, rng):
    """TokenScores on what `draw` gave; rng is the model's key."""
    batch, tokens_BL = drawn
    logits_BLV = _apply(model, tokens_BL, batch, rng)
    scores = _token_scores(logits_BLV, batch.tokens, batch.weights)
    return self._with_loss(scores, logits_BLV)

  def eval_scores(self, model, batch, mask_BL):
    """TokenScores of the residues in mask_BL, all of them shown as MASK.

    Raises:
      ValueError: if no mask is given.
    """
    if mask_BL is None:
      raise ValueError(
        'a masked model is scored on masked residues: pass mask.'
      )
    tokens_BL = jnp.where(mask_BL, vocab.MASK_ID, batch.tokens)
    logits_BLV = _apply(model, tokens_BL, batch, None)
    return _token_scores(logits_BLV, batch.tokens, batch.weights * mask_BL)


@gin.configurable
def causal_objective():
  """Next-token prediction, the objective of FlaxLM."""
  return CausalObjective()


@gin.configurable
def masked_objective(mask_rate: float = 0.15):
  """Masked residues, the objective of FlaxBERT.

  Args:
    mask_rate: share of the residues that are asked for; of these 80 % are
      shown as MASK, 10 % as a random amino acid, 10 % as they are. In
      evaluation all are shown as MASK.

  Raises:
    ValueError: if mask_rate is not within (0, 1).
  """
  if not 0 < mask_rate < 1:
    raise ValueError(f'mask_rate must be within (0, 1), got {mask_rate}.')
  return MaskedObjective(mask_rate=mask_rate)


def make_objective(name):
  """The objective a model class names, such as 'causal' or 'masked'."""
  from protein_lm import label_objectives  # which imports this module

  return {
    'causal': causal_objective,
    'masked': masked_objective,
    'regression': label_objectives.regression_objective,
    'classification': label_objectives.classification_objective,
  }[name]()


def corrupt(rng, batch, mask_rate):
  """Corrupts a training batch for the masked objective.

  Args:
    rng: key of the draw.
    batch: Batch; only tokens that count and are residues are chosen.
    mask_rate: probability of each to be chosen.

  Returns:
    (tokens [B, L] as the model sees them, chosen [B, L] bool).
  """
  chosen_rng, kind_rng, residue_rng = jax.random.split(rng, 3)
  shape = batch.tokens.shape
  maskable_BL = (batch.tokens < vocab.BOS_ID) & (batch.weights > 0)
  chosen_BL = maskable_BL & (jax.random.uniform(chosen_rng, shape) < mask_rate)
  kind_BL = jax.random.uniform(kind_rng, shape)
  random_BL = jax.random.randint(residue_rng, shape, 0, NUM_AMINO_ACIDS)
  shown_BL = jnp.where(kind_BL < 0.9, random_BL, batch.tokens)
  shown_BL = jnp.where(kind_BL < 0.8, vocab.MASK_ID, shown_BL)
  return jnp.where(chosen_BL, shown_BL, batch.tokens), chosen_BL


def evaluation_mask(protein_id, num_residues, k, mask_rate):
  """The k-th evaluation mask of a protein, a function of (id, k) alone.

  Args:
    protein_id: its id.
    num_residues: its length.
    k: number of the mask, from 0.
    mask_rate: share of the residues to mask; at least one is.

  Returns:
    [num_residues] bool, exactly round(mask_rate * num_residues) of them True
    (one at least).
  """
  digest = hashlib.sha256(f'{protein_id}/{k}'.encode()).digest()
  generator = np.random.default_rng(int.from_bytes(digest[:16], 'little'))
  count = min(num_residues, max(1, round(mask_rate * num_residues)))
  mask = np.zeros(num_residues, bool)
  mask[generator.permutation(num_residues)[:count]] = True
  return mask


def sums(scores, tokens_BL):
  """Sums over the tokens that count, as float32 scalars on the device.

  Args:
    scores: TokenScores.
    tokens_BL: the targets.

  Returns:
    dict of loss (nats), correct, num_tokens, and residue_loss and
    num_residues, which leave EOS out.
  """
  residue_BL = scores.weights * (tokens_BL < vocab.BOS_ID)
  return {
    'loss': jnp.sum(scores.nll * scores.weights),
    'correct': jnp.sum(scores.correct * scores.weights),
    'num_tokens': jnp.sum(scores.weights),
    'residue_loss': jnp.sum(scores.nll * residue_BL),
    'num_residues': jnp.sum(residue_BL),
  }


def training_loss(scores):
  """The sum over the tokens that count of what training minimises."""
  loss_BL = scores.nll if scores.loss is None else scores.loss
  return jnp.sum(loss_BL * scores.weights)


def _apply(model, tokens_BL, batch, rng):
  return model(
    tokens_BL,
    positions=batch.positions,
    segment_ids=batch.segment_ids,
    rng=rng,
    deterministic=rng is None,
  )


def _token_scores(logits_BLV, targets_BL, weights_BL):
  logits_BLV = logits_BLV.astype(jnp.float32)
  # A one-hot product fuses; gathering needs a slow scatter on the way back.
  one_hot_BLV = jax.nn.one_hot(targets_BL, logits_BLV.shape[-1])
  target_BL = jnp.sum(logits_BLV * one_hot_BLV, axis=-1)
  log_normalizer_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
  predicted_BL = jnp.argmax(logits_BLV, axis=-1)
  above_BLV = logits_BLV > target_BL[..., None]
  return TokenScores(
    log_normalizer_BL - target_BL,
    predicted_BL == targets_BL,
    weights_BL,
    predicted=predicted_BL.astype(jnp.int8),
    confidence=jnp.exp(jnp.max(logits_BLV, axis=-1) - log_normalizer_BL),
    rank=jnp.sum(above_BLV, axis=-1, dtype=jnp.int8),
  )
