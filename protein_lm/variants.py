"""Variants of a protein: `A42G:K50R`, or a whole other sequence.

A position is a number as written; less the offset it counts the residues of the
wild type from 1. An index counts them from 0.
"""

import re
from typing import NamedTuple

from protein_lm import vocab

# What can stand in a mutation: B, X and Z mean several residues each.
LETTERS = ''.join(
  letter for letter in vocab.RESIDUES if letter not in vocab.UNCOUNTED_RESIDUES
)
_MUTATION = re.compile(r'(\D)(-?\d+)(\D)')
_WILD_TYPE_NAMES = ('WT', '_WT')


class Mutation(NamedTuple):
  """One residue in place of another.

  Attributes:
    wild: letter of the wild type.
    position: as written.
    mutant: letter that takes its place.
  """

  wild: str
  position: int
  mutant: str

  def __str__(self):
    return f'{self.wild}{self.position}{self.mutant}'


class Variant(NamedTuple):
  """What is scored against a wild type.

  Attributes:
    substitutions: (index, letter of the wild type, letter of the mutant) each;
      None where the lengths differ.
    sequence: the mutated sequence where the lengths differ, else None.
  """

  substitutions: tuple[tuple[int, str, str], ...] | None
  sequence: str | None = None

  def of(self, wild_type: str) -> str:
    """The mutated sequence."""
    if self.sequence is not None:
      return self.sequence
    letters = list(wild_type)
    for index, _, mutant in self.substitutions:
      letters[index] = mutant
    return ''.join(letters)


def parse(text: str) -> tuple[Mutation, ...]:
  """Reads the mutations of one variant; none of 'WT'.

  Raises:
    ValueError: a malformed mutation, an unknown letter, a position twice.

  Example:
    >>> parse('A42G:K50R')[1].position
    50
  """
  text = text.strip()
  if text.upper() in _WILD_TYPE_NAMES:
    return ()
  mutations = []
  for part in text.split(':'):
    match = _MUTATION.fullmatch(part.strip())
    if not match:
      raise ValueError(
        f'{part!r} is no mutation: write A42G, and several as A42G:K50R.'
      )
    mutation = Mutation(match[1], int(match[2]), match[3])
    for letter in (mutation.wild, mutation.mutant):
      if letter not in LETTERS:
        raise ValueError(
          f'{letter!r} in {part!r} is an unknown letter: mutations are among '
          f'{LETTERS}, in upper case.'
        )
    mutations.append(mutation)
  positions = [mutation.position for mutation in mutations]
  if len(set(positions)) < len(positions):
    raise ValueError(f'{text!r} names a position twice.')
  return tuple(mutations)


def is_sequence(text: str, wild_type: str) -> bool:
  """Whether a variant is given as a whole sequence, not by its mutations.

  That is, by residues alone, and at least half as many as the wild type has.
  """
  text = text.strip()
  return (
    2 * len(text) >= max(len(wild_type), 3)
    and text.upper() not in _WILD_TYPE_NAMES
    and all(letter in vocab.RESIDUES for letter in text)
  )


def substitutions_of(
  mutations: tuple[Mutation, ...], wild_type: str, offset: int = 0
) -> Variant:
  """Places mutations on their wild type.

  Args:
    mutations: of `parse`.
    wild_type: its sequence.
    offset: what is taken from each position.

  Raises:
    ValueError: a position outside, or another letter there.
  """
  found = []
  for mutation in mutations:
    index = index_of(mutation, len(wild_type), offset)
    if wild_type[index] != mutation.wild:
      raise ValueError(
        f"'{mutation}' expects {mutation.wild} at position "
        f'{mutation.position}, where the wild type has {wild_type[index]}'
      )
    found.append((index, mutation.wild, mutation.mutant))
  return Variant(tuple(found))


def index_of(mutation: Mutation, length: int, offset: int = 0) -> int:
  """The index of a mutation in a sequence of so many residues.

  Raises:
    ValueError: it lies outside.
  """
  index = mutation.position - offset - 1
  if not 0 <= index < length:
    raise ValueError(
      f"'{mutation}' lies out of range: the {length} residues of the sequence "
      f'have the positions {offset + 1} to {offset + length}'
    )
  return index


def undo(
  mutations: tuple[Mutation, ...], sequence: str, offset: int = 0
) -> str:
  """The wild type of a mutated sequence.

  Raises:
    ValueError: the sequence lacks one of the mutations.
  """
  letters = list(sequence)
  for mutation in mutations:
    index = index_of(mutation, len(sequence), offset)
    if letters[index] != mutation.mutant:
      raise ValueError(
        f"'{mutation}' expects {mutation.mutant} at position "
        f'{mutation.position}, where mutated_sequence has {letters[index]}'
      )
    letters[index] = mutation.wild
  return ''.join(letters)


def check_sequence(sequence: str) -> None:
  """Refuses what is no protein.

  Raises:
    ValueError: it is empty, or holds a letter that is no residue.
  """
  if not sequence:
    raise ValueError('the sequence is empty.')
  vocab.encode(sequence)


def compare(sequence: str, wild_type: str | None) -> Variant:
  """A variant given as a whole: substitutions if the lengths are equal.

  Raises:
    ValueError: it is empty, or holds a letter that is no residue.
  """
  check_sequence(sequence)
  if wild_type is None or len(sequence) != len(wild_type):
    return Variant(None, sequence)
  changed = [
    (index, *pair)
    for index, pair in enumerate(zip(wild_type, sequence, strict=True))
    if pair[0] != pair[1]
  ]
  if any(letter not in LETTERS for _, *pair in changed for letter in pair):
    return Variant(None, sequence)
  return Variant(tuple(changed))


def read(text: str, wild_type: str, offset: int = 0) -> Variant:
  """A variant from its mutations or its whole sequence.

  Raises:
    ValueError: see `parse`, `substitutions_of` and `compare`.

  Example:
    >>> read('C2G', 'ACD').of('ACD')
    'AGD'
  """
  if is_sequence(text, wild_type):
    return compare(text.strip(), wild_type)
  return substitutions_of(parse(text), wild_type, offset)


def first_difference(a: str, b: str) -> int:
  """The first index where two different sequences of one length differ."""
  return next(i for i in range(len(a)) if a[i] != b[i])


class Expected(NamedTuple):
  """A letter that should stand at a position of a sequence."""

  position: int
  letter: str
  sequence: str


def fitting_offset(expected: list[Expected]) -> int | None:
  """The offset with which every letter is as expected, if there is just one.

  Example:
    >>> fitting_offset([Expected(24, 'A', 'ACD'), Expected(26, 'D', 'ACD')])
    23
  """
  if not expected:
    return None
  first = max(e.position - len(e.sequence) for e in expected)
  last = min(e.position - 1 for e in expected)
  fitting = [
    offset
    for offset in range(first, last + 1)
    if all(e.sequence[e.position - offset - 1] == e.letter for e in expected)
  ]
  return fitting[0] if len(fitting) == 1 else None
