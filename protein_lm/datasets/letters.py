"""The one policy for the letters of a sequence, whatever file it comes from.

Letters are upper-cased, one `*` at the end is stripped, J (leucine or
isoleucine) is read as X. Blanks and line ends between letters are nothing. What
then holds anything beside letters (an inner `*`, a gap, a digit) is a record
with symbols. Every change and every record left out is counted.
"""

import dataclasses

import gin

SYMBOLS = ('skip', 'X', 'refuse')
_LETTERS = b'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
_UPPER = bytes.maketrans(_LETTERS.lower(), _LETTERS)
_BLANKS = b' \t\n\r'


@gin.configurable('letters')
@dataclasses.dataclass(frozen=True)
class LetterPolicy:
  """What is made of unusual records; counted in any case.

  Attributes:
    symbols: of a record with symbols: 'skip' leaves it out, 'X' reads each
      symbol as an unknown residue, 'refuse' stops at the first.
    max_symbol_fraction: of the records read; more of them with symbols stop
      the preparation, since then something else is wrong.
    strip_stop: whether one `*` at the end (a stop codon) is no symbol.
    min_len: residues; shorter records are left out.
    max_len: residues; longer records are left out, None for no bound.
  """

  symbols: str = 'skip'
  max_symbol_fraction: float = 0.01
  strip_stop: bool = True
  min_len: int = 1
  max_len: int | None = None

  def __post_init__(self):
    if self.symbols not in SYMBOLS:
      raise ValueError(
        f'letters.symbols must be one of {", ".join(SYMBOLS)}, got '
        f'{self.symbols!r}.'
      )
    if not 0 <= self.max_symbol_fraction <= 1:
      raise ValueError(
        'letters.max_symbol_fraction must be between 0 and 1, got '
        f'{self.max_symbol_fraction!r}.'
      )
    if self.min_len < 1 or (self.max_len or self.min_len) < self.min_len:
      raise ValueError(
        'letters.min_len must be at least 1 and letters.max_len no smaller, '
        f'got {self.min_len!r} and {self.max_len!r}.'
      )

  def clean(self, raw: bytes) -> tuple[bytes, int, bool]:
    """Returns letters A-Z in upper case, the symbols left in them, and more.

    Args:
      raw: a record's sequence as it stands in the file.

    Returns:
      letters: upper case, J not yet read as X.
      num_symbols: bytes of `letters` that are no letter.
      stripped: whether a stop was stripped.
    """
    letters = raw.translate(_UPPER, _BLANKS)
    stripped = self.strip_stop and letters.endswith(b'*')
    if stripped:
      letters = letters[:-1]
    return letters, len(letters.translate(None, _LETTERS)), stripped


# As of the first release; made before any gin file is read.
DEFAULT = LetterPolicy()


def first_symbol(raw: bytes, strip_stop: bool) -> tuple[int, str]:
  """The line, from 0, and the first symbol of a record that has one."""
  text = raw.decode('utf-8', 'replace')
  if strip_stop and (end := text.rstrip(_BLANKS.decode())).endswith('*'):
    text = end[:-1]
  for line, letters in enumerate(text.split('\n')):
    for symbol in letters:
      if not (symbol.isascii() and (symbol.isalpha() or symbol in ' \t\r')):
        return line, symbol
  raise AssertionError('a record without symbols was taken for one with some')
