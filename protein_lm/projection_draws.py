"""How much of a score is the luck of the random projection.

Fast attention estimates with random matrices, fixed in evaluation by the seed
of its factory. The same weights are scored under several draws: the model's own
seed and the ones that follow it.
"""

import dataclasses

import numpy as np

from fast_attention import FastAttention
from protein_lm import train_step
from protein_lm.proteins import Proteins
from protein_lm.subset import choose

NUM_DRAWS = 5
SAMPLE_RESIDUES = 2**15  # of a split, where the whole was not asked for
METRICS = (
  'projection_perplexity_mean',
  'projection_perplexity_std',
  'num_projections',
  'projection_num_residues',
)


def has_projection(attention_fns) -> bool:
  """Whether any attention of a model draws a random matrix."""
  return any(map(_is_random, attention_fns))


def is_fixed(attention_fns) -> bool:
  """Whether training had the same matrices all along, to which it adapted."""
  return any(_is_random(fn) and not fn.redraw_features for fn in attention_fns)


def redraw(loaded, number: int):
  """The model with its number-th draw of all projections; 0 is its own.

  Args:
    loaded: LoadedModel.
    number: is added to the seed of each attention.

  Returns:
    LoadedModel.
  """
  model = train_step.merge_model(loaded.graphdef, loaded.params)
  model.attention_fns = tuple(
    dataclasses.replace(fn, seed=fn.seed + number) if _is_random(fn) else fn
    for fn in model.attention_fns
  )
  graphdef, _ = train_step.split_model(model)
  return dataclasses.replace(loaded, graphdef=graphdef)


def sample(
  proteins: Proteins, max_residues: int = SAMPLE_RESIDUES
) -> list[int]:
  """Numbers of the first proteins by the sha256 of their ids.

  Args:
    proteins: a split.
    max_residues: of them together; one protein there is at least.
  """
  lengths, numbers = proteins.lengths, []
  for number in choose(proteins, None, proteins.lengths.max()):
    if numbers and lengths[[*numbers, number]].sum() > max_residues:
      break
    numbers.append(number)
  return sorted(numbers)


def summarize(perplexities, num_residues: int) -> dict[str, float | int]:
  """METRICS: mean and standard deviation over the draws."""
  values = (
    float(np.mean(perplexities)),
    float(np.std(perplexities, ddof=1)),
    len(perplexities),
    num_residues,
  )
  return dict(zip(METRICS, values, strict=True))


def _is_random(fn):
  return isinstance(fn, FastAttention) and fn.features_type != 'deterministic'
