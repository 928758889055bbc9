"""What a masked model must beat: letters given their neighbours on both sides.

Three steps, each a count shrunk towards the simpler model before it,

  p(a | c) = (count(c, a) + strength * p'(a)) / (count(c) + strength):

1. p(a | left) and p(a | right), one neighbour, towards the unigram;
2. p(a | left, right) towards p(a | left) p(a | right) / p(a), normalised: what
   holds if the two neighbours are independent given the letter;
3. p(a | two on the left, two on the right) towards 2.

Counts are of train, strengths are fitted on validation under evaluation masks.
A neighbour that is masked is unknown to the model too, so it tells the baseline
nothing: a context that holds one counts as never seen, and step 1 is the
unigram on that side.

Axes: T residues of a split one after another, A the 25 residue letters, S the
27 symbols of a context.
"""

import dataclasses

import numpy as np

from protein_lm import vocab
from protein_lm.baselines import NUM_LETTERS, Unigram, fit_strength, shrink
from protein_lm.objectives import evaluation_mask
from protein_lm.proteins import Proteins

_END, _UNKNOWN = NUM_LETTERS, NUM_LETTERS + 1  # beyond an end; masked
_NUM_SYMBOLS = NUM_LETTERS + 2
_NUM_MASKS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class TwoSidedNGram:
  """The fitted baseline.

  Attributes:
    near_SSA: probability of a letter given one neighbour on each side (step 2).
    counts: [27^4, 25] flat, how often a letter stood between four neighbours.
    strength: of step 3.
  """

  name: str
  near_SSA: np.ndarray
  counts: np.ndarray
  totals: np.ndarray
  strength: float
  context: str = 'both'

  def nll(
    self, proteins: Proteins, mask_T: np.ndarray | None = None
  ) -> np.ndarray:
    """Nats of each residue.

    Args:
      proteins: a split.
      mask_T: the residues whose letters nobody sees; None for none but the
        one that is asked for.
    """
    symbols = _neighbours(proteins, mask_T)
    near_T = self.near_SSA[symbols[1], symbols[2], proteins.residues]
    context_T = _context(symbols)
    count_T = self.counts[context_T * NUM_LETTERS + proteins.residues]
    total_T = self.totals[context_T]
    return -np.log(shrink(count_T, total_T, near_T, self.strength))


def fit(
  train: Proteins, validation: Proteins, unigram: Unigram
) -> TwoSidedNGram:
  """Counts on train, strengths of largest likelihood on validation.

  Args:
    train: whose letters are counted.
    validation: other proteins, of which each has five evaluation masks.
    unigram: of train.

  Raises:
    ValueError: by baselines.fit_baselines, if either holds no residue.
  """
  counts = _counts(train)
  between_SSA = counts.reshape(*4 * (_NUM_SYMBOLS,), NUM_LETTERS).sum((0, 3))
  examples = [_examples(validation, k) for k in range(_NUM_MASKS)]
  symbols, letter_T = (
    np.concatenate([example[i] for example in examples], axis=-1)
    for i in (0, 1)
  )
  every_T = np.ones(len(letter_T), bool)
  prior_A = unigram.probability_A

  sides = []
  for symbol_T, axis in ((symbols[1], 1), (symbols[2], 0)):
    count_SA = between_SSA.sum(axis)
    total_S = count_SA.sum(1)
    strength = fit_strength(
      count_SA[symbol_T, letter_T],
      total_S[symbol_T],
      prior_A[letter_T],
      every_T,
    )
    sides.append(shrink(count_SA, total_S[:, None], prior_A[None], strength))
  left_SA, right_SA = sides
  prior_SSA = left_SA[:, None] * right_SA[None] / prior_A
  prior_SSA /= prior_SSA.sum(-1, keepdims=True)
  total_SS = between_SSA.sum(-1)
  strength = fit_strength(
    between_SSA[symbols[1], symbols[2], letter_T],
    total_SS[symbols[1], symbols[2]],
    prior_SSA[symbols[1], symbols[2], letter_T],
    every_T,
  )
  near_SSA = shrink(between_SSA, total_SS[..., None], prior_SSA, strength)

  totals = counts.reshape(-1, NUM_LETTERS).sum(1)
  context_T = _context(symbols)
  strength = fit_strength(
    counts[context_T * NUM_LETTERS + letter_T],
    totals[context_T],
    near_SSA[symbols[1], symbols[2], letter_T],
    every_T,
  )
  return TwoSidedNGram('two-sided 5-gram', near_SSA, counts, totals, strength)


def _counts(train):
  """How often each letter stood in each context, [27^4 * 25] int32."""
  key_T = _context(_neighbours(train, None)) * NUM_LETTERS + train.residues
  size = _NUM_SYMBOLS**4 * NUM_LETTERS
  return np.bincount(key_T, minlength=size).astype(np.int32)


def _examples(proteins, k):
  """([4, T] neighbours, [T] letters) of the k-th mask's counted residues."""
  masks = [
    evaluation_mask(id_, int(length), k, 0.15)
    for id_, length in zip(proteins.ids, proteins.lengths, strict=True)
  ]
  mask_T = np.concatenate([np.zeros(0, bool), *masks])
  chosen_T = mask_T & ~np.isin(proteins.residues, vocab.UNCOUNTED_IDS)
  symbols = _neighbours(proteins, mask_T)
  return symbols[:, chosen_T], proteins.residues[chosen_T]


def _neighbours(proteins, mask_T):
  """Symbols two and one to the left, one and two to the right: [4, T]."""
  residues = np.where(
    False if mask_T is None else mask_T, np.uint8(_UNKNOWN), proteins.residues
  )
  length_T = np.repeat(proteins.lengths, proteins.lengths)
  index_T = np.arange(len(residues)) - np.repeat(
    proteins.offsets[:-1], proteins.lengths
  )
  found = []
  for shift in (-2, -1, 1, 2):
    inside_T = (index_T + shift >= 0) & (index_T + shift < length_T)
    shifted_T = np.roll(residues, -shift)
    found.append(np.where(inside_T, shifted_T, np.uint8(_END)))
  return np.stack(found)


def _context(symbols):
  """The number of each context of four symbols; that with a masked one is never
  counted, as its number belongs to no train residue."""
  number_T = np.zeros(symbols.shape[1], np.int64)
  for symbol_T in symbols:
    number_T = number_T * _NUM_SYMBOLS + symbol_T
  return number_T
