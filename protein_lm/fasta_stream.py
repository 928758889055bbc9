"""A FASTA file read from start to end, several times, a record at a time.

Every record is kept, equal sequences too; letters are cleaned, counted and
refused as everywhere (datasets/letters.py), and an id that occurs again becomes
id-2, id-3. Of all records nothing is held but 8 bytes each.
"""

import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np

from protein_lm import vocab
from protein_lm.datasets import letters
from protein_lm.datasets.collection import check_symbols
from protein_lm.datasets.fasta_file import FastaFiles
from protein_lm.datasets.intake import (
  LINE_BITS,
  ROW,
  Intake,
  Tally,
  hash_id,
)

_BLOCK_BYTES = 2**20


class FastaStream:
  """The proteins of a file, in its order.

  Attributes:
    path: of the file.
    num_proteins: records that are kept.
    num_residues: of these.
    digest: sha256 of their ids and sequences.
    tally: counts of what was read, changed and left out.
  """

  def __init__(self, path):
    """Reads the file once, to check and count it.

    Raises:
      ValueError: it cannot be read, holds no protein, or symbols in too many
        records; says where.
    """
    self.path = pathlib.Path(path)
    self.tally = Tally()
    self.num_proteins = self.num_residues = 0
    digest, hashes = hashlib.sha256(), []
    for rows, texts in self._blocks(self.tally):
      hashes.append(rows['id_hash'].copy())
      self.num_proteins += len(texts)
      self.num_residues += int(rows['length'].sum(dtype=np.int64))
      self.tally.counts['J read as X'] += int(rows['num_j'].sum())
      for id_, sequence, *_ in texts:
        digest.update(f'>{id_}\n{sequence}\n'.encode('utf-8', 'replace'))
    self.digest = digest.hexdigest()
    check_symbols(self.tally, letters.DEFAULT)
    if not self.num_proteins:
      raise ValueError(
        f'{path} holds no protein ({self.tally.summary()}); is it a file of '
        'protein sequences?'
      )
    self._hashes, counts = np.unique(np.concatenate(hashes), return_counts=True)
    self._repeated = set(self._hashes[counts > 1].tolist())
    self._tell_renames(int((counts - 1).sum()))

  def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the id and the residues, [L] uint8, of each protein."""
    for id_, residues, _, _ in self._proteins():
      yield id_, residues

  def _proteins(self):
    """Yields id, residues, id as it stands in the file, and line."""
    last = {}
    for rows, texts in self._blocks(Tally()):
      lines = (rows['ordinal'] & ((1 << LINE_BITS) - 1)).tolist()
      for (id_, sequence, *_), hash_, line in zip(
        texts, rows['id_hash'].tolist(), lines, strict=True
      ):
        new_id = id_
        if hash_ in self._repeated:
          last[hash_] = self._next_number(id_, last.get(hash_, 0))
          if last[hash_] > 1:
            new_id = f'{id_}-{last[hash_]}'
        yield new_id, vocab.encode(sequence), id_, line

  def _next_number(self, id_, number):
    number += 1
    while number > 1 and self._is_taken(f'{id_}-{number}'):
      number += 1
    return number

  def _is_taken(self, id_):
    place = np.searchsorted(self._hashes, np.uint64(hash_id(id_)))
    return place < len(self._hashes) and self._hashes[place] == hash_id(id_)

  def _blocks(self, tally):
    """Yields the rows (intake.ROW) and texts of the records of each block."""
    source = FastaFiles((self.path,))
    for block in source.blocks(0, _BLOCK_BYTES):
      intake = Intake(letters.DEFAULT, block, 1)
      source.parse(block, intake)
      if tally is self.tally:
        tally.add(intake.tally)
      yield np.frombuffer(intake.rows[0], ROW), intake.texts[0]

  def _tell_renames(self, number):
    """Counts the ids that are changed, and prints the first few."""
    if number:
      told = Tally()
      for new_id, _, id_, line in self._proteins():
        if new_id != id_:
          told.tell(
            'ids made distinct',
            f'{self.path}:{line}: id {id_} again, now {new_id}',
          )
        if len(told.told) == min(number, 3):
          break
      told.counts['ids made distinct'] = number
      self.tally.add(told)
    self.tally.counts['kept'] = self.num_proteins
