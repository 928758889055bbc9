"""What a language model must beat: uniform, unigram, adaptive and n-grams.

Every baseline is fitted on train, has at most one free number per order (fitted
on validation), and gives each residue the negative log-likelihood, in nats, of
its letter given the letters before it in the same protein. All three kinds
that learn are the same formula, a count shrunk towards a simpler model,

  p(a | c) = (count(c, a) + strength * p'(a)) / (count(c) + strength),

where c is a context and p' the distribution one step simpler. It sums to one
over the 25 letters because p' does.

Axes: T residues of a split one after another, A the 25 residue letters.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from protein_lm import vocab
from protein_lm.proteins import Proteins

NUM_LETTERS = len(vocab.RESIDUES)
_NUM_SYMBOLS = NUM_LETTERS + 1  # a context may also hold the start, BOS
_START = NUM_LETTERS
MAX_ORDER = 5  # 26^4 contexts * 25 letters * 8 bytes = 91 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Unigram:
  """The same distribution at every position."""

  name: str
  probability_A: np.ndarray
  context: str = 'none'

  def nll(self, proteins: Proteins) -> np.ndarray:
    return -np.log(self.probability_A[proteins.residues])


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptiveUnigram:
  """The unigram, updated by the letters seen so far in the same protein.

  p(a | prefix of t residues) =
      (count_prefix(a) + strength * unigram(a)) / (t + strength)
  """

  name: str
  unigram: Unigram
  strength: float
  context: str = 'left'

  def nll(self, proteins: Proteins) -> np.ndarray:
    prior_T = self.unigram.probability_A[proteins.residues]
    count_T, total_T = _prefix_counts(proteins)
    return -np.log(shrink(count_T, total_T, prior_T, self.strength))


@dataclasses.dataclass(frozen=True, eq=False)
class NGram:
  """Interpolated n-gram: each order shrunk towards the order below it.

  p_n(a | n-1 letters before) = (count_n + strength_n * p_{n-1}) / (total_n +
  strength_n), p_1 being the unigram. Positions before the N-terminus are BOS,
  so contexts never cross proteins. (Kneser-Ney was tried on human Swiss-Prot:
  perplexity 17.36 for n = 5 against 17.23 here; one weight for each power of
  two of total_n instead of one strength gains 0.03 at most.)

  Attributes:
    counts: counts[i] [26^(i+1) * 25], how often a letter followed a context of
      i + 1 symbols in train.
    strengths: one for each of counts.
  """

  name: str
  unigram: Unigram
  counts: tuple[np.ndarray, ...]
  strengths: tuple[float, ...]
  context: str = 'left'

  @property
  def order(self) -> int:
    return len(self.counts) + 1

  def nll(self, proteins: Proteins) -> np.ndarray:
    probability_T = self.unigram.probability_A[proteins.residues]
    contexts = _contexts(proteins, self.order)
    next(contexts)  # the empty context is the unigram's
    for counts, strength, context_T in zip(
      self.counts, self.strengths, contexts, strict=True
    ):
      count_T, total_T = _look_up(counts, context_T, proteins.residues)
      probability_T = shrink(count_T, total_T, probability_T, strength)
    return -np.log(probability_T)


Baseline = Unigram | AdaptiveUnigram | NGram


def uniform() -> Unigram:
  """Every residue letter alike: perplexity 25."""
  return Unigram('uniform', np.full(NUM_LETTERS, 1 / NUM_LETTERS))


def fit_unigram(train: Proteins) -> Unigram:
  """Letter frequencies of train, one added to each so that none is zero."""
  count_A = np.bincount(train.residues, minlength=NUM_LETTERS) + 1
  return Unigram('unigram', count_A / count_A.sum())


def fit_baselines(train: Proteins, validation: Proteins) -> list[Baseline]:
  """Fits all baselines: counts on train, strengths on validation.

  Args:
    train: proteins whose letters are counted.
    validation: other proteins, on which each strength is chosen by maximum
      likelihood.

  Returns:
    uniform, unigram, adaptive unigram, trigram and 5-gram, in that order.

  Raises:
    ValueError: if either split holds no residue.
  """
  for split, proteins in (('train', train), ('validation', validation)):
    if not len(proteins.residues):
      raise ValueError(
        f'The baselines need residues in the {split} split, which is empty.'
      )
  unigram = fit_unigram(train)
  counted_T = ~np.isin(validation.residues, vocab.UNCOUNTED_IDS)
  prior_T = unigram.probability_A[validation.residues]
  strength = fit_strength(*_prefix_counts(validation), prior_T, counted_T)
  adaptive = AdaptiveUnigram('adaptive unigram', unigram, strength)

  all_counts, strengths = [], []
  probability_T = prior_T
  for order, (train_context_T, context_T) in enumerate(
    zip(
      _contexts(train, MAX_ORDER),
      _contexts(validation, MAX_ORDER),
      strict=True,
    ),
    start=1,
  ):
    if order == 1:
      continue
    counts = np.bincount(
      train_context_T * NUM_LETTERS + train.residues,
      minlength=_NUM_SYMBOLS ** (order - 1) * NUM_LETTERS,
    )
    count_T, total_T = _look_up(counts, context_T, validation.residues)
    strength = fit_strength(count_T, total_T, probability_T, counted_T)
    probability_T = shrink(count_T, total_T, probability_T, strength)
    all_counts.append(counts)
    strengths.append(strength)
  ngrams = [
    NGram(name, unigram, tuple(all_counts[: n - 1]), tuple(strengths[: n - 1]))
    for name, n in (('trigram', 3), ('5-gram', 5))
  ]
  return [uniform(), unigram, adaptive, *ngrams]


def shrink(count_T, total_T, prior_T, strength):
  return (count_T + strength * prior_T) / (total_T + strength)


def _prefix_counts(proteins: Proteins) -> tuple[np.ndarray, np.ndarray]:
  """Earlier residues of the same protein: those of the same letter, and all."""
  protein_T, index_T = _coordinates(proteins)
  group_T = protein_T * NUM_LETTERS + proteins.residues
  order_T = np.argsort(group_T, kind='stable')
  sorted_T = group_T[order_T]
  starts = np.flatnonzero(np.diff(sorted_T, prepend=-1))
  sizes = np.diff(starts, append=len(sorted_T))
  count_T = np.empty_like(index_T)
  count_T[order_T] = np.arange(len(sorted_T)) - np.repeat(starts, sizes)
  return count_T, index_T


def _coordinates(proteins: Proteins) -> tuple[np.ndarray, np.ndarray]:
  """The protein of each residue and its index within that protein."""
  lengths = np.diff(proteins.offsets)
  protein_T = np.repeat(np.arange(len(lengths)), lengths)
  index_T = np.arange(len(protein_T)) - proteins.offsets[:-1][protein_T]
  return protein_T, index_T


def _contexts(proteins: Proteins, order: int) -> Iterator[np.ndarray]:
  """Yields the number of each residue's context, for n = 1 to `order`."""
  _, index_T = _coordinates(proteins)
  context_T = np.zeros(len(index_T), np.int64)
  yield context_T
  for distance in range(1, order):
    symbol_T = np.roll(proteins.residues, distance)
    symbol_T = np.where(index_T < distance, np.uint8(_START), symbol_T)
    place = _NUM_SYMBOLS ** (distance - 1)
    context_T = context_T + symbol_T * np.int64(place)
    yield context_T


def _look_up(counts, context_T, residues_T):
  """How often the context was followed by this letter, and by any."""
  totals = counts.reshape(-1, NUM_LETTERS).sum(1)
  return counts[context_T * NUM_LETTERS + residues_T], totals[context_T]


def fit_strength(count_T, total_T, prior_T, counted_T) -> float:
  """The strength of largest likelihood: a grid, then golden sections."""
  arrays = [array_T[counted_T] for array_T in (count_T, total_T, prior_T)]

  def loss(log_strength):
    return -np.log(shrink(*arrays, np.exp(log_strength))).sum()

  grid = np.linspace(-3.0, 18.0, 22)
  best = grid[np.argmin([loss(point) for point in grid])]
  low, high = best - 1, best + 1
  ratio = (np.sqrt(5) - 1) / 2
  for _ in range(12):  # to 0.6 % of the strength
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    if loss(left) < loss(right):
      high = right
    else:
      low = left
  return float(np.exp((low + high) / 2))
