"""What models of labels are trained on: squared errors, or classes.

Axes: B batch, L length, C outputs.

Which positions count: those with a label (`LabelledBatch.weights`). Their
weighted number is `num_tokens`, and the loss is the mean over them.
"""

import dataclasses

import gin
import jax
import jax.numpy as jnp

from protein_lm.objectives import Objective, TokenScores


@dataclasses.dataclass(frozen=True)
class LabelObjective(Objective):
  """Common to both: outputs at evaluation, and what counts."""

  counted_share = 1.0

  def eval_scores(self, model, batch, mask_BL=None):
    """The outputs of the head, [B, L, C] float32; takes no labels.

    Raises:
      ValueError: if a mask is given.
    """
    if mask_BL is not None:
      raise ValueError('a model of labels sees all residues; pass no mask.')
    return self._outputs(model, batch, None)

  def _outputs(self, model, batch, rng):
    return model(
      batch.tokens,
      positions=batch.positions,
      segment_ids=batch.segment_ids,
      rng=rng,
      deterministic=rng is None,
    )

  def _labels(self, batch):
    """Labels where they count, 0 elsewhere, so that no NaN spreads."""
    return jnp.where(batch.weights > 0, batch.labels, 0)


@dataclasses.dataclass(frozen=True)
class RegressionObjective(LabelObjective):
  """The squared error of standardised labels."""

  def train_scores(self, model, batch, rng):
    """TokenScores whose nll is the squared error; nothing is `correct`."""
    output_BL = self._outputs(model, batch, rng)[..., 0]
    error_BL = jnp.square(output_BL - self._labels(batch))
    return TokenScores(error_BL, jnp.zeros_like(error_BL), batch.weights)


@dataclasses.dataclass(frozen=True)
class ClassificationObjective(LabelObjective):
  """Cross-entropy of the classes, in nats."""

  def train_scores(self, model, batch, rng):
    """TokenScores of the classes."""
    logits_BLC = self._outputs(model, batch, rng)
    labels_BL = self._labels(batch).astype(jnp.int32)
    one_hot_BLC = jax.nn.one_hot(labels_BL, logits_BLC.shape[-1])
    nll_BL = -jnp.sum(jax.nn.log_softmax(logits_BLC) * one_hot_BLC, -1)
    correct_BL = jnp.argmax(logits_BLC, -1) == labels_BL
    return TokenScores(nll_BL, correct_BL, batch.weights)


@gin.configurable
def regression_objective():
  """Squared errors, the objective of FlaxRegressor."""
  return RegressionObjective()


@gin.configurable
def classification_objective():
  """Classes, the objective of FlaxClassifier."""
  return ClassificationObjective()


def check(model, data):
  """Refuses a model and data that disagree on labels.

  Args:
    model: of any class, abstract or not.
    data: the Data of the run.

  Raises:
    ValueError: one sentence.
  """
  name, table = type(model).__name__, data.label_table
  is_of_labels = model.objective in ('regression', 'classification')
  if not is_of_labels:
    if table is not None:
      raise ValueError(
        f'data.labels are for FlaxRegressor and FlaxClassifier, and this model '
        f'is {name}; leave data.labels out, or change experiment.model_cls.'
      )
    return
  if table is None:
    raise ValueError(f'{name} needs labels: bind data.labels to a table.')
  classes = getattr(model, 'classes', None)
  if classes != table.classes:
    raise ValueError(
      f'{name} has the classes {classes} and data.label_classes are '
      f'{table.classes}; bind both to the same.'
    )
  if table.per == 'residue' and model.head_pooling != 'token':
    raise ValueError(
      f"labels of residues need {name}.head_pooling = 'token', got "
      f'{model.head_pooling!r}.'
    )
