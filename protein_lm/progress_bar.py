"""What a run shows: a bar on a terminal, plain lines elsewhere."""

import sys


class ProgressBar:
  """Steps done, the last record and the time left, on standard error.

  Where standard error is no terminal, each record is a line on standard
  output.
  """

  def __init__(self, step: int, num_steps: int, is_shown: bool = True):
    """Starts at a step.

    Args:
      step: steps already done.
      num_steps: steps of the whole run.
      is_shown: False prints nothing: one process of several speaks.
    """
    from tqdm import tqdm

    self._step, self._num_steps = step, num_steps
    self._is_shown = is_shown
    self._bar = tqdm(
      total=num_steps,
      initial=step,
      unit='step',
      file=sys.stderr,
      disable=not (is_shown and sys.stderr.isatty()),
      dynamic_ncols=True,
    )

  def advance(self) -> None:
    """One step more."""
    self._step += 1
    self._bar.update()

  def show(self, record: dict[str, float], seconds_left: float) -> None:
    """Shows a record of metrics, `<split>/<name>`."""
    if not self._is_shown:
      return
    text = ', '.join(_parts(record))
    if self._bar.disable:
      left = self._bar.format_interval(seconds_left)
      where = f'step {self._step}/{self._num_steps}'
      print(', '.join(filter(None, [where, text, f'{left} left'])), flush=True)
    elif any(name.startswith('validation/') for name in record):
      self._bar.write(f'step {self._step}: {text}')
    else:
      self._bar.set_postfix_str(text)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    self._bar.close()


def _parts(record):
  for name, value in record.items():
    split, metric = name.split('/')
    if metric in ('loss', 'masked_residue_perplexity', 'residue_perplexity'):
      yield f'{split} {metric.replace("_", " ")} {value:.3f}'
    elif metric == 'tokens_per_sec':
      yield f'{value:,.0f} tokens/s'
    elif metric == 'mfu':
      yield f'mfu {value:.1%}'
