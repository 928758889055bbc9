"""The records of a FASTA file as they stand, equal ones included."""

import pathlib

from protein_lm.datasets import letters
from protein_lm.datasets.fasta_file import FastaFiles
from protein_lm.datasets.intake import Intake, Tally

_BLOCK_BYTES = 2**24
_UNREADABLE = ('with symbols skipped', 'empty skipped')


def read(path, skip_bad: bool = False) -> list[tuple[str, str]]:
  """Reads (id, sequence) of every record, in order; letters as letters.py says.

  Args:
    path: of the file, plain or gzip.
    skip_bad: leave out, and print, records without a residue or with anything
      beside letters, instead of stopping.

  Raises:
    ValueError: the file cannot be read, or holds no record, or a bad one.
  """
  source, tally = FastaFiles((pathlib.Path(path),)), Tally()
  records = []
  for block in source.blocks(0, _BLOCK_BYTES):
    intake = Intake(letters.DEFAULT, block, num_buckets=1)
    source.parse(block, intake)
    records += [text[:2] for text in intake.texts[0]]
    for kind, sentence in intake.tally.told:
      if kind in _UNREADABLE and not skip_bad:
        sentence = sentence.removesuffix(', skipped')
        raise ValueError(f'{sentence}: correct it, or pass --skip_bad.')
    tally.add(intake.tally)
  if not records:
    raise ValueError(f'{path} holds no protein.')
  skipped = sum(tally.counts[kind] for kind in _UNREADABLE)
  if skipped:
    print(f'{path}: {skipped:,} records skipped', flush=True)
  return records
