"""What a swap of attention costs: the same weights before and after it.

A run that starts from another one (init_from.py) under another attention logs,
at step 0, the loss and accuracy on validation under the source's attention and
under its own; its later records say what training won back.
"""

import dataclasses
import os

from protein_lm import config, loading, metrics
from protein_lm.evaluate import attention_name
from protein_lm.evaluation import evaluate_batches
from protein_lm.train_step import merge_model

_TOLD = ('loss', 'accuracy')


@dataclasses.dataclass(frozen=True)
class SwapReport:
  """Validation of the same weights under two attentions.

  Attributes:
    before: names and values of metrics (loss in nats per counted token,
      accuracy) under the attention of the source.
    after: under that of this run, before any step.
    names: of both attentions.
  """

  before: dict[str, float]
  after: dict[str, float]
  names: tuple[str, str]

  @property
  def metrics(self):
    """'swap/loss_before', 'swap/accuracy_after' ..., of step 0."""
    return {
      f'swap/{name}_{when}': float(values[name])
      for when, values in (('before', self.before), ('after', self.after))
      for name in _TOLD
    }

  def __str__(self):
    return (
      f'swap of attention on validation: {self.names[0]} accuracy '
      f'{self.before["accuracy"]:.4f}, loss {self.before["loss"]:.4f} -> '
      f'{self.names[1]} accuracy {self.after["accuracy"]:.4f}, loss '
      f'{self.after["loss"]:.4f} before training'
    )


def swap_report(path, step, graphdef, weights, score_step, batches, masks=None):
  """Evaluates a run's first weights under its source's attention and its own.

  Args:
    path: folder of the source, as in init_from.open_source.
    step: of its checkpoint.
    graphdef: of this run's model.
    weights: its Weights at step 0.
    score_step: of this run, from train_step.make_score_step.
    batches: EvalBatch objects of validation.
    masks: of a masked model, see evaluation.evaluate_batches.

  Returns:
    (SwapReport or None, a sentence why there is none; '' if the attention is
    the same or there is no batch).
  """
  if not batches:
    return None, ''
  if not os.path.isdir(os.path.expanduser(path)):
    return None, 'no comparison before and after: the source is a file'
  with config.isolated():
    source = loading.load(path, step)
    there, here = source.model, merge_model(graphdef, weights)
    if there.attention_fns == here.attention_fns:
      return None, ''
    if there.objective != here.objective:
      return None, (
        f'no comparison before and after: the source is {there.objective}, '
        f'this run {here.objective}'
      )
    length = batches[0].batch.tokens.shape[1]
    if there.position_embedding == 'learned' and length > there.max_len:
      return None, (
        f'no comparison before and after: rows have {length} tokens and the '
        f"source's position table {there.max_len}"
      )
    before = evaluate_batches(
      source.make_score_step(), source.weights, batches, masks
    )
  after = evaluate_batches(score_step, weights, batches, masks)
  names = (
    attention_name(there.attention_fns),
    attention_name(here.attention_fns),
  )
  return SwapReport(before, after, names), ''


def log_swap(log, work_dir, *args, **kwargs):
  """Writes and prints the swap_report of a run at step 0, once.

  Args:
    log: MetricsLog of the run.
    work_dir: of the run, whose metrics.jsonl may hold it already.
    *args: of swap_report.
    **kwargs: of swap_report.
  """
  if any('swap/accuracy_before' in record for record in metrics.read(work_dir)):
    return
  report, why = swap_report(*args, **kwargs)
  if report is not None:
    log.write(0, report.metrics)
    print(report, flush=True)
  elif why:
    print(why, flush=True)


def after_training(work_dir, record):
  """One line on a run's last record beside its record of step 0, or ''.

  Args:
    work_dir: of the run, whose metrics.jsonl holds the record of step 0.
    record: the last one, with 'validation/accuracy'.
  """
  first = next(
    (r for r in metrics.read(work_dir) if 'swap/accuracy_before' in r), None
  )
  accuracy = record.get('validation/accuracy')
  if first is None or accuracy is None:
    return ''
  return (
    'swap of attention: accuracy on validation '
    f'{first["swap/accuracy_before"]:.4f} before, '
    f'{first["swap/accuracy_after"]:.4f} after the swap, {accuracy:.4f} after '
    'training'
  )
