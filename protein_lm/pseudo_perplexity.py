"""Pseudo-perplexity of a masked model: one residue hidden at a time.

    PPPL = exp(- mean over residues log p(x_i | all other residues))

A forward pass for each residue: copies of a protein, each with another residue
masked, lie packed in the rows of batches. `plan` says what that costs.

Beside it stand two estimates from a single pass that masks nothing. In training
a residue that is asked for is shown as it is with probability b = 0.1 and as a
random one of V = 20 amino acids with a = 0.1 (objectives.corrupt), so that what
the model says of a residue it sees, q, mixes p with certainty:

- published: q = (b + a p) / (a + b), as if how the residue came to be shown did
  not depend on it; p = ((a + b) q - b) / a, at least 1e-4. After Gordon, Lu and
  Abbeel, Protein language model fitness is a matter of preference, 2025,
  algorithm 2, with the a and b of our training;
- Bayes: the residue shown was kept with odds b p : a / V, hence
  q = p (b + a / V) / (b p + a / V); p = q (a / V) / (b + a / V - b q).

Axes: T residues of a split, P proteins, I copies of proteins.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from protein_lm import bootstrap, per_sequence
from protein_lm.baselines import Baseline
from protein_lm.objectives import NUM_AMINO_ACIDS
from protein_lm.proteins import Proteins
from protein_lm.scores import Scores, counted_residues
from protein_lm.subset import choose, take

NUM_PROTEINS = 20  # of a split, unless another number is asked for
_KEPT = _RANDOM = 0.1  # b and a
_LEAST = 1e-4
_BATCHES_AT_ONCE = 16  # copies made at a time, to bound the memory

METRICS = (
  'pseudo_perplexity',
  'pseudo_perplexity_low',
  'pseudo_perplexity_high',
  'one_pass_perplexity_published',
  'one_pass_perplexity_bayes',
  'pseudo_num_residues',
  'pseudo_num_proteins',
)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What is going to be computed.

  Attributes:
    proteins: the chosen ones.
    num_passes: forward passes, one for each residue but B, X and Z.
    num_batches: of batch_size rows of max_len tokens.
    num_tokens: computed in them, padding included.
    seconds: estimated, from the time of one batch.
    text: all this in a sentence or two.
  """

  proteins: Proteins
  num_passes: int
  num_batches: int
  num_tokens: int
  seconds: float
  text: str


def check(loaded) -> None:
  """Refuses a causal model.

  Raises:
    ValueError: it is one.
  """
  if loaded.model.objective != 'masked':
    raise ValueError(
      f'{loaded.work_dir} holds a causal {type(loaded.model).__name__}: '
      'pseudo-perplexity is of masked models, leave --pseudo_perplexity out.'
    )


def plan(
  scorer, proteins: Proteins, split: str, num_proteins: int = NUM_PROTEINS
) -> Plan:
  """Chooses proteins and counts the cost; compiles, and times one batch.

  Args:
    scorer: Scorer of a masked model.
    proteins: a split.
    split: its name.
    num_proteins: how many to take at most, in the order of the sha256 of their
      ids. None longer than a row is taken.

  Raises:
    ValueError: the model is causal, or no protein fits.
  """
  check(scorer.loaded)
  cap = scorer.max_len - 2
  chosen = choose(proteins, num_proteins, cap)
  if not chosen:
    raise ValueError(
      f'{split} has no protein of at most {cap:,} residues, which is what a '
      'row of data.max_len tokens holds with BOS and EOS.'
    )
  subset = take(proteins, sorted(chosen))
  passes, batches, tokens = 0, 0, 0
  for copies, *_ in _copies(scorer, subset):
    its = scorer.batches(copies)
    passes += len(copies)
    batches += len(its)
    tokens += len(its) * its[0].batch.tokens.size
  first = next(_copies(scorer, subset))[0]
  seconds = batches * scorer.seconds_per_batch(first)
  too_long = int((proteins.lengths > cap).sum())
  text = (
    f'pseudo-perplexity of {split}: {len(subset):,} of {len(proteins):,} '
    'proteins, the first by the sha256 of their ids of those of at most '
    f'{cap:,} residues ({too_long:,} are longer); {passes:,} forward passes, '
    f'{tokens:,} tokens in {batches:,} batches, about {_duration(seconds)}'
  )
  return Plan(subset, passes, batches, tokens, seconds, text)


def score(
  scorer,
  proteins: Proteins,
  after_batch: Callable[[int], None] = lambda _: None,
) -> Scores:
  """Scores each residue with it alone hidden.

  Args:
    scorer: Scorer of a masked model.
    proteins: of a Plan.
    after_batch: called with a number after each batch.
  """
  found = Scores(
    np.zeros(len(proteins.residues), np.float32),
    counted_residues(proteins),
    np.zeros(len(proteins.residues), bool),
    objective='masked',
  )
  for copies, mask, place in _copies(scorer, proteins):
    its = scorer.score(copies, mask_T=mask, after_batch=after_batch)
    found.nll[place] = its.nll[mask]
    found.correct[place] = its.correct[mask]
  return found


def one_pass(scorer, proteins: Proteins) -> tuple[np.ndarray, np.ndarray]:
  """Both estimates of the nats of each residue, [T], from one pass.

  Returns:
    (published, Bayes), see above.
  """
  nothing_T = np.zeros(len(proteins.residues), bool)
  q_T = np.exp(-scorer.score(proteins, mask_T=nothing_T).nll.astype(np.float64))
  published_T = ((_RANDOM + _KEPT) * q_T - _KEPT) / _RANDOM
  each = _RANDOM / NUM_AMINO_ACIDS
  bayes_T = q_T * each / (_KEPT + each - _KEPT * q_T)
  return -np.log(np.maximum(published_T, _LEAST)), -np.log(bayes_T)


def summarize(
  scores: Scores, estimates: tuple[np.ndarray, np.ndarray], proteins: Proteins
) -> dict[str, Any]:
  """METRICS, with the 95 % interval of a bootstrap over clusters."""
  count_P, nats_P, _ = per_sequence.sums(scores, proteins)
  intervals = bootstrap.ratio_intervals([nats_P], count_P, proteins.clusters)
  low, high = map(_exp, intervals[0]) if intervals else (None, None)
  values = (_perplexity(scores.nll, scores.scored), low, high)
  values += tuple(_perplexity(x_T, scores.scored) for x_T in estimates)
  values += (int(scores.scored.sum()), len(proteins))
  return dict(zip(METRICS, values, strict=True))


def summarize_baseline(
  baseline: Baseline, scores: Scores, proteins: Proteins
) -> dict[str, Any]:
  """The metrics of a baseline that sees all neighbours, on these residues."""
  values = {
    'pseudo_perplexity': _perplexity(baseline.nll(proteins), scores.scored),
    'pseudo_num_residues': int(scores.scored.sum()),
    'pseudo_num_proteins': len(proteins),
  }
  return {name: values.get(name) for name in METRICS}


def _exp(nats):
  return float(np.exp(nats))


def _perplexity(nll_T, scored_T):
  return _exp(nll_T[scored_T].mean(dtype=np.float64))


def _copies(
  scorer, proteins
) -> Iterator[tuple[Proteins, np.ndarray, np.ndarray]]:
  """Yields copies of proteins, what each hides, and which residues these are.

  Each residue of `place` is hidden in one copy, in this order.
  """
  counted_T = counted_residues(proteins)
  owner_T = np.repeat(np.arange(len(proteins)), proteins.lengths)
  place = np.flatnonzero(counted_T)
  size = np.cumsum(proteins.lengths[owner_T[place]] + 2)
  at_once = _BATCHES_AT_ONCE * scorer.batch_size * scorer.max_len
  for part in np.split(place, np.flatnonzero(np.diff(size // at_once)) + 1):
    copies = take(proteins, owner_T[part])
    mask = np.zeros(len(copies.residues), bool)
    index = part - proteins.offsets[owner_T[part]]
    mask[copies.offsets[:-1] + index] = True
    yield copies, mask, part


def _duration(seconds):
  if seconds < 90:
    return f'{seconds:.0f} s'
  return (
    f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
  )
