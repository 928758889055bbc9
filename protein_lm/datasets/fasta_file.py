"""FASTA files, plain or gzip, as blocks of whole records.

One process reads a file from its start to its end, whatever its size, and cuts
it between records; others parse the blocks. CRLF and CR line ends, a UTF-8 byte
order mark, blanks and empty lines are accepted. What becomes of the letters is
said in letters.py.
"""

import contextlib
import dataclasses
import gzip
import pathlib
import re
import zlib
from collections.abc import Iterator

from protein_lm.datasets.intake import Block, Intake

SUFFIXES = ('.fasta', '.fa', '.faa', '.fas', '.gz')
_GZIP_MAGIC = b'\x1f\x8b'
_GZIP_RATIO = 3  # a guess, from the size of a file alone
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_MAX_RECORD_BYTES = 2**28
_ACCESSION = re.compile(r'(?:sp|tr)\|([^|\s]+)\|')
_FIELDS = re.compile(r' (?:OS|OX|GN|PE|SV|n|Tax|TaxID|RepID)=')
_ORGANISM = re.compile(r' (?:OS|Tax)=(.*?)(?= \w+=|$)')
_ORGANISM_AND_ID = re.compile(
  r' (?:OS|Tax)=(.*?) (?:OX|TaxID)=(\d{1,9})(?= |$)'
)
_TAXONOMY_ID = re.compile(r' (?:OX|TaxID)=(\d{1,9})\b')


@dataclasses.dataclass(frozen=True)
class FastaFiles:
  """FASTA files as one source.

  Attributes:
    paths: read in this order.
    uncertain_mark: records with this text in the header are dropped.
  """

  paths: tuple[pathlib.Path, ...]
  uncertain_mark: str | None = None

  def num_bytes(self) -> int:
    """About how many bytes of text, told from the sizes of the files."""
    total = 0
    for path in self.paths:
      with readable(path):
        total += path.stat().st_size * (_GZIP_RATIO if _is_gzip(path) else 1)
    return total

  def split_of(self, number: int) -> str | None:
    """None: the files say nothing of splits."""
    del number

  def blocks(self, number: int, block_bytes: int) -> Iterator[Block]:
    """Yields a file as blocks of about so many bytes."""
    return read_blocks(self.paths[number], number, block_bytes)

  def parse(self, block: Block, intake: Intake) -> None:
    """Hands each record of a block to an intake."""
    mark = self.uncertain_mark and self.uncertain_mark.encode()
    line, number = block.first, block.num_before
    for text in block.content.split(b'\n>'):
      header, _, raw = text.partition(b'\n')
      number += 1
      if mark and mark in header:
        intake.drop_uncertain()
      else:
        header = header.decode('utf-8', 'replace').strip()
        id_, description, organism, taxonomy_id = parse_header(header)
        id_ = id_ or f'record_{number}'
        intake.take(line, id_, description, organism, taxonomy_id, raw)
      line += text.count(b'\n') + 1


def _is_gzip(path: pathlib.Path) -> bool:
  with open(path, 'rb') as file:
    return file.read(2) == _GZIP_MAGIC


@contextlib.contextmanager
def readable(path: pathlib.Path):
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


def read_lines(path) -> Iterator[tuple[int, str]]:
  """Yields (number, line) of a text file, plain or gzip."""
  with readable(path):
    opener = gzip.open if _is_gzip(path) else open
    # What is no UTF-8 is no id that is looked for.
    with opener(path, 'rt', encoding='utf-8-sig', errors='replace') as file:
      yield from enumerate(file, 1)


def _chunks(path: pathlib.Path, num_bytes: int) -> Iterator[bytes]:
  """Yields a file's text with line ends made one, mark and gzip undone."""
  with readable(path):
    opener = gzip.open if _is_gzip(path) else open
    with opener(path, 'rb') as file:
      is_first, ends_in_cr = True, False
      while chunk := file.read(num_bytes):
        if is_first:
          chunk = chunk.removeprefix(_BYTE_ORDER_MARK)
          is_first = False
        if ends_in_cr:  # what a CR at a chunk's end means is known only now
          chunk = b'\r' + chunk
        ends_in_cr = chunk.endswith(b'\r')
        if ends_in_cr:
          chunk = chunk[:-1]
        if b'\r' in chunk:
          chunk = chunk.replace(b'\r\n', b'\n').replace(b'\r', b'\n')
        yield chunk
      if ends_in_cr:
        yield b'\n'


def read_blocks(
  path: pathlib.Path, number: int, block_bytes: int
) -> Iterator[Block]:
  """Cuts a file between records.

  The content of a block is its first record without `>`, and so on, joined by
  `\\n>`.

  Raises:
    ValueError: the file cannot be read, or holds text before the first record,
      or a record of more than 256 MB.
  """
  rest, line, num_before, is_started = b'', 1, 0, False
  for chunk in _chunks(path, block_bytes):
    rest += chunk
    if not is_started:
      text = rest.lstrip(b' \t\n')
      line += rest.count(b'\n', 0, len(rest) - len(text))
      rest, is_started = text[1:], bool(text)
      if text and not text.startswith(b'>'):
        start = text[:80].split(b'\n')[0].decode('utf-8', 'replace')
        raise ValueError(
          f'{path}:{line} holds text before the first ">" '
          f'({start.strip()[:20]!r}), so this is no FASTA file.'
        )
    cut = rest.rfind(b'\n>')
    if cut >= 0:
      block = Block(number, str(path), line, num_before, rest[:cut])
      yield block
      line += block.content.count(b'\n') + 1
      num_before += block.content.count(b'\n>') + 1
      rest = rest[cut + 2 :]
    if len(rest) > _MAX_RECORD_BYTES:
      raise ValueError(
        f'{path}:{line} begins a record of more than '
        f'{_MAX_RECORD_BYTES // 2**20} MB, so this is no file of proteins.'
      )
  if is_started:
    yield Block(number, str(path), line, num_before, rest)


def parse_header(header: str) -> tuple[str, str, str, int]:
  """Returns id (the accession in UniProt's headers), description, organism
  and taxonomy id of a header without its `>`."""
  id_, _, rest = header.partition(' ')
  if '\t' in id_ or not id_:  # any blank ends the id
    id_, rest = [*header.split(maxsplit=1), '', ''][:2]
  accession = _ACCESSION.match(id_)
  id_ = accession[1] if accession else id_
  if '=' not in rest:
    return id_, rest.strip(), '', 0
  rest = f' {rest}'
  both = _ORGANISM_AND_ID.search(rest)  # as UniProt writes them, fastest
  if both:
    description = rest[: both.start()]
    organism, taxonomy_id = both.groups()
  else:
    description = rest
    organism, taxonomy_id = _ORGANISM.search(rest), _TAXONOMY_ID.search(rest)
    organism = organism[1] if organism else ''
    taxonomy_id = taxonomy_id[1] if taxonomy_id else 0
  if '=' in description:
    description = _FIELDS.split(description, maxsplit=1)[0]
  return id_, description.strip(), organism, int(taxonomy_id)
