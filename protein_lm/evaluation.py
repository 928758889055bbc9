"""Scores every residue of a split once, and sums the scores up.

A split is flat: its residues one after another, with offsets (`Proteins`). The
model's scores, the baselines' and the slices are arrays over those residues, so
that every number of a table is a mean over the same ones.

Which targets count: residues, except the ambiguous letters B, X and Z. EOS
counts only in `perplexity`. The softmax runs over the whole vocabulary.

Axes: T residues of a split, P proteins, A the 25 residue letters, B batch,
L length.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from protein_lm import bootstrap, calibration, vocab
from protein_lm.data import EvalBatch
from protein_lm.proteins import Proteins
from protein_lm.scorer import perplexity_of, score_proteins
from protein_lm.scores import (
  Scores,
  baseline_scores,
  batch_mask,
  counted_residues,
  masked_residues,
  score_split,
)

__all__ = [
  'METRICS',
  'Scores',
  'baseline_scores',
  'batch_mask',
  'counted_residues',
  'evaluate_batches',
  'masked_residues',
  'perplexity',
  'perplexity_of',
  'score_proteins',
  'score_split',
  'slices',
  'summarize',
]

_OF_RESIDUES = (  # causal ones; those of masked models begin with masked_
  'residue_perplexity',
  'residue_perplexity_low',
  'residue_perplexity_high',
  'residue_perplexity_std',
  'bits_per_residue',
  'accuracy',
  'accuracy_low',
  'accuracy_high',
  'top5_accuracy',
  'ece',
  'protein_perplexity',
)

# What `summarize` can return. Only several masks have a spread (_std), and only
# causal models a perplexity with EOS.
METRICS = (
  *(name for name in _OF_RESIDUES if not name.endswith('_std')),
  'perplexity',
  *(f'masked_{name}' for name in _OF_RESIDUES),
  'num_residues',
  'num_proteins',
)


def slices(proteins: Proteins) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """The parts of a split that get a row each.

  Returns:
    name -> (where_T, where_P): the residues of the slice, and the proteins
    whose EOS belongs to it. `all`; and where the split has held-out families,
    `pure` (proteins that share no label with a protein outside) and `held_out`
    (residues inside the held-out envelopes; no EOS is).
  """
  lengths_P = np.diff(proteins.offsets)
  parts = {
    'all': (
      np.ones(len(proteins.residues), np.bool_),
      np.ones(len(lengths_P), np.bool_),
    )
  }
  if proteins.held_out.any():
    pure_T = np.repeat(proteins.pure, lengths_P)
    parts['pure'] = pure_T, proteins.pure
    parts['held_out'] = proteins.held_out, np.zeros(len(lengths_P), np.bool_)
  return parts


def summarize(
  scores: Scores | Sequence[Scores],
  proteins: Proteins,
  where_T: np.ndarray | None = None,
  where_P: np.ndarray | None = None,
) -> dict[str, float | int | None]:
  """Metrics over a slice of a split, from float64 sums.

  residue_perplexity = exp(mean nll over residues), the headline;
  bits_per_residue = mean nll / ln 2; perplexity counts EOS too; accuracy and
  top5_accuracy are over residues; ece is the expected calibration error
  (calibration.py); protein_perplexity = exp(mean over proteins of the mean nll
  of each protein's residues), so every protein weighs the same (the geometric
  mean of the proteins' own perplexities). _low and _high are the 95 % interval
  of a bootstrap over clusters (bootstrap.py). For a masked model the names
  begin with masked_, and there is no perplexity with EOS; means are over the
  residues of all masks put together, and _std is the standard deviation of the
  perplexities of the single masks.

  Args:
    scores: of the whole split; of a masked model, for each mask.
    proteins: the split.
    where_T: bool [T], the residues of the slice; None for all.
    where_P: bool [P], the proteins whose EOS belongs to it; None for all.

  Returns:
    The metrics, None where there is nothing to average. num_residues counts a
    residue once for each mask.
  """
  all_scores = [scores] if isinstance(scores, Scores) else list(scores)
  first = all_scores[0]
  chosen = [
    one.scored if where_T is None else one.scored & where_T
    for one in all_scores
  ]

  def gather(name):
    arrays = [getattr(one, name) for one in all_scores]
    if arrays[0] is None:
      return None
    pairs = zip(arrays, chosen, strict=True)
    return np.concatenate([array_T[where_T] for array_T, where_T in pairs])

  nll = gather('nll').astype(np.float64)
  protein_T = np.repeat(np.arange(len(proteins)), proteins.lengths)
  protein = np.concatenate([protein_T[where_T] for where_T in chosen])
  metrics = {}
  if len(nll):
    metrics = _of_residues(
      nll,
      protein,
      gather('correct'),
      gather('rank'),
      gather('confidence'),
      proteins.clusters,
    )
  if len(nll) and len(all_scores) > 1:
    metrics['residue_perplexity_std'] = float(
      np.std(
        [
          np.exp(one.nll[where_T].mean(dtype=np.float64))
          for one, where_T in zip(all_scores, chosen, strict=True)
          if where_T.any()
        ],
        ddof=1,
      )
    )
  if first.objective == 'masked':
    metrics = {f'masked_{name}': value for name, value in metrics.items()}
  elif first.eos_nll is not None:
    eos_nll = first.eos_nll if where_P is None else first.eos_nll[where_P]
    if len(eos_nll):
      total = nll.sum() + eos_nll.sum(dtype=np.float64)
      metrics['perplexity'] = perplexity(total / (len(nll) + len(eos_nll)))
  metrics['num_residues'] = len(nll)
  metrics['num_proteins'] = len(np.unique(protein))
  return {name: metrics.get(name) for name in METRICS}


def _of_residues(nll, protein, correct, rank, confidence, clusters):
  """The metrics of _OF_RESIDUES but _std, without a prefix."""
  num_proteins = len(clusters)
  count_P = np.bincount(protein, minlength=num_proteins)
  present_P = count_P > 0
  sums_P = {'residue_perplexity': np.bincount(protein, nll, num_proteins)}
  mean_P = sums_P['residue_perplexity'][present_P] / count_P[present_P]
  metrics = {
    'residue_perplexity': perplexity(nll.mean()),
    'bits_per_residue': float(nll.mean() / np.log(2)),
    'protein_perplexity': perplexity(mean_P.mean()),
  }
  if correct is not None:
    metrics['accuracy'] = float(correct.mean())
    sums_P['accuracy'] = np.bincount(protein, correct, num_proteins)
  if rank is not None:
    metrics['top5_accuracy'] = float((rank < 5).mean())
  if confidence is not None:
    metrics['ece'] = calibration.expected_calibration_error(confidence, correct)
  intervals = bootstrap.ratio_intervals(
    list(sums_P.values()), count_P, clusters
  )
  for name, interval in zip(sums_P, intervals or (), strict=False):
    if name == 'residue_perplexity':
      interval = map(perplexity, interval)
    metrics[f'{name}_low'], metrics[f'{name}_high'] = interval
  return metrics


def evaluate_batches(
  score_step: Callable,
  params: Any,
  batches: Sequence[EvalBatch],
  masks: Sequence[np.ndarray] | None = None,
) -> dict[str, float | int]:
  """The periodic evaluation of the training loop, over prebuilt batches.

  Args:
    score_step: (params, batch, mask_BL) -> TokenScores.
    params: the parameters of the model.
    batches: kept from one evaluation to the next.
    masks: for a masked model, the `batch_mask` of each batch.

  Returns:
    loss (nats per counted token: residues but B, X, Z, and EOS), accuracy and
    num_tokens over the same tokens, perplexity = exp(loss), and
    residue_perplexity, without EOS. For a masked model, over the masked
    residues, masked_residue_perplexity takes the place of both perplexities.
  """
  masks = [None] * len(batches) if masks is None else masks
  results = [  # all queued before the first is fetched
    score_step(params, eval_batch.batch, mask_BL)
    for eval_batch, mask_BL in zip(batches, masks, strict=True)
  ]
  tokens, nll, correct = [], [], []
  for eval_batch, mask_BL, result in zip(batches, masks, results, strict=True):
    tokens_BL = np.asarray(eval_batch.batch.tokens)
    counted_BL = np.asarray(eval_batch.batch.weights) > 0
    counted_BL &= ~np.isin(tokens_BL, vocab.UNCOUNTED_IDS)
    if mask_BL is not None:
      counted_BL &= mask_BL
    tokens.append(tokens_BL[counted_BL])
    nll.append(np.asarray(result.nll, np.float64)[counted_BL])
    correct.append(np.asarray(result.correct)[counted_BL])
  tokens, nll, correct = map(np.concatenate, (tokens, nll, correct))
  metrics = {
    'loss': float(nll.mean()),
    'accuracy': float(correct.mean()),
    'num_tokens': len(nll),
  }
  if any(mask_BL is not None for mask_BL in masks):
    return metrics | {'masked_residue_perplexity': perplexity(nll.mean())}
  return metrics | {
    'perplexity': perplexity(nll.mean()),
    'residue_perplexity': perplexity(nll[tokens != vocab.EOS_ID].mean()),
  }


def perplexity(nats: float) -> float:
  """exp(nats), infinite where that overflows."""
  with np.errstate(over='ignore'):
    return float(np.exp(nats))
