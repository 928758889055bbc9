"""FASTA files, plain or gzip, and the one policy for the letters in them.

A record's letters are upper-cased, one `*` at its end is stripped, J is read as
X. Blanks and tabs between letters, empty lines, CRLF and CR line ends and a
UTF-8 byte order mark are accepted. A record that then still holds anything
beside letters (an internal `*`, a gap, a digit) is skipped, and so is an empty
one; more than 1 % of records skipped for symbols stops the reading. The same
sequence again is dropped, the same id with another sequence becomes id-2,
id-3. Everything is counted, and told with file:line.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import pathlib
import re
import zlib
from collections.abc import Iterator

SUFFIXES = ('.fasta', '.fa', '.faa', '.fas', '.gz')
MAX_SYMBOL_FRACTION = 0.01
_NUM_TOLD = 3  # places printed for each kind of thing that is left out
_GZIP_MAGIC = b'\x1f\x8b'
_SYMBOL = re.compile('[^A-Z]')
_BLANKS = str.maketrans('', '', ' \t')
_ACCESSION = re.compile(r'(?:sp|tr)\|([^|\s]+)\|')
_FIELDS = re.compile(r' (?:OS|OX|GN|PE|SV|n|Tax|TaxID|RepID)=')
_ORGANISM = re.compile(r' (?:OS|Tax)=(.*?)(?= \w+=|$)')


@dataclasses.dataclass(slots=True)
class Protein:
  """One sequence with what is known of it.

  `envelopes` are held-out domains as (start, end), counted from 1, both ends
  included; only proteins of the split `ood` have any.
  """

  id: str
  sequence: str
  description: str = ''
  organism: str = ''
  cluster: str = ''
  envelopes: tuple[tuple[int, int], ...] = ()
  pure: bool = False


@dataclasses.dataclass
class Tally:
  """Counts of what was read, changed and left out."""

  counts: dict[str, int] = dataclasses.field(default_factory=dict)

  def tell(self, kind: str, sentence: str) -> None:
    """Counts one of a kind, and prints the first few."""
    self.counts[kind] += 1
    if self.counts[kind] <= _NUM_TOLD:
      print(f'  {sentence}', flush=True)
    elif self.counts[kind] == _NUM_TOLD + 1:
      print(f'  ... more of these: {kind}', flush=True)

  def summary(self) -> str:
    """Every count in one line."""
    return ', '.join(f'{n:,} {kind}' for kind, n in self.counts.items())


def open_text(path: pathlib.Path):
  """Opens a plain or gzip file (told by its first bytes) as lines of text."""
  with open(path, 'rb') as file:
    zipped = file.read(2) == _GZIP_MAGIC
  opener = gzip.open if zipped else open
  return opener(path, 'rt', encoding='utf-8-sig', errors='replace')


@contextlib.contextmanager
def _readable(path: pathlib.Path):
  """Turns what a damaged or absent file raises into one sentence."""
  try:
    yield
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(
      f'{path} is a truncated or damaged gzip file ({error}); copy or download '
      'it again.'
    ) from error
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f'{path} cannot be read: {reason}.') from error


def _raw_records(path: pathlib.Path) -> Iterator[tuple[int, str, list[str]]]:
  """Yields (line number, header, lines of sequence) of each record."""
  header, start, lines = None, 0, []
  with open_text(path) as file:
    for number, line in enumerate(file, 1):
      if line.startswith('>'):
        if header is not None:
          yield start, header, lines
        header, start, lines = line[1:].strip(), number, []
      elif header is not None:
        lines.append(line.rstrip('\n'))
      elif line.strip():
        raise ValueError(
          f'{path}:{number} holds text before the first ">" '
          f'({line.strip()[:20]!r}), so this is no FASTA file.'
        )
  if header is not None:
    yield start, header, lines


def _first_symbol(start: int, lines: list[str]) -> tuple[int, str]:
  """The line number and the first symbol that is neither letter nor blank."""
  for number, line in enumerate(lines, start + 1):
    for symbol in line.translate(_BLANKS):
      if not (symbol.isascii() and symbol.isalpha()):
        return number, symbol
  raise AssertionError('a record without symbols was taken for one with some')


def _parse_header(header: str) -> tuple[str, str, str]:
  """Returns id (the accession in UniProt's headers), description, organism."""
  id_, rest = [*header.split(maxsplit=1), '', ''][:2]
  accession = _ACCESSION.match(id_)
  organism = _ORGANISM.search(header)
  description = _FIELDS.split(f' {rest}', maxsplit=1)[0].strip()
  return (
    accession[1] if accession else id_,
    description,
    organism[1] if organism else '',
  )


def _distinct(id_: str, taken: dict[str, int]) -> str:
  """The first of id-2, id-3 ... that is free.

  Args:
    id_: one that is taken.
    taken: the ids so far, with the last number tried for each.
  """
  while (candidate := f'{id_}-{taken[id_] + 1}') in taken:
    taken[id_] += 1
  taken[id_] += 1
  return candidate


def read_fasta(
  path: pathlib.Path, tally: Tally, is_uncertain=lambda header: False
) -> Iterator[Protein]:
  """Yields the distinct proteins of a file, in order, by the letter policy.

  Args:
    path: a FASTA file, plain or gzip.
    tally: is told every count.
    is_uncertain: says of a header whether to drop its record.

  Raises:
    ValueError: the file is absent, damaged, no FASTA, holds no protein, or has
      symbols in more than 1 % of its records; says where.
  """
  counts = tally.counts
  counts['records read'] = 0
  counts['empty skipped'] = counts['with symbols skipped'] = 0
  counts['uncertain dropped'] = counts['duplicates dropped'] = 0
  counts['ids made distinct'] = counts['terminal * stripped'] = 0
  counts['J read as X'] = counts['kept'] = 0
  first_symbol = ''
  ids, sequences = {}, set()
  with _readable(path):
    for start, header, lines in _raw_records(path):
      counts['records read'] += 1
      id_, description, organism = _parse_header(header)
      id_ = id_ or f'record_{counts["records read"]}'
      if is_uncertain(header):
        counts['uncertain dropped'] += 1
        continue
      sequence = ''.join(lines).translate(_BLANKS)
      if sequence.endswith('*'):
        sequence = sequence[:-1]
        counts['terminal * stripped'] += 1
      if sequence.isascii():  # else upper() would turn some symbols to letters
        sequence = sequence.upper()
      if _SYMBOL.search(sequence):
        # The stripped * is last, so it is found only if another one stands.
        number, symbol = _first_symbol(start, lines)
        place = f'{path}:{number}: {symbol!r} in record {id_}'
        first_symbol = first_symbol or place
        tally.tell('with symbols skipped', f'{place}, skipped')
        continue
      if not sequence:
        tally.tell('empty skipped', f'{path}:{start}: empty record {id_}')
        continue
      digest = hashlib.blake2b(sequence.encode(), digest_size=16).digest()
      if digest in sequences:
        counts['duplicates dropped'] += 1
        continue
      sequences.add(digest)
      if id_ in ids:
        id_, same = _distinct(id_, ids), id_
        tally.tell(
          'ids made distinct', f'{path}:{start}: id {same} again, now {id_}'
        )
      ids[id_] = 1
      counts['J read as X'] += sequence.count('J')
      counts['kept'] += 1
      yield Protein(id_, sequence.replace('J', 'X'), description, organism)
  num_read, num_bad = counts['records read'], counts['with symbols skipped']
  if num_bad > MAX_SYMBOL_FRACTION * num_read:
    raise ValueError(
      f'{num_bad:,} of {num_read:,} records ({num_bad / num_read:.1%}) hold '
      f'symbols that are no residues, first {first_symbol}; at most '
      f'{MAX_SYMBOL_FRACTION:.0%} may, so correct or remove these records.'
    )
  if not counts['kept']:
    raise ValueError(
      f'{path} holds no protein ({tally.summary()}); is it a FASTA file?'
    )
