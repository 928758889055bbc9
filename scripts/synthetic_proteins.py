"""Made-up proteins for benches: python scripts/synthetic_proteins.py N PATH

Letters come at the frequencies of Swiss-Prot, lengths log-normal with a mean
near 350. Of 100 records about 55 are mutated copies of the ancestors of
families (a few large families, many small ones), one repeats an earlier
sequence letter for letter, one is odd (see `ODDITIES`), and the rest are
related to nothing. The same number and seed give the same records.

Axes: S sequences, T residues of all of them.
"""

import argparse
import dataclasses
import gzip
import os
import pathlib

import numpy as np

_LETTERS = 'ACDEFGHIKLMNPQRSTVWY'
# Percent of Swiss-Prot's residues (UniProt's release statistics, rounded).
_PERCENT = (8.3, 1.4, 5.5, 6.7, 3.9, 7.1, 2.3, 5.9, 5.8, 9.7) + (
  (2.4, 4.1, 4.7, 3.9, 5.5, 6.6, 5.4, 6.9, 1.1, 2.9)
)
_ORGANISMS = (
  ('Homo sapiens', 9606),
  ('Escherichia coli (strain K12)', 83333),
  ('Saccharomyces cerevisiae', 559292),
  ('Arabidopsis thaliana', 3702),
  ('Bacillus subtilis (strain 168)', 224308),
)
_LINE = 60  # letters, as in UniProt's files
_CHUNK = 20_000  # sequences made at a time
_MAX_FAMILIES = 50_000
_COPIES_SHARE = 0.55
_MAX_MUTATION_RATE = 0.3
_EVERY_DUPLICATE = _EVERY_ODD = 100

# What is done to the letters of an odd record; each is met in real files.
ODDITIES = {
  'terminal *': lambda letters: letters + '*',
  'lower case': str.lower,
  'selenocysteine': lambda letters: letters[:9] + 'U' + letters[10:],
  'unknown run': lambda letters: letters[:9] + 'X' * 20 + letters[9:],
  'ambiguous B, J, Z': lambda letters: 'MBJZ' + letters,
  'gap': lambda letters: letters[:9] + '-' + letters[9:],
  'empty': lambda letters: '',
  'single residue': lambda letters: letters[0],
}


@dataclasses.dataclass
class Planted:
  """What was written.

  Attributes:
    num_sequences: records, odd and empty ones included.
    num_residues: letters, those of odd records included.
    num_copies: mutated copies of ancestors.
    num_families: ancestors they were drawn from.
    num_duplicates: exact repeats of an earlier sequence.
    num_odd: records with one of `ODDITIES`.
  """

  num_sequences: int = 0
  num_residues: int = 0
  num_copies: int = 0
  num_families: int = 0
  num_duplicates: int = 0
  num_odd: int = 0


def _letter_table() -> np.ndarray:
  """The letter, as a byte, of each uint16."""
  ends = np.cumsum(_PERCENT) / np.sum(_PERCENT) * (1 << 16)
  places = np.searchsorted(ends, np.arange(1 << 16), side='right')
  return np.frombuffer(_LETTERS.encode(), np.uint8)[places]


_LETTER_OF_DRAW = _letter_table()


def _random_letters(rng: np.random.Generator, size: int) -> np.ndarray:
  return _LETTER_OF_DRAW[rng.integers(0, 1 << 16, size, np.uint16)]


def _random_lengths(rng: np.random.Generator, size: int) -> np.ndarray:
  """Log-normal: median 290, mean 376 (copies are a tenth shorter)."""
  return np.clip(rng.lognormal(np.log(290), 0.72, size), 20, 35_000).astype(int)


def _starts(lengths: np.ndarray) -> np.ndarray:
  """Where each sequence starts, and the end of the last."""
  return np.concatenate([[0], np.cumsum(lengths)])


@dataclasses.dataclass
class _Families:
  """Ancestors, one after another, and how their copies are drawn."""

  letters: np.ndarray
  starts: np.ndarray

  @classmethod
  def draw(cls, rng: np.random.Generator, number: int) -> '_Families':
    lengths = _random_lengths(rng, number)
    return cls(_random_letters(rng, lengths.sum()), _starts(lengths))

  def copies(self, rng: np.random.Generator, family_S: np.ndarray):
    """Copies with lost ends, a deletion and substitutions.

    Returns:
      letters: [T] uint8.
      lengths: [S].
    """
    whole_S = np.diff(self.starts)[family_S]
    lost_S, deleted_S = (
      (whole_S * share).astype(int)
      for share in rng.uniform(0, 0.1, (2, len(family_S)))
    )
    lengths_S = whole_S - lost_S - deleted_S
    starts_S = _starts(lengths_S)
    place_T = np.arange(starts_S[-1]) - np.repeat(starts_S[:-1], lengths_S)
    cut_S = (lengths_S * rng.random(len(family_S))).astype(int)
    place_T += np.repeat(deleted_S, lengths_S) * (
      place_T >= np.repeat(cut_S, lengths_S)
    )
    first_S = self.starts[family_S] + (
      lost_S * rng.random(len(family_S))
    ).astype(int)
    letters_T = self.letters[place_T + np.repeat(first_S, lengths_S)]
    # Squared: most relatives are close ones.
    rate_S = _MAX_MUTATION_RATE * rng.random(len(family_S), np.float32) ** 2
    (mutated,) = np.nonzero(
      rng.random(len(letters_T), np.float32) < np.repeat(rate_S, lengths_S)
    )
    letters_T[mutated] = _random_letters(rng, len(mutated))
    return letters_T, lengths_S


def _sequences(letters_T: np.ndarray, lengths_S: np.ndarray) -> list[str]:
  text = letters_T.tobytes().decode('ascii')
  starts = _starts(lengths_S).tolist()
  return [text[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def _make_chunk(rng, families, first, size, planted) -> list[str]:
  """Makes the records `first` to `first + size`, as FASTA."""
  family_S = np.full(size, -1)
  (copies,) = np.nonzero(rng.random(size) < _COPIES_SHARE)
  num_families = len(families.starts) - 1
  # Squared: the first families are the largest.
  family_S[copies] = num_families * rng.random(len(copies)) ** 2
  lengths_S = _random_lengths(rng, size - len(copies))
  alone = iter(_sequences(_random_letters(rng, lengths_S.sum()), lengths_S))
  related = iter(_sequences(*families.copies(rng, family_S[copies])))
  repeated = rng.integers(0, np.arange(1, size + 1)).tolist()
  oddities = list(ODDITIES.values())

  texts, records = [], []
  for place, family in enumerate(family_S.tolist()):
    letters = next(alone if family < 0 else related)
    number = first + place
    origin = f'of family {family}' if family >= 0 else 'without relatives'
    if number % _EVERY_ODD == _EVERY_ODD // 2:
      letters = oddities[number // _EVERY_ODD % len(oddities)](letters)
      origin = 'with an oddity'
      planted.num_odd += 1
    elif number % _EVERY_DUPLICATE == _EVERY_DUPLICATE - 1:
      letters = texts[repeated[place] - (repeated[place] == place)]
      origin = 'seen before'
      planted.num_duplicates += 1
    elif family >= 0:
      planted.num_copies += 1
    texts.append(letters)
    planted.num_residues += len(letters)
    organism, taxonomy_id = _ORGANISMS[number % len(_ORGANISMS)]
    id_ = f'S{number:09}'
    lines = [letters[i : i + _LINE] for i in range(0, len(letters), _LINE)]
    records.append(
      f'>tr|{id_}|{id_}_SYN Protein {origin} OS={organism} OX={taxonomy_id}\n'
      + '\n'.join(lines)
      + '\n'
    )
  planted.num_sequences += size
  return records


def write_synthetic_fasta(
  path: os.PathLike | str, num_sequences: int, seed: int = 0
) -> Planted:
  """Writes a gzip FASTA file of made-up proteins.

  Args:
    path: of the file, usually `*.fasta.gz`; replaced if it exists.
    num_sequences: records, at least 1.
    seed: of everything random.

  Returns:
    Counts of what was planted.

  Raises:
    ValueError: num_sequences below 1.
  """
  if num_sequences < 1:
    raise ValueError(f'num_sequences must be at least 1, got {num_sequences}.')
  num_families = min(_MAX_FAMILIES, num_sequences // 20 + 1)
  families = _Families.draw(np.random.default_rng([seed, 0]), num_families)
  planted = Planted(num_families=num_families)
  with gzip.open(path, 'wt', compresslevel=1, encoding='ascii') as file:
    for first in range(0, num_sequences, _CHUNK):
      rng = np.random.default_rng([seed, 1 + first])
      size = min(_CHUNK, num_sequences - first)
      file.write(''.join(_make_chunk(rng, families, first, size, planted)))
  return planted


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('num_sequences', type=int)
  parser.add_argument('path', type=pathlib.Path)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  print(write_synthetic_fasta(args.path, args.num_sequences, args.seed))


if __name__ == '__main__':
  main()
