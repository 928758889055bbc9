"""What a model gives each residue of a split, scored exactly once.

A split is flat: its residues one after another, with offsets (`Proteins`).
Which targets count: residues, except the ambiguous letters B, X and Z. The
softmax runs over the whole vocabulary.

Axes: T residues of a split, P proteins, B batch, L length.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from protein_lm import vocab
from protein_lm.baselines import Baseline
from protein_lm.data import EvalBatch
from protein_lm.objectives import evaluation_mask
from protein_lm.proteins import Proteins

MASK_RATE = 0.15
# Batches that the device has while the host collects an earlier one. Two fill
# two cores better than one.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """What a model or a baseline gave each residue of a split.

  Attributes:
    nll: float [T], nats; meaningless where not scored.
    scored: bool [T]; False for B, X and Z, and for the residues that a masked
      model saw.
    correct: bool [T], whether the largest logit was the target's; None for
      baselines.
    eos_nll: float [P], nats; None for baselines and masked models.
    objective: 'causal' or 'masked'.
    predicted: int8 [T], the most probable token; None for baselines, like the
      next two.
    confidence: float [T], its probability.
    rank: int8 [T], the number of tokens more probable than the target.
    mask: bool [T], what a masked model did not see; None for causal ones.
  """

  nll: np.ndarray
  scored: np.ndarray
  correct: np.ndarray | None = None
  eos_nll: np.ndarray | None = None
  objective: str = 'causal'
  predicted: np.ndarray | None = None
  confidence: np.ndarray | None = None
  rank: np.ndarray | None = None
  mask: np.ndarray | None = None


# What TokenScores says of a token beside its nll, as Scores keeps it.
_DETAILS = {
  'correct': np.bool_,
  'predicted': np.int8,
  'confidence': np.float32,
  'rank': np.int8,
}


def score_split(
  score_step: Callable,
  params: Any,
  batches: Iterable[EvalBatch],
  proteins: Proteins,
  *,
  mask_T: np.ndarray | None = None,
  after_batch: Callable[[int], None] = lambda num_tokens: None,
) -> Scores:
  """Scores each residue of a split exactly once.

  Args:
    score_step: (params, batch, mask_BL) -> TokenScores.
    params: the parameters of the model.
    batches: `data.eval_batches(proteins)`; weights 1 say which tokens of a
      window are scored, the others are context.
    proteins: the split.
    mask_T: for a masked model, the residues it must not see and is scored on
      (`masked_residues`); None for a causal model.
    after_batch: called with the number of tokens scored by each batch.

  Returns:
    The scores, on the host.

  Raises:
    RuntimeError: if the batches do not score every target exactly once.
  """
  lengths_P = np.diff(proteins.offsets)
  nll_T = np.zeros(len(proteins.residues), np.float32)
  details = {}
  times_T = np.zeros(len(proteins.residues), np.int32)
  eos_nll_P = np.zeros(len(lengths_P), np.float32)
  eos_times_P = np.zeros(len(lengths_P), np.int32)

  def collect(eval_batch, token_scores):
    scored_BL = np.asarray(eval_batch.batch.weights) > 0
    protein, residue, nll = (
      np.asarray(array_BL)[scored_BL]
      for array_BL in (eval_batch.protein_BL, eval_batch.residue_BL)
      + (token_scores.nll,)
    )
    is_eos = residue == lengths_P[protein]
    flat = (proteins.offsets[protein] + residue)[~is_eos]
    nll_T[flat] = nll[~is_eos]
    for name, dtype in _DETAILS.items():
      array_BL = getattr(token_scores, name)
      if array_BL is not None:
        if name not in details:
          details[name] = np.zeros(len(nll_T), dtype)
        details[name][flat] = np.asarray(array_BL)[scored_BL][~is_eos]
    np.add.at(times_T, flat, 1)
    eos_nll_P[protein[is_eos]] = nll[is_eos]
    np.add.at(eos_times_P, protein[is_eos], 1)
    after_batch(len(nll))

  waiting = collections.deque()
  for eval_batch in batches:
    mask_BL = None
    if mask_T is not None:
      mask_BL = batch_mask(eval_batch, proteins, mask_T)
    token_scores = score_step(params, eval_batch.batch, mask_BL)
    waiting.append((eval_batch, token_scores))
    if len(waiting) > _IN_FLIGHT:
      collect(*waiting.popleft())
  while waiting:
    collect(*waiting.popleft())

  counted_T = counted_residues(proteins)
  _check_once(times_T, counted_T, proteins)
  if mask_T is not None:
    return Scores(
      nll_T, counted_T & mask_T, objective='masked', mask=mask_T, **details
    )
  if not np.all(eos_times_P == 1):
    wrong = int(np.argmax(eos_times_P != 1))
    raise RuntimeError(
      f'The end of {proteins.ids[wrong]} was scored {eos_times_P[wrong]} times '
      'instead of once.'
    )
  return Scores(nll_T, counted_T, eos_nll=eos_nll_P, **details)


def _check_once(times_T, counted_T, proteins):
  wrong_T = np.where(counted_T, times_T != 1, times_T > 1)
  if not wrong_T.any():
    return
  flat = int(np.argmax(wrong_T))
  protein = int(np.searchsorted(proteins.offsets, flat, side='right')) - 1
  raise RuntimeError(
    f'{wrong_T.sum()} residues were not scored exactly once; the first is '
    f'residue {flat - proteins.offsets[protein] + 1} of '
    f'{proteins.ids[protein]}, scored {times_T[flat]} times.'
  )


def counted_residues(proteins: Proteins) -> np.ndarray:
  """The residues that may be scored, all but B, X and Z: bool [T]."""
  return ~np.isin(proteins.residues, vocab.UNCOUNTED_IDS)


def masked_residues(
  proteins: Proteins, k: int = 0, mask_rate: float = MASK_RATE
) -> np.ndarray:
  """The residues hidden from a masked model: bool [T], from (id, k) alone."""
  lengths_P = np.diff(proteins.offsets)
  masks = [
    evaluation_mask(protein_id, int(length), k, mask_rate)
    for protein_id, length in zip(proteins.ids, lengths_P, strict=True)
  ]
  return np.concatenate(masks) if masks else np.zeros(0, np.bool_)


def batch_mask(
  eval_batch: EvalBatch, proteins: Proteins, mask_T: np.ndarray
) -> np.ndarray:
  """Where a batch is replaced by MASK, context included: bool [B, L]."""
  protein_BL = np.asarray(eval_batch.protein_BL)
  residue_BL = np.asarray(eval_batch.residue_BL)
  lengths_P = np.diff(proteins.offsets)
  inside_BL = (protein_BL >= 0) & (residue_BL >= 0)
  inside_BL &= residue_BL < lengths_P[protein_BL]
  flat_BL = np.where(inside_BL, proteins.offsets[protein_BL] + residue_BL, 0)
  return inside_BL & mask_T[flat_BL]


def baseline_scores(
  baseline: Baseline, proteins: Proteins, model_scores: Scores
) -> Scores:
  """A baseline on the residues that the model was scored on.

  One that looks to both sides sees no more there than the model.
  """
  if baseline.context == 'both':
    nll_T = baseline.nll(proteins, model_scores.mask)
  else:
    nll_T = baseline.nll(proteins)
  return Scores(
    nll_T,
    model_scores.scored,
    objective=model_scores.objective,
    mask=model_scores.mask,
  )
