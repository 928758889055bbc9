"""Log-likelihoods of whole sequences, in batches of one shape.

A causal model reads a sequence once, a masked model once for each residue. The
letters B, X and Z count in neither.

Axes: B batch, T residues of sequences one after another, V vocabulary.
"""

import functools

import jax
import numpy as np

from protein_lm import residue_log_probs, vocab
from protein_lm import train_step as steps
from protein_lm.data import EvalBatches
from protein_lm.evaluation import score_split
from protein_lm.layouts import NUM_ENDS
from protein_lm.objectives import TokenScores
from protein_lm.proteins import from_sequences
from protein_lm.residue_log_probs import Place

_AT_ONCE = 2**21  # residues whose scores are held at a time


def log_likelihoods(loaded, sequences, shape, progress=iter):
  """Log-likelihoods of sequences, or a masked model's pseudo-log-likelihoods.

  Args:
    loaded: a LoadedModel that needs no calibration.
    sequences: letters of residues.
    shape: limits of a pass (residue_log_probs.Shape).
    progress: iterates over the batches it is given.

  Returns:
    (sums over residues, those of EOS, 0 by a masked model), [sequences]
    float64 each, in nats.

  Raises:
    FloatingPointError: the model gives NaN.
  """
  if loaded.model.objective == 'masked':
    totals = _pseudo_log_likelihoods(loaded, sequences, shape, progress)
    ends = np.zeros_like(totals)
  else:
    longest = max(map(len, sequences), default=0)
    size = max(1, _AT_ONCE // max(1, longest))
    parts = [
      _causal_log_likelihoods(loaded, part, shape, longest, progress)
      for part in residue_log_probs.batched(sequences, size)
    ]
    totals, ends = np.concatenate([np.zeros((2, 0)), *parts], axis=1)
  check_finite(totals)
  return totals, ends


def _pseudo_log_likelihoods(loaded, sequences, shape, progress):
  places, sequence_of = [], []
  for number, sequence in enumerate(sequences):
    for residue, letter in enumerate(sequence):
      if letter not in vocab.UNCOUNTED_RESIDUES:
        places.append(Place(sequence, residue))
        sequence_of.append(number)
  totals = np.zeros(len(sequences))
  for numbers, log_probs_BV in residue_log_probs.log_probs_of_places(
    loaded, places, shape, progress
  ):
    for n, log_probs_V in zip(numbers, log_probs_BV, strict=True):
      letter = places[n].sequence[places[n].residue]
      totals[sequence_of[n]] += log_probs_V[vocab.RESIDUES.index(letter)]
  return totals


def _causal_log_likelihoods(loaded, sequences, shape, longest, progress):
  """[2, sequences]: sums over residues, and those of EOS."""
  proteins = from_sequences({str(i): x for i, x in enumerate(sequences)})
  row_len = shape.row_len(min(longest + NUM_ENDS, shape.max_len))
  scores = score_split(
    functools.partial(_score_step, loaded.graphdef, loaded.objective),
    loaded.weights,
    progress(
      EvalBatches(proteins, shape.rows(row_len, len(sequences)), row_len)
    ),
    proteins,
  )
  nll_T = np.where(scores.scored, scores.nll, 0).astype(np.float64)
  protein_T = np.repeat(np.arange(len(sequences)), proteins.lengths)
  totals = -np.bincount(protein_T, nll_T, len(sequences))
  return totals, -scores.eos_nll.astype(np.float64)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score_step(graphdef, objective, weights, batch, mask_BL):
  model = steps.merge_model(graphdef, weights)
  scores = objective.eval_scores(model, batch, mask_BL)
  return TokenScores(scores.nll, scores.correct, scores.weights)


def check_finite(values):
  """Refuses the numbers of a diverged model.

  Raises:
    FloatingPointError: one of them is NaN or infinite.
  """
  if not np.isfinite(values).all():
    raise FloatingPointError(
      'the model gives NaN or infinite log-probabilities: its training has '
      'diverged; choose an earlier checkpoint with --step.'
    )
