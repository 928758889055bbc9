"""Held-out protein families: the rule that makes the split `ood`.

`human_pfam_domains.tsv.gz` lists domains of Pfam families in human proteins.
Families that occur together would leak into each other, so whole groups are
held out. Two families are linked when at least half of the smaller one's
proteins carry the other; of the connected groups with 10 to 150 proteins, in
the order of the sha256 of their smallest Pfam accession, groups are held out
until they cover 1,000 proteins. Nothing in this rule can be tuned. In a
collection of less than 10,000 proteins it is a tenth of them instead, in groups
of any size up to that.
"""

import collections
import csv
import dataclasses
import hashlib
import itertools
import pathlib

from protein_lm.datasets.fasta_file import parse_header, read_lines

TABLE = pathlib.Path(__file__).with_name('human_pfam_domains.tsv.gz')
NUM_PROTEINS = 1_000
GROUP_SIZES = range(10, 151)
_COLUMNS = {  # of a table with a header line, by the names they may have
  'protein': ('accession', 'id', 'protein', 'protein_id', 'uniprot'),
  'family': ('pfam', 'family', 'pfam_id'),
  'start': ('start',),
  'end': ('end',),
}


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
  """Reads a table of domains: accession, pfam and, if known, start and end.

  Tabs or commas, plain or gzip. With a header line the columns are found by
  name, and others may stand among them.

  Raises:
    ValueError: the file cannot be read, or a line of it; says where.
  """
  lines = ''.join(line for _, line in read_lines(path)).splitlines()
  separator = '\t' if lines and '\t' in lines[0] else ','
  rows = [_cells(line, separator) for line in lines]  # none spans two lines
  columns = _find_columns(rows[0]) if rows else None
  first = 1 if columns else 0
  columns = columns or {name: i for i, name in enumerate(_COLUMNS)}
  domains = []
  for number, row in enumerate(rows[first:], first + 1):
    if not row:
      continue
    fields = {
      name: row[i].strip() for name, i in columns.items() if i < len(row)
    }
    try:
      domains.append(_domain(fields))
    except (KeyError, ValueError) as error:
      raise ValueError(
        f'{path}:{number} holds {separator.join(row)[:60]!r}, which is not '
        'accession, pfam[, start, end].'
      ) from error
  if not domains:
    raise ValueError(
      f'{path} holds no domain; a line is accession,pfam[,start,end].'
    )
  return domains


def _cells(line: str, separator: str) -> list[str]:
  try:
    return next(csv.reader([line], delimiter=separator, strict=True), [])
  except csv.Error:
    return [line]  # refused below, with its place


def _domain(fields: dict[str, str]) -> Domain:
  """Makes a domain of a line; KeyError or ValueError where it is none."""
  domain = Domain(
    parse_header(fields['protein'])[0],  # P12345 of sp|P12345|NAME
    fields['family'],
    int(fields.get('start') or 0),
    int(fields.get('end') or 0),
  )
  is_unknown = domain.start == domain.end == 0
  if not (is_unknown or 1 <= domain.start <= domain.end):
    raise ValueError('start and end are no span')
  if not (domain.protein_id and domain.family):
    raise ValueError('a name is missing')
  return domain


def _find_columns(row: list[str]) -> dict[str, int] | None:
  """Returns where each column stands in a header line, None if it is none."""
  names = [name.strip().lower() for name in row]
  found = {
    column: names.index(name)
    for column, known in _COLUMNS.items()
    for name in known
    if name in names
  }
  return found if {'protein', 'family'} <= found.keys() else None


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


def hold_out(
  domains: list[Domain], num_proteins: int = 10 * NUM_PROTEINS
) -> HeldOut:
  """Applies the rule of this file to a table of domains.

  Args:
    domains: of the collection's proteins, and maybe of others.
    num_proteins: of the collection.

  """
  wanted, sizes = NUM_PROTEINS, GROUP_SIZES
  if num_proteins < 10 * NUM_PROTEINS:
    wanted = max(num_proteins // 10, 1)
    sizes = range(1, wanted + 1)
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
    if len(held) < wanted and len(members) in sizes:
      held |= members
      groups.append(group)

  held_families = frozenset().union(*groups)
  envelopes = collections.defaultdict(list)
  for domain in domains:
    if domain.family in held_families:
      known = [(domain.start, domain.end)] if domain.end else []
      envelopes[domain.protein_id] += known
  outside = set().union(*(families[id_] for id_ in families.keys() - held))
  return HeldOut(
    groups=tuple(groups),
    envelopes={id_: tuple(sorted(spans)) for id_, spans in envelopes.items()},
    pure=frozenset(id_ for id_ in held if not families[id_] & outside),
  )
