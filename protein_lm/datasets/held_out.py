"""Held-out protein families: the rule that makes the split `ood`.

`human_pfam_domains.tsv.gz` lists domains of Pfam families in human proteins.
Families that occur together would leak into each other, so whole groups are
held out. Two families are linked when at least half of the smaller one's
proteins carry the other; of the connected groups with 10 to 150 proteins, in
the order of the sha256 of their smallest Pfam accession, groups are held out
until they cover 1,000 proteins. Nothing in this rule can be tuned.
"""

import collections
import dataclasses
import gzip
import hashlib
import itertools
import pathlib

TABLE = pathlib.Path(__file__).with_name('human_pfam_domains.tsv.gz')
NUM_PROTEINS = 1_000
GROUP_SIZES = range(10, 151)


@dataclasses.dataclass(frozen=True)
class Domain:
  """One occurrence of a family; start and end count from 1, both included."""

  protein_id: str
  family: str
  start: int
  end: int


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The families held out, with their proteins and domain envelopes."""

  groups: tuple[frozenset[str], ...]
  envelopes: dict[str, tuple[tuple[int, int], ...]]  # by protein id
  pure: frozenset[str]  # ids that share no family with a protein outside

  @property
  def families(self) -> frozenset[str]:
    return frozenset().union(*self.groups)


def read_domains(path: pathlib.Path = TABLE) -> list[Domain]:
  """Reads the table: accession, pfam, name, start, end, score."""
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    next(file)
    rows = [line.rstrip('\n').split('\t') for line in file]
  return [
    Domain(accession, pfam, int(start), int(end))
    for accession, pfam, _, start, end, _ in rows
  ]


def _family_groups(
  proteins: dict[str, set[str]], families: dict[str, set[str]]
) -> list[frozenset[str]]:
  """Connected groups of families, half of whose proteins are the other's."""
  group = {family: {family} for family in proteins}
  common = collections.Counter(
    pair
    for carried in families.values()
    for pair in itertools.combinations(sorted(carried), 2)
  )
  for (a, b), count in common.items():
    smaller = min(len(proteins[a]), len(proteins[b]))
    if 2 * count >= smaller and group[a] is not group[b]:
      group[a] |= group[b]
      for family in group[b]:
        group[family] = group[a]
  return list({frozenset(members) for members in group.values()})


def hold_out(domains: list[Domain]) -> HeldOut:
  """Applies the rule of this file to a table of domains."""
  proteins, families = (
    collections.defaultdict(set),
    collections.defaultdict(set),
  )
  for domain in domains:
    proteins[domain.family].add(domain.protein_id)
    families[domain.protein_id].add(domain.family)

  held, groups = set(), []
  for group in sorted(
    _family_groups(proteins, families),
    key=lambda group: hashlib.sha256(min(group).encode()).hexdigest(),
  ):
    members = set().union(*(proteins[family] for family in group))
    if len(held) < NUM_PROTEINS and len(members) in GROUP_SIZES:
      held |= members
      groups.append(group)

  held_families = frozenset().union(*groups)
  envelopes = collections.defaultdict(list)
  for domain in domains:
    if domain.family in held_families:
      envelopes[domain.protein_id].append((domain.start, domain.end))
  outside = set().union(*(families[id_] for id_ in families.keys() - held))
  return HeldOut(
    groups=tuple(groups),
    envelopes={id_: tuple(sorted(spans)) for id_, spans in envelopes.items()},
    pure=frozenset(id_ for id_ in held if not families[id_] & outside),
  )
