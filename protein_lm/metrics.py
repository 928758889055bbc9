"""The log of a run: metrics.jsonl, TensorBoard, Weights & Biases if wanted."""

import json
import math
import os
import pathlib
import sys

from protein_lm import wandb_log

FILE_NAME = 'metrics.jsonl'

# Endings of the names whose values depend on the machine and its mood. All
# others are equal, bit for bit, in a run that was interrupted and one that was
# not.
TIMED = ('_per_sec', 'mfu', 'memory_bytes', 'recompilations')


def is_timed(name: str) -> bool:
  """Whether a metric, `<split>/<name>` or `<name>`, depends on the machine."""
  return name.endswith(TIMED)


class MetricsLog:
  """Appends one record a step to work_dir/metrics.jsonl and TensorBoard.

  A run that resumes at a step drops what an interrupted run wrote after it,
  so each step stands in the log once; TensorBoard is told to forget it.
  """

  def __init__(
    self,
    work_dir: str,
    step: int,
    *,
    is_primary: bool = True,
    wandb_project: str | None = None,
    config_text: str = '',
  ):
    """Opens the log.

    Args:
      work_dir: folder of the run.
      step: the step the run starts from.
      is_primary: False writes nothing: of several processes one does.
      wandb_project: project of Weights & Biases that gets a copy; None for
        none.
      config_text: the run's configuration, told to Weights & Biases.

    Raises:
      ValueError: wandb is wanted and not installed.
    """
    self._file = self._board = self._wandb = None
    if not is_primary:
      return
    if wandb_project is not None:
      self._wandb = wandb_log.start(wandb_project, work_dir, config_text)
    path = pathlib.Path(work_dir) / FILE_NAME
    _drop_after(path, step)
    self._file = path.open('a')
    self._board = _summary_writer()(
      str(pathlib.Path(work_dir) / 'tensorboard'), purge_step=step + 1
    )

  def write(self, step, metrics):
    """Writes one record: {"step": step, "<split>/<name>": number, ...}."""
    if self._file is None:
      return
    record = {
      name: value if math.isfinite(value) else None  # JSON has no NaN
      for name, value in {'step': step, **metrics}.items()
    }
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log(metrics, step=step)

  def flush(self):
    """Puts the records on disk, before a checkpoint that counts on them.

    TensorBoard is a copy: what its queue holds is lost in a crash.
    """
    if self._file is None:
      return
    self._board.flush()
    os.fsync(self._file.fileno())

  def __enter__(self):
    return self

  def __exit__(self, error_type, *exception):
    if self._file is not None:
      self._file.close()
      self._board.close()
    if self._wandb is not None:
      self._wandb.finish(exit_code=int(error_type is not None))


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
    objective: of the model class. A masked model's perplexity is another
      quantity and has another name; a model of labels has none.

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
  if objective in ('regression', 'classification'):
    result['num_labels'] = result.pop('num_tokens')
    if objective == 'regression':
      del result['accuracy']
    return result
  if objective == 'masked':
    return result | {'masked_residue_perplexity': _exp(loss)}
  residue_loss = sums['residue_loss'] / max(sums['num_residues'], 1)
  return result | {
    'perplexity': _exp(loss),
    'residue_perplexity': _exp(residue_loss),
  }


def _summary_writer():
  """tensorboardX's; without PyTorch, which it imports if it can.

  For tensors that we have none of, at 1.4 s of the start of a run.
  """
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # an import of it fails
  try:
    from tensorboardX import SummaryWriter
  finally:
    if hidden:
      del sys.modules['torch']
  return SummaryWriter


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
