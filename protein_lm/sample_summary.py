"""How samples differ from train: novelty, composition, lengths, repeats.

Train is read once, in blocks, so that it need not fit into memory.

Axes: A the 20 standard amino acids, P proteins, Q samples.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from protein_lm import proteins as proteins_lib
from protein_lm import vocab
from protein_lm.datasets.leakage import HeldOutWords
from protein_lm.samples import Sample

_BLOCK = 2_000  # proteins of train read at a time
_NUM_LETTERS = len(vocab.STANDARD_RESIDUES)


@dataclasses.dataclass(frozen=True, eq=False)
class Train:
  """What is compared with.

  Attributes:
    count_A: residues of each kind.
    lengths_P: of its proteins.
    in_train_Q: share of each sample's 8-mers that occur in train.
    nearest_Q: the largest share that one protein of train has.
    is_there_Q: whether a protein of train is the sample.
    nearest_of_test: mean of what nearest_Q is, of the test proteins for which
      preparation measured it; NaN if there are none.
  """

  count_A: np.ndarray
  lengths_P: np.ndarray
  in_train_Q: np.ndarray
  nearest_Q: np.ndarray
  is_there_Q: np.ndarray
  nearest_of_test: float = np.nan


def read_train(
  data, sequences: Sequence[str], after_block=lambda num_proteins: None
) -> Train:
  """Reads train and looks for the samples in it.

  Args:
    data: of open_data.
    sequences: [Q] letters, none empty.
    after_block: called with the number of proteins just read.

  Returns:
    Train.

  Raises:
    ValueError: no train split, or its files are missing or damaged.
  """
  words = HeldOutWords(list(sequences))
  found, lengths = words.nothing(), []
  count_A = np.zeros(len(vocab.RESIDUES), np.int64)
  missing, wanted = set(sequences), set(sequences)
  for builder in data.builders:
    store = proteins_lib.open_store(builder, 'train')
    lengths.append(np.asarray(store.lengths))
    for start in range(0, len(store.lengths), _BLOCK):
      end = min(start + _BLOCK, len(store.lengths))
      block = store.many(range(start, end))
      count_A += np.bincount(np.concatenate(block), minlength=len(count_A))
      letters = [vocab.decode(residues) for residues in block]
      missing.difference_update(letters)
      found |= words.look_for(letters)
      after_block(end - start)
  there = wanted - missing
  return Train(
    count_A[:_NUM_LETTERS],
    np.concatenate(lengths),
    *words.shares(found),
    np.array([sequence in there for sequence in sequences]),
    _nearest_of_test(data),
  )


def _nearest_of_test(data) -> float:
  if 'test' not in data.splits:
    return np.nan
  share_P = data.proteins('test').nearest_train_share
  share_P = share_P[~np.isnan(share_P)]
  return float(share_P.mean()) if len(share_P) else np.nan


def num_train(data) -> int:
  """Proteins of train."""
  return data.splits['train'][0]


def describe(samples: Sequence[Sample]) -> str:
  """What can be said without train: ends, repeats, likelihood."""
  number = len(samples)
  cut = sum(not sample.finished for sample in samples)
  distinct = len({sample.sequence for sample in samples})
  drawn = [s.token_log_probs[: len(s.drawn)] for s in samples]
  log_p = np.concatenate(drawn).astype(np.float64)
  lines = [
    f'{number:,} samples: {cut:,} cut at the greatest length, '
    f'{number - distinct:,} equal to an earlier one'
  ]
  if len(log_p):
    run = max(_longest_run(s.sequence) for s in samples)
    lines.append(
      f'{len(log_p):,} residues drawn, {log_p.mean():.3f} nats each '
      f'(perplexity {np.exp(-log_p.mean()):.2f} at temperature 1); the longest '
      f'run of one letter is {run}'
    )
  return '\n'.join(lines)


def compare(samples: Sequence[Sample], train: Train) -> str:
  """Novelty, lengths and composition beside those of train.

  Args:
    samples: those that were looked for, in the same order.
    train: of read_train.

  Returns:
    Lines to print.
  """
  count_A = np.bincount(
    vocab.encode(''.join(sample.drawn for sample in samples)),
    minlength=_NUM_LETTERS,
  )[:_NUM_LETTERS]
  share_A = count_A / max(count_A.sum(), 1)
  train_A = train.count_A / max(train.count_A.sum(), 1)
  lengths_Q = np.array([len(sample.sequence) for sample in samples])
  nearest_Q, of_test = train.nearest_Q, ''
  if not np.isnan(train.nearest_of_test):
    of_test = f'; of a test protein {train.nearest_of_test:.2%}'
  lines = [
    f'in train: {train.is_there_Q.sum():,} samples are a protein of train; '
    f'{train.in_train_Q.mean():.2%} of the 8-mers of a sample occur there, '
    f'{nearest_Q.mean():.2%} in its nearest protein (at most '
    f'{nearest_Q.max():.2%}{of_test})',
    f'length: samples {_quartiles(lengths_Q)}; train '
    f'{_quartiles(train.lengths_P)} (quartiles)',
    f'composition of what was drawn: {_divergence(share_A, train_A):.4f} bits '
    'from train (Kullback-Leibler)',
    '  residue  ' + ''.join(f'{x:>6}' for x in vocab.STANDARD_RESIDUES),
    '  samples %' + ''.join(f'{100 * x:6.1f}' for x in share_A),
    '  train %  ' + ''.join(f'{100 * x:6.1f}' for x in train_A),
  ]
  return '\n'.join(lines)


def _quartiles(lengths) -> str:
  return ' / '.join(f'{x:,.0f}' for x in np.percentile(lengths, (25, 50, 75)))


def _divergence(share_A, train_A) -> float:
  """sum p log2(p / q): infinite where train lacks a letter."""
  is_there_A = share_A > 0
  with np.errstate(divide='ignore'):
    ratio = np.log2(share_A[is_there_A] / train_A[is_there_A])
  return float((share_A[is_there_A] * ratio).sum())


def _longest_run(sequence: str) -> int:
  best = run = 0
  last = ''
  for letter in sequence:
    run = run + 1 if letter == last else 1
    best, last = max(best, run), letter
  return best
