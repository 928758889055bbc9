"""Evaluates a model of labels: one prediction a protein, or a residue.

A protein longer than a row is read in windows: its prediction is the mean of
the outputs of all of them; each residue is predicted once.

Axes: B batch, L length, C outputs, P proteins, T their residues, I items (the
proteins or residues of a split).
"""

import numpy as np


def predict(score_step, weights, batches, proteins, per):
  """The outputs of a model for the items of a split.

  Args:
    score_step: of train_step.make_score_step.
    weights: what it takes.
    batches: EvalBatch objects, some or all of a split.
    proteins: the split.
    per: 'protein' or 'residue'.

  Returns:
    [I, C] float64, NaN for what is in none of the batches, and for B X Z.
  """
  # All queued before the first is fetched.
  results = [score_step(weights, batch.batch, None) for batch in batches]
  num_items = len(proteins) if per == 'protein' else len(proteins.residues)
  totals, counts = None, np.zeros(num_items)
  for batch, result in zip(batches, results, strict=True):
    items, where_BL = _items(batch, proteins, per)
    outputs = np.asarray(result, np.float64)[where_BL]
    if totals is None:
      totals = np.zeros((num_items, outputs.shape[-1]))
    np.add.at(totals, items, outputs)
    np.add.at(counts, items, 1)
  with np.errstate(invalid='ignore'):
    return totals / counts[:, None]


def _items(eval_batch, proteins, per):
  """The items that a batch predicts, and where, bool [B, L]."""
  protein_BL, residue_BL = eval_batch.protein_BL, eval_batch.residue_BL
  if per == 'residue':
    lengths = proteins.lengths
    where_BL = np.asarray(eval_batch.batch.weights) > 0
    where_BL &= residue_BL < lengths[protein_BL]  # no EOS
    return (proteins.offsets[protein_BL] + residue_BL)[where_BL], where_BL
  segment_BL = np.asarray(eval_batch.batch.segment_ids)
  next_BL = np.pad(segment_BL[:, 1:], ((0, 0), (0, 1)))
  where_BL = (segment_BL > 0) & (segment_BL != next_BL)
  return protein_BL[where_BL], where_BL


def summarize(outputs, labels, facts):
  """Metrics of predictions, over the items that have both.

  Args:
    outputs: [I, C] of `predict`.
    labels: [I], NaN where there is none.
    facts: `Data.label_facts`.

  Returns:
    dict of num_labels, and for numbers loss (the mean squared error of
    standardised labels), mse (of labels as they are), pearson and spearman; for
    classes loss (nats) and accuracy. NaN where it is not defined.
  """
  has_both = ~np.isnan(labels) & ~np.isnan(outputs[:, 0])
  outputs, labels = outputs[has_both], np.asarray(labels, np.float64)[has_both]
  metrics = {'num_labels': len(labels)}
  if not len(labels):
    raise ValueError(
      'no protein that is evaluated has a label in data.labels; add some of '
      'the split, or raise experiment.num_eval_batches.'
    )
  if 'classes' in facts:
    log_p = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
    nll = -log_p[np.arange(len(labels)), labels.astype(int)]
    correct = outputs.argmax(1) == labels
    return metrics | {
      'loss': float(nll.mean()),
      'accuracy': float(correct.mean()),
    }
  mse = float(np.mean((to_labels(outputs, facts) - labels) ** 2))
  predicted = outputs[:, 0]
  return metrics | {
    'loss': mse / facts['std'] ** 2,
    'mse': mse,
    'pearson': _correlation(predicted, labels),
    'spearman': _correlation(_ranks(predicted), _ranks(labels)),
  }


def to_labels(outputs, facts):
  """Outputs [I, C] as labels [I]: numbers, or indices of classes."""
  if 'classes' in facts:
    return outputs.argmax(1)
  return outputs[:, 0] * facts['std'] + facts['mean']


def make_evaluate(data, split='validation'):
  """An evaluation with the arguments of evaluation.evaluate_batches.

  Args:
    data: the Data of the run, with labels.
    split: of which the batches are.

  Returns:
    A function (score_step, weights, batches, masks=None) -> metrics.
  """
  proteins, facts = data.proteins(split), data.label_facts
  labels = data.labels(split).values

  def evaluate(score_step, weights, batches, masks=None):
    del masks
    outputs = predict(score_step, weights, batches, proteins, facts['per'])
    return summarize(outputs, labels, facts)

  return evaluate


def _correlation(x, y):
  if len(x) < 2 or x.std() == 0 or y.std() == 0:
    return float('nan')
  return float(np.corrcoef(x, y)[0, 1])


def _ranks(x):
  """Ranks, equal values sharing their mean."""
  from scipy import stats

  return stats.rankdata(x)
