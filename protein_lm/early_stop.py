"""Stops a run whose validation loss no longer falls; knows the best one."""

import dataclasses
import math
from typing import NamedTuple

import gin


class Best(NamedTuple):
  """What evaluations showed so far; goes through metadata as a list.

  loss: lowest validation loss, nats a token; None before any.
  step: where it was reached.
  num_evals_since: evaluations since one that lowered the loss by min_delta.
  """

  loss: float | None = None
  step: int | None = None
  num_evals_since: int = 0
  # The loss that counts as the last progress.
  reference: float | None = None


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EarlyStop:
  """When to stop for want of progress; by default never.

  patience_evals: evaluations in a row without progress that end the run; None
    never ends it.
  min_delta: by how many nats a token a loss must be below the last progress
    to be progress.

  Example:
    EarlyStop.patience_evals = 5  # in a gin file
  """

  patience_evals: int | None = None
  min_delta: float = 0.0

  def __post_init__(self):
    if self.patience_evals is not None and self.patience_evals < 1:
      raise ValueError(
        'EarlyStop.patience_evals must be at least 1, or None to never stop, '
        f'got {self.patience_evals}.'
      )
    if not self.min_delta >= 0:
      raise ValueError(
        f'EarlyStop.min_delta must be >= 0, got {self.min_delta}.'
      )

  def update(self, best: Best, step: int, loss: float) -> Best:
    """Returns what is known after one evaluation more.

    Args:
      best: before it.
      step: of the evaluation.
      loss: validation loss, nats a token; one that is not finite is no
        progress.
    """
    if not math.isfinite(loss):
      return best._replace(num_evals_since=best.num_evals_since + 1)
    lower = best.loss is None or loss < best.loss
    is_progress = (
      best.reference is None or loss < best.reference - self.min_delta
    )
    return Best(
      loss=loss if lower else best.loss,
      step=step if lower else best.step,
      num_evals_since=0 if is_progress else best.num_evals_since + 1,
      reference=loss if is_progress else best.reference,
    )

  def is_due(self, best: Best) -> bool:
    """Whether the run ends here."""
    return (
      self.patience_evals is not None
      and best.num_evals_since >= self.patience_evals
    )
