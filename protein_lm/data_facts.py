"""What is measured of each split of a prepared data set, and what seems odd.

Axes: P proteins, V letters of `vocab.RESIDUES`.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from protein_lm import packing, proteins, vocab

LEAK_SHARE = 0.2  # of a protein's 8-mers, in one protein of train
_EXPECTED_SPLITS = ('train', 'validation', 'test')

# Above so many proteins (about 1.3 GB) a split is described by a sample,
# evenly spaced.
MAX_WHOLE = 300_000
_SAMPLE = 100_000
# Organisms are counted in all records up to so many, else in a sample.
_MAX_ORGANISMS_WHOLE = 200_000
_ORGANISMS_SAMPLE = 20_000
_NUM_EXAMPLES = 8
_NUM_READ = 1_000  # records at a time

# Above or below these a note says so.
_MAX_CLUSTER_SHARE = 0.05
_MAX_X_SHARE = 0.01
_MIN_MEDIAN_LENGTH = 30
_MAX_LEAKED = 0.05
_MAX_SHIFT = 0.03


@dataclasses.dataclass
class SplitFacts:
  """One split and what the page says of it.

  Attributes:
    name: of the split.
    num_proteins: of the whole split.
    num_residues: of the whole split.
    sha256: of its content.
    proteins: the split, or a sample of it.
    organisms: records by organism, of the split or a sample.
    examples: a few records, as read by TFDS.
    leaked_in_all: share of its measured proteins that find LEAK_SHARE of their
      8-mers in train as a whole, from preparation; NaN if unknown.
  """

  name: str
  num_proteins: int
  num_residues: int
  sha256: str
  proteins: proteins.Proteins
  organisms: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  examples: list[dict] = dataclasses.field(default_factory=list)
  leaked_in_all: float = np.nan

  @property
  def is_sample(self) -> bool:
    """Whether `proteins` are not all of the split."""
    return len(self.proteins) < self.num_proteins

  @functools.cached_property
  def letter_shares(self) -> np.ndarray:
    """[V] share of the residues that each letter has."""
    count_V = np.bincount(self.proteins.residues, minlength=len(vocab.RESIDUES))
    return count_V / max(count_V.sum(), 1)

  @functools.cached_property
  def cluster_residues(self) -> collections.Counter:
    """Residues of each cluster."""
    counter = collections.Counter()
    pairs = zip(
      self.proteins.clusters, self.proteins.lengths.tolist(), strict=True
    )
    for cluster, length in pairs:
      counter[cluster] += length
    return counter

  @property
  def largest_cluster(self) -> tuple[str, float]:
    """The cluster with the most residues, and its share of them."""
    ((name, size),) = self.cluster_residues.most_common(1)
    return name, size / max(self.cluster_residues.total(), 1)

  @property
  def train_shares(self) -> np.ndarray:
    """Measured nearest_train_share, without those that are NaN."""
    share_P = self.proteins.nearest_train_share
    return share_P[~np.isnan(share_P)]

  @property
  def leaked(self) -> float:
    """Share of the measured proteins with LEAK_SHARE or more; NaN if none."""
    shares = self.train_shares
    return float(np.mean(shares >= LEAK_SHARE)) if len(shares) else np.nan


@dataclasses.dataclass(frozen=True)
class Fill:
  """How well rows of `max_len` tokens are used; shares from 0 to 1.

  Attributes:
    max_len: tokens of a row.
    packed: tokens that are not padding, in planned packing.
    padded: the same with one protein a row.
    whole: residues that lie in proteins which fit a row with their ends.
  """

  max_len: int
  packed: float
  padded: float
  whole: float


def measure_fill(lengths: np.ndarray, max_len: int) -> Fill:
  """Plans rows and returns how full they are.

  Args:
    lengths: [P] residues of each protein, P at least 1.
    max_len: tokens of a row.
  """
  tokens_P = np.minimum(lengths + 2, max_len)  # BOS and EOS
  plan = packing.plan_rows(tokens_P, max_len)
  return Fill(
    max_len=max_len,
    packed=plan.num_tokens / (plan.num_rows * max_len),
    padded=float(tokens_P.mean()) / max_len,
    whole=float(lengths[lengths + 2 <= max_len].sum() / max(lengths.sum(), 1)),
  )


def measure(builder) -> list[SplitFacts]:
  """Reads every split of a prepared data set; empty ones are left out.

  Raises:
    ValueError: a file is missing, damaged or changed.
  """
  facts = []
  leakage = builder.info.metadata.get('leakage', {})
  for name, content in builder.info.metadata['content'].items():
    if not content['num_proteins']:
      continue
    split = SplitFacts(
      name=name,
      num_proteins=content['num_proteins'],
      num_residues=content['num_residues'],
      sha256=content['sha256'],
      proteins=_read(builder, name),
      leaked_in_all=leakage.get(name, {}).get('train_share', np.nan),
    )
    size = split.num_proteins
    few = size if size < _MAX_ORGANISMS_WHOLE else _ORGANISMS_SAMPLE
    for record in _records(builder, name, few):
      if organism := record['organism'].decode():
        split.organisms[organism] += 1
    split.examples = list(_records(builder, name, min(size, _NUM_EXAMPLES)))
    facts.append(split)
  return facts


def _read(builder, name: str) -> proteins.Proteins:
  """The proteins of a split: all of them, or a sample of a large one."""
  if builder.info.metadata['content'][name]['num_proteins'] <= MAX_WHOLE:
    return proteins.load_proteins(builder, name)
  records = list(_records(builder, name, _SAMPLE))
  sample = proteins.from_sequences(
    {r['id'].decode(): r['sequence'].decode() for r in records}
  )
  return dataclasses.replace(
    sample,
    clusters=[r['cluster'].decode() for r in records],
    nearest_train_share=np.array(
      [r['nearest_train_share'] for r in records], np.float32
    ),
  )


def _records(builder, name: str, number: int) -> Iterator[dict]:
  """Yields records as TFDS reads them, evenly spaced over the split."""
  source = builder.as_data_source(name)
  places = np.linspace(0, len(source) - 1, number).astype(int).tolist()
  for first in range(0, number, _NUM_READ):
    yield from source.__getitems__(places[first : first + _NUM_READ])


def find_notes(facts: Sequence[SplitFacts]) -> list[str]:
  """Returns one plain sentence for each thing that seems off."""
  notes = []
  present = {split.name for split in facts}
  for name in _EXPECTED_SPLITS:
    if name not in present:
      notes.append(f'There is no split {name}, or it is empty.')
  for split in facts:
    notes += _notes_of_split(split)
  train = find_train(facts)
  for split in facts if train else ():
    shift = letter_shift(split, train)
    # Two draws of residues from one source differ by about the second term.
    if shift > _MAX_SHIFT + 1.8 / np.sqrt(len(split.proteins.residues)):
      notes.append(
        f'{shift:.1%} of the residues of {split.name} would have to be other '
        'letters to match the frequencies of train.'
      )
  return notes


def _notes_of_split(split: SplitFacts) -> Iterator[str]:
  name, median = split.name, np.median(split.proteins.lengths)
  if split.is_sample:
    yield (
      f'{name} is described by {len(split.proteins):,} of its '
      f'{split.num_proteins:,} proteins, evenly spaced.'
    )
  cluster, share = split.largest_cluster
  if share > _MAX_CLUSTER_SHARE and len(split.proteins) > 1:
    yield (
      f'One cluster, {cluster}, holds {share:.1%} of the residues of {name}: '
      'its relatives weigh more than all others in what is measured there.'
    )
  unknown = split.letter_shares[vocab.RESIDUES.index('X')]
  if unknown > _MAX_X_SHARE:
    yield f'{unknown:.1%} of the residues of {name} are X, which is unknown.'
  if median < _MIN_MEDIAN_LENGTH:
    yield (
      f'Half of the proteins of {name} have {median:,.0f} residues or fewer: '
      'are these peptides, or fragments?'
    )
  if split.name == 'train':
    return
  if split.leaked > _MAX_LEAKED:
    yield (
      f'{split.leaked:.1%} of the measured proteins of {name} share '
      f'{LEAK_SHARE:.0%} or more of their 8-mers with one protein of train: '
      'scores there are better than on proteins that are new.'
    )
  if split.leaked_in_all > _MAX_LEAKED:
    yield (
      f'{split.leaked_in_all:.1%} of the measured proteins of {name} find '
      f'{LEAK_SHARE:.0%} or more of their 8-mers somewhere in train, in one '
      'protein or in several: repeats and widespread domains do this.'
    )
  if not len(split.train_shares):
    yield f'What {name} shares with train was not measured.'


def find_train(facts: Sequence[SplitFacts]) -> SplitFacts | None:
  """The split named train, None if there is none."""
  return next((split for split in facts if split.name == 'train'), None)


def letter_shift(split: SplitFacts, train: SplitFacts) -> float:
  """Share of the residues that would have to be other letters to match train.

  Half the summed difference of letter shares: their total variation.
  """
  return float(np.abs(split.letter_shares - train.letter_shares).sum() / 2)
