"""The log of a run: metrics.jsonl, TensorBoard, and one line on the screen."""

import json
import math
import os
import pathlib

FILE_NAME = 'metrics.jsonl'


class MetricsLog:
  """Appends one record a step to work_dir/metrics.jsonl and TensorBoard.

  A run that resumes at a step drops what an interrupted run wrote after it,
  so each step stands in the log once.
  """

  def __init__(self, work_dir, step):
    """Opens the log.

    Args:
      work_dir: folder of the run.
      step: the step the run starts from.
    """
    import tensorboardX

    self._path = pathlib.Path(work_dir) / FILE_NAME
    _drop_after(self._path, step)
    self._file = self._path.open('a')
    self._board = tensorboardX.SummaryWriter(
      str(pathlib.Path(work_dir) / 'tensorboard'), purge_step=step + 1
    )

  def write(self, step, metrics):
    """Writes one record: {"step": step, "<split>/<name>": number, ...}."""
    record = {
      name: value if math.isfinite(value) else None  # JSON has no NaN
      for name, value in {'step': step, **metrics}.items()
    }
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)

  def flush(self):
    """Puts the records on disk, before a checkpoint that counts on them.

    TensorBoard is a copy: what its queue holds is lost in a crash.
    """
    self._board.flush()
    os.fsync(self._file.fileno())

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._file.close()
    self._board.close()


def read(work_dir):
  """The records of work_dir/metrics.jsonl; a torn last line is left out."""
  path = pathlib.Path(work_dir) / FILE_NAME
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def ratios(sums, objective):
  """Metrics of one split from its sums (objectives.sums).

  Args:
    sums: dict of floats.
    objective: 'causal' or 'masked'; a masked model's perplexity is another
      quantity and has another name.

  Returns:
    dict of loss (nats per counted token), accuracy and num_tokens, then
    perplexity = exp(loss) and residue_perplexity (EOS left out), or
    masked_residue_perplexity.
  """
  loss = sums['loss'] / max(sums['num_tokens'], 1)
  result = {
    'loss': loss,
    'accuracy': sums['correct'] / max(sums['num_tokens'], 1),
    'num_tokens': sums['num_tokens'],
  }
  if objective == 'masked':
    return result | {'masked_residue_perplexity': _exp(loss)}
  residue_loss = sums['residue_loss'] / max(sums['num_residues'], 1)
  return result | {
    'perplexity': _exp(loss),
    'residue_perplexity': _exp(residue_loss),
  }


def _exp(loss):
  return math.exp(min(loss, 700.0))


def _drop_after(path, step):
  if not path.exists():
    return
  kept = [r for r in read(path.parent) if r['step'] <= step]
  temporary = path.with_suffix('.tmp')
  with temporary.open('w') as file:
    file.writelines(json.dumps(record) + '\n' for record in kept)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
