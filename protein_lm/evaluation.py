"""Scores every residue of a split once, and sums the scores up.

A split is flat: its residues one after another, with offsets (`Proteins`). The
model's scores, the baselines' and the slices are arrays over those residues, so
that every number of a table is a mean over the same ones.

Which targets count: residues, except the ambiguous letters B, X and Z. EOS
counts only in `perplexity`. The softmax runs over the whole vocabulary.

Axes: T residues of a split, P proteins, A the 25 residue letters, B batch,
L length.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from protein_lm import vocab
from protein_lm.baselines import Baseline
from protein_lm.data import EvalBatch
from protein_lm.objectives import evaluation_mask
from protein_lm.proteins import Proteins

MASK_RATE = 0.15

# What `summarize` can return, in the order of the table; masked models fill
# the names that begin with masked_, causal models the others.
METRICS = (
  'residue_perplexity',
  'bits_per_residue',
  'perplexity',
  'accuracy',
  'protein_perplexity',
  'masked_residue_perplexity',
  'masked_bits_per_residue',
  'masked_accuracy',
  'masked_protein_perplexity',
  'num_residues',
  'num_proteins',
)


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
  """

  nll: np.ndarray
  scored: np.ndarray
  correct: np.ndarray | None = None
  eos_nll: np.ndarray | None = None
  objective: str = 'causal'
  predicted: np.ndarray | None = None
  confidence: np.ndarray | None = None
  rank: np.ndarray | None = None


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

  waiting = None  # one batch late: the device works while the host collects
  for eval_batch in batches:
    mask_BL = None
    if mask_T is not None:
      mask_BL = batch_mask(eval_batch, proteins, mask_T)
    token_scores = score_step(params, eval_batch.batch, mask_BL)
    if waiting:
      collect(*waiting)
    waiting = eval_batch, token_scores
  if waiting:
    collect(*waiting)

  counted_T = counted_residues(proteins)
  _check_once(times_T, counted_T, proteins)
  if mask_T is not None:
    return Scores(nll_T, counted_T & mask_T, objective='masked', **details)
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
  """A baseline on the residues that the model was scored on."""
  return Scores(
    baseline.nll(proteins),
    model_scores.scored,
    objective=model_scores.objective,
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
  scores: Scores,
  proteins: Proteins,
  where_T: np.ndarray | None = None,
  where_P: np.ndarray | None = None,
) -> dict[str, float | int | None]:
  """Metrics over a slice of a split, from float64 sums.

  residue_perplexity = exp(mean nll over residues), the headline;
  bits_per_residue = mean nll / ln 2; perplexity counts EOS too; accuracy is
  over residues; protein_perplexity = exp(mean over proteins of the mean nll of
  each protein's residues), so every protein weighs the same (the geometric
  mean of the proteins' own perplexities). For a masked model the names begin
  with masked_, and there is no perplexity with EOS.

  Args:
    scores: of the whole split.
    proteins: the split.
    where_T: bool [T], the residues of the slice; None for all.
    where_P: bool [P], the proteins whose EOS belongs to it; None for all.

  Returns:
    The metrics, None where there is nothing to average.
  """
  chosen_T = scores.scored if where_T is None else scores.scored & where_T
  num_proteins = len(proteins.offsets) - 1
  protein = np.repeat(np.arange(num_proteins), np.diff(proteins.offsets))
  protein = protein[chosen_T]
  nll = scores.nll[chosen_T].astype(np.float64)
  count_P = np.bincount(protein, minlength=num_proteins)
  sum_P = np.bincount(protein, nll, num_proteins)
  present_P = count_P > 0
  metrics = {}
  if len(nll):
    metrics['residue_perplexity'] = perplexity(nll.mean())
    metrics['bits_per_residue'] = float(nll.mean() / np.log(2))
    mean_P = sum_P[present_P] / count_P[present_P]
    metrics['protein_perplexity'] = perplexity(mean_P.mean())
    if scores.correct is not None:
      metrics['accuracy'] = float(scores.correct[chosen_T].mean())
  if scores.objective == 'masked':
    metrics = {f'masked_{name}': value for name, value in metrics.items()}
  elif scores.eos_nll is not None:
    eos_nll = scores.eos_nll if where_P is None else scores.eos_nll[where_P]
    if len(eos_nll):
      total = nll.sum() + eos_nll.sum(dtype=np.float64)
      metrics['perplexity'] = perplexity(total / (len(nll) + len(eos_nll)))
  metrics['num_residues'] = len(nll)
  metrics['num_proteins'] = int(present_P.sum())
  return {name: metrics.get(name) for name in METRICS}


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
