"""What is asked of splits, `splits` in gin, and what it says of one protein."""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib

import gin

from protein_lm.datasets import clusters, held_out
from protein_lm.datasets.fasta_file import parse_header, read_lines, readable
from protein_lm.datasets.intake import LINE_BITS

SPLITS = ('train', 'validation', 'test', 'ood')


@gin.configurable('splits')
@dataclasses.dataclass(frozen=True)
class SplitRule:
  """How a collection is split; of ids and organisms at most one is given.

  Attributes:
    ids: 'test=ids.txt' and the like, a file with one id a line; the proteins
      that no file lists are train.
    organisms: 'test=9606' or 'test=Homo sapiens' and the like, one or several
      a split; all other proteins are train.
    clusters: path of a table of clusters, as MMseqs2 writes it: a line for each
      protein, its cluster's representative, a tab, its id; plain or gzip.
    family_table: path of a table accession,pfam[,start,end] (commas or tabs,
      gzip or plain, a header line or none); families held out by the rule of
      held_out.py make the split `ood`.
    fractions: of train, validation and test, for clusters.
    max_cluster_fraction: of all residues; a larger cluster is refused, since
      what is linked so far is no longer one family.
  """

  ids: tuple[str, ...] = ()
  organisms: tuple[str, ...] = ()
  clusters: str | None = None
  family_table: str | None = None
  fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)
  max_cluster_fraction: float = 0.05

  def __post_init__(self):
    for name in ('ids', 'organisms', 'fractions'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if self.ids and self.organisms:
      raise ValueError(
        'splits.ids and splits.organisms cannot both be given: choose one.'
      )
    if (
      len(self.fractions) != 3
      or not all(isinstance(x, int | float) for x in self.fractions)
      or min(self.fractions) < 0
      or not math.isclose(sum(self.fractions), 1, abs_tol=1e-6)
    ):
      raise ValueError(
        'splits.fractions must be three shares (train, validation, test) that '
        f'sum to 1, got {self.fractions!r}.'
      )
    if self.is_given and self.fractions != (0.9, 0.05, 0.05):
      raise ValueError(
        f'splits.fractions = {self.fractions!r} are of clusters, and say '
        'nothing where splits.ids or splits.organisms say it all; leave them '
        'out.'
      )
    if not 0 < self.max_cluster_fraction <= 1:
      raise ValueError(
        'splits.max_cluster_fraction must be above 0 and at most 1, got '
        f'{self.max_cluster_fraction!r}.'
      )

  @property
  def is_given(self) -> bool:
    """Whether ids or organisms say it all, and clusters nothing."""
    return bool(self.ids or self.organisms)

  def identity(self) -> str:
    """What the rule says, with the hashes of the files it names."""
    fields = dataclasses.asdict(self)
    paths = [pair.partition('=')[2] for pair in self.ids]
    paths += [self.clusters, self.family_table]
    return repr((fields, {path: file_hash(path) for path in paths if path}))


# Made before any gin file is read.
DEFAULT = SplitRule()


def file_hash(path) -> str:
  """Returns the sha256 of a file, in hex."""
  with readable(path):
    stat = os.stat(path)
    return _file_hash(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _file_hash(path, *state) -> str:
  """Reads a file once, as long as its state is the same."""
  del state
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def text_hash(text: str) -> str:
  """Returns the sha256 of a text, in hex."""
  return hashlib.sha256(text.encode()).hexdigest()


def _pairs(pairs, argument: str):
  """Yields (split, text) of 'split=text'."""
  for pair in pairs:
    split, is_pair, text = pair.partition('=')
    if not is_pair or split not in SPLITS or not text:
      raise ValueError(
        f'{argument} must be like test=..., for one of {", ".join(SPLITS)}, '
        f'got {pair!r}.'
      )
    yield split, text


def _read_ids(rule: SplitRule) -> dict[str, str]:
  """Reads the lists of ids: the split of each."""
  split_of = {}
  for split, path in _pairs(rule.ids, 'splits.ids (--split_ids)'):
    num_before = len(split_of)
    for number, line in read_lines(path):
      id_ = parse_header(line.strip().removeprefix('>'))[0]
      if id_ and split_of.setdefault(id_, split) != split:
        raise ValueError(
          f'{path}:{number} puts {id_!r} in {split}, but it is in '
          f'{split_of[id_]} already.'
        )
    if len(split_of) == num_before:
      raise ValueError(f'{path} lists no id for {split}: one id stands a line.')
  return split_of


def _organisms(rule: SplitRule) -> dict[str, str]:
  """The split of each organism that the rule names, in lower case."""
  argument = 'splits.organisms (--split_organisms)'
  split_of = {}
  for split, text in _pairs(rule.organisms, argument):
    name = text.strip().lower()
    if split_of.setdefault(name, split) != split:
      raise ValueError(
        f'{argument} puts {text!r} in {split} and in {split_of[name]}: choose '
        'one.'
      )
  return split_of


@dataclasses.dataclass(frozen=True)
class Splitter:
  """What decides on one protein.

  Attributes:
    fractions: for clusters.
    by_id, by_organism: split by id, and by taxonomy id or name in lower case.
    by_file: split of each file of the source, or empty.
    families: those held out, or None.
    blocked: clusters that hold a protein of `ood`.
    large: clusters that are train's, whatever their hash.
  """

  fractions: dict[str, float]
  by_id: dict[str, str]
  by_organism: dict[str, str]
  by_file: tuple[str, ...] = ()
  families: held_out.HeldOut | None = None
  blocked: frozenset[str] = frozenset()
  large: frozenset[str] = frozenset()

  @property
  def uses_clusters(self) -> bool:
    return not (self.by_id or self.by_organism or self.by_file)

  @property
  def needs_proteins(self) -> bool:
    return bool(self.families or self.by_id or self.by_organism)

  def is_held_out(self, protein) -> bool:
    return self.families is not None and protein.id in self.families.envelopes

  def __call__(self, ordinal: int, protein, cluster: str) -> str:
    """Returns the split, '' for a neighbour of an ood protein."""
    if self.is_held_out(protein):
      return 'ood'
    if cluster in self.blocked:
      return ''
    if self.by_id:
      return self.by_id.get(protein.id, 'train')
    if self.by_organism:
      return self._of_organism(protein)
    if self.by_file:
      return self.by_file[ordinal >> LINE_BITS]
    if cluster in self.large:
      return 'train'
    return clusters.split_of(cluster, self.fractions)

  def _of_organism(self, protein) -> str:
    name = protein.organism.lower()
    for key in (
      str(protein.taxonomy_id),
      name,
      name.partition(' (')[0],  # without the strain
    ):
      if key in self.by_organism:
        return self.by_organism[key]
    return 'train'


def make_splitter(source, rule: SplitRule, num_proteins: int) -> Splitter:
  """Reads what the rule names."""
  told = [source.split_of(i) for i in range(len(source.paths))]
  by_file = tuple(split or 'train' for split in told)
  says_otherwise = (
    rule.is_given or rule.clusters or (rule.fractions != DEFAULT.fractions)
  )
  if says_otherwise or not set(by_file) - {'train'}:
    by_file = ()
  families = None
  if rule.family_table:
    domains = held_out.read_domains(pathlib.Path(rule.family_table))
    families = held_out.hold_out(domains, num_proteins)
    if not families.groups:
      raise ValueError(
        f'{rule.family_table} has no group of families that is small enough to '
        f'hold out of {num_proteins:,} proteins, about a tenth at most; add '
        'smaller families, or split by ids (--split_ids=test=ids.txt).'
      )
    print(
      f'holding out {len(families.groups)} groups of {len(families.families)} '
      f'families in {len(families.envelopes):,} proteins '
      f'({len(families.pure)} pure) in all',
      flush=True,
    )
  return Splitter(
    fractions=dict(zip(SPLITS[:3], rule.fractions, strict=True)),
    by_id=_read_ids(rule),
    by_organism=_organisms(rule),
    by_file=by_file,
    families=families,
  )
