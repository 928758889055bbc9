"""The evaluation that a run repeats, on the same batches each time."""

import numpy as np

from protein_lm import label_evaluation
from protein_lm.evaluation import batch_mask, evaluate_batches, masked_residues


class Validation:
  """Evaluates weights on batches spread evenly over the validation split.

  Attributes:
    batches: EvalBatch objects; none without such a split.
    masks: of a masked model, the mask of each batch; else None.
  """

  def __init__(self, data, objective_name, num_batches, score_step):
    """Reads the split.

    Args:
      data: the Data of the run.
      objective_name: of the model, such as 'causal'.
      num_batches: how many to read each time, at most.
      score_step: see train_step.make_score_step.
    """
    self._score_step, self._evaluate = score_step, evaluate_batches
    self.batches, self.masks = [], None
    if 'validation' not in data.splits:
      print('warning: there is no validation split, so no evaluation.')
      return
    proteins = data.proteins('validation')
    batches = data.eval_batches(proteins)
    num_batches = min(num_batches, len(batches))
    chosen = np.linspace(0, len(batches) - 1, num_batches).round().astype(int)
    self.batches = [batches[int(i)] for i in chosen]
    if objective_name == 'masked':
      mask_T = masked_residues(proteins)
      self.masks = [batch_mask(b, proteins, mask_T) for b in self.batches]
    elif data.label_table is not None:
      self._evaluate = label_evaluation.make_evaluate(data)

  def __call__(self, weights, num_batches=None):
    """Metrics of Weights by name, on all batches or on the first ones."""
    kept = slice(num_batches)
    return self._evaluate(
      self._score_step,
      weights,
      self.batches[kept],
      self.masks and self.masks[kept],
    )
