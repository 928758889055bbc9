"""What becomes of the records of a block: cleaned, counted, put in buckets.

A record's bucket follows from its sequence, so that equal sequences meet in
one. Of each record there is a row of numbers, by which duplicates are found
without its text.
"""

import collections
import dataclasses
import hashlib
import math
import re
import struct
from typing import NamedTuple

import numpy as np

from protein_lm.datasets import letters

# An ordinal is (number of the file) << LINE_BITS | line, so ordinals are in the
# order of the source.
LINE_BITS = 40
ROW = np.dtype(
  [
    ('ordinal', '<u8'),
    ('digest_high', '<u8'),  # of the sequence
    ('digest_low', '<u8'),
    ('id_hash', '<u8'),
    ('stem_hash', '<u8'),  # of an id such as stem-2, else 0
    ('stem_number', '<u4'),
    ('length', '<u4'),
    ('num_j', '<u4'),  # read as X
  ]
)
_PACK_ROW = struct.Struct('<QQQQQIII').pack
_UNPACK_DIGEST = struct.Struct('<QQ').unpack
_NUMBERED = re.compile(r'(.+)-([1-9]\d{0,8})')
_NO_LETTER = re.compile('[^A-Z]')
_NUM_TOLD = 3  # places printed for each kind of thing that is left out

COUNTS = (
  'records read',
  'empty skipped',
  'with symbols skipped',
  'uncertain dropped',
  'duplicates dropped',
  'ids made distinct',
  'terminal * stripped',
  'J read as X',
)


class Block(NamedTuple):
  """A piece of a file with whole records.

  Attributes:
    number: of the file in its source.
    path: of the file.
    first: line (or row) of its first record, from 1.
    num_before: records of the file before this block.
    content: what the source's `parse` understands.
  """

  number: int
  path: str
  first: int
  num_before: int
  content: object


class Tally:
  """Counts of what was read, changed and left out.

  Attributes:
    counts: by kind, in order of first use.
    told: (kind, sentence) of the first few of each kind.
  """

  def __init__(self):
    self.counts = dict.fromkeys(COUNTS, 0)
    self.told = []
    self._num_told = collections.Counter()

  def tell(self, kind: str, sentence: str) -> None:
    """Counts one of a kind, and keeps the first few sentences."""
    self.counts[kind] = self.counts.get(kind, 0) + 1
    self._num_told[kind] += 1
    if self._num_told[kind] <= _NUM_TOLD:
      self.told.append((kind, sentence))

  def add(self, later: 'Tally') -> None:
    """Adds what came after; prints the first few sentences of each kind."""
    for kind, number in later.counts.items():
      self.counts[kind] = self.counts.get(kind, 0) + number
    for kind, sentence in later.told:
      self._num_told[kind] += 1
      if self._num_told[kind] <= _NUM_TOLD:
        self.told.append((kind, sentence))
        print(f'  {sentence}', flush=True)
    for kind, told in self._num_told.items():
      if self.counts[kind] > _NUM_TOLD and told < math.inf:
        print(f'  ... more of these: {kind}', flush=True)
        self._num_told[kind] = math.inf

  def summary(self) -> str:
    """Every count in one line."""
    return ', '.join(f'{n:,} {kind}' for kind, n in self.counts.items())


def hash_id(text: str) -> int:
  """Returns 64 bits that stand for an id."""
  digest = hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=8)
  return int.from_bytes(digest.digest(), 'little')


@dataclasses.dataclass
class Intake:
  """Takes the records of one block.

  Attributes:
    policy: what becomes of their letters.
    block: that is being parsed.
    num_buckets: of the collection.
    tally: counts.
    rows: of each bucket, the bytes of its records' rows.
    texts: of each bucket, (id, sequence, description, organism, taxonomy id)
      of each record.
  """

  policy: letters.LetterPolicy
  block: Block
  num_buckets: int

  def __post_init__(self):
    self.tally = Tally()
    self.rows = [bytearray() for _ in range(self.num_buckets)]
    self.texts = [[] for _ in range(self.num_buckets)]

  def drop_uncertain(self) -> None:
    """Counts a record that its source calls uncertain."""
    self.tally.counts['records read'] += 1
    self.tally.counts['uncertain dropped'] += 1

  def take(
    self,
    line: int,
    id_: str,
    description: str,
    organism: str,
    taxonomy_id: int,
    raw: bytes,
  ) -> None:
    """Takes a record; `raw` is its sequence as it stands in the file."""
    counts, path = self.tally.counts, self.block.path
    counts['records read'] += 1
    sequence, num_symbols, stripped = self.policy.clean(raw)
    counts['terminal * stripped'] += stripped
    if num_symbols:
      offset, symbol = letters.first_symbol(raw, self.policy.strip_stop)
      # A record's letters begin on the line after its header.
      place = f'{path}:{self._symbol_line(line, offset)}'
      sentence = f'{place}: {symbol!r} in record {id_}'
      if self.policy.symbols == 'skip':
        self.tally.tell('with symbols skipped', f'{sentence}, skipped')
        return
      if self.policy.symbols == 'refuse':
        raise ValueError(
          f"{sentence} is no residue, and letters.symbols = 'refuse'; correct "
          "the record, or let letters.symbols = 'skip' leave it out."
        )
      text = sequence.decode('utf-8', 'replace')
      text, num_read = _NO_LETTER.subn('X', text)
      sequence = text.encode()
      self.tally.tell('symbols read as X', f'{sentence}, read as X')
      counts['symbols read as X'] += num_read - 1
    if not sequence:
      self.tally.tell('empty skipped', f'{path}:{line}: empty record {id_}')
      return
    for is_out, kind in (
      (len(sequence) < self.policy.min_len, 'shorter than min_len skipped'),
      (
        self.policy.max_len and len(sequence) > self.policy.max_len,
        'longer than max_len skipped',
      ),
    ):
      if is_out:
        self.tally.tell(
          kind, f'{path}:{line}: {len(sequence)} residues in record {id_}'
        )
        return
    num_j = sequence.count(b'J')
    if num_j:
      sequence = sequence.replace(b'J', b'X')
    digest = hashlib.blake2b(sequence, digest_size=16).digest()
    high, low = _UNPACK_DIGEST(digest)
    stem_hash = stem_number = 0
    if '-' in id_ and (numbered := _NUMBERED.fullmatch(id_)):
      stem_hash, stem_number = hash_id(numbered[1]), int(numbered[2])
    bucket = high % self.num_buckets
    self.rows[bucket] += _PACK_ROW(
      self.block.number << LINE_BITS | line,
      high,
      low,
      hash_id(id_),
      stem_hash,
      stem_number,
      len(sequence),
      num_j,
    )
    self.texts[bucket].append(
      (id_, sequence.decode(), description, organism, taxonomy_id)
    )

  def _symbol_line(self, line: int, offset: int) -> int:
    has_lines = isinstance(self.block.content, bytes)
    return line + 1 + offset if has_lines else line
