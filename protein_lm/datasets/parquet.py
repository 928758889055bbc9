"""Parquet files with a column of protein sequences as a data set.

A file, a pattern, or a folder in the layout of Hugging Face's data sets. Where
the names of files tell train, validation and test, these are the splits, unless
a rule says otherwise; a sequence that several hold stays in test, else in
validation.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from protein_lm.datasets import intake, parquet_file
from protein_lm.datasets.fasta_file import parse_header
from protein_lm.datasets.file_builder import FileBuilder

_ROWS_PER_MEGABYTE = 2_500  # proteins of some 400 letters
_RATIO = 3  # bytes of text to those of a file
_ORDER = ('test', 'validation', 'train', None)  # the first to have one keeps it


@dataclasses.dataclass(frozen=True)
class ParquetFiles:
  """Parquet files as one source.

  Attributes:
    paths: read in this order.
    split_of_path: the split that each one's name tells, or None.
    columns: read.
  """

  paths: tuple[pathlib.Path, ...]
  split_of_path: tuple[str | None, ...]
  columns: parquet_file.Columns

  def num_bytes(self) -> int:
    """About how many bytes of text, told from the sizes of the files."""
    return _RATIO * sum(path.stat().st_size for path in self.paths)

  def split_of(self, number: int) -> str | None:
    """The split that a file's name tells."""
    return self.split_of_path[number]

  def blocks(self, number: int, block_bytes: int) -> Iterator[intake.Block]:
    """Yields a file as blocks of about so many bytes."""
    path = self.paths[number]
    num_rows = block_bytes * _ROWS_PER_MEGABYTE // 2**20
    for rows in parquet_file.blocks(path, self.columns, num_rows):
      first = rows.first_row
      yield intake.Block(number, str(path), first, first - 1, rows)

  def parse(self, block: intake.Block, its_intake: intake.Intake) -> None:
    """Hands each row of a block to an intake."""
    rows = block.content
    for number, (id_, sequence, *known) in enumerate(
      zip(
        rows.id,
        rows.sequence,
        rows.description,
        rows.organism,
        rows.taxonomy_id,
        strict=True,
      ),
      block.first,
    ):
      id_ = parse_header(id_)[0] or f'record_{number}'  # as lists of ids have
      its_intake.take(number, id_, *known, sequence.encode())


class Parquet(FileBuilder):
  """The proteins of Parquet files; see `FileBuilder`.

  Args:
    sequence_column: its name, found if None.
  """

  DESCRIPTION = 'Proteins of Parquet files.'

  def __init__(
    self, *, patterns: tuple[str, ...], sequence_column=None, **kwargs
  ):
    self._patterns, self._sequence_column = patterns, sequence_column
    told = [split for _, split in self._files() if split]
    reading = ' '.join([sequence_column or '', *told])
    super().__init__(patterns=patterns, reading=reading, **kwargs)

  def find(self, pattern: str) -> tuple[pathlib.Path, ...]:
    return tuple(path for path, _ in _find(pattern))

  def _files(self, say: Callable[[str], None] = lambda line: None):
    """Returns all files, each with the split that its name tells.

    A single file is split itself, whatever its name.
    """
    found = [pair for name in self._patterns for pair in _find(name, say)]
    if len(found) < 2:
      return found
    return [
      (path, split or parquet_file.split_of_name(pathlib.Path(path.name)))
      for path, split in found
    ]

  def make_source(self) -> ParquetFiles:
    found = sorted(self._files(print), key=lambda pair: _ORDER.index(pair[1]))
    paths, split_of_path = zip(*found, strict=True)
    columns = parquet_file.find_columns(paths, self._sequence_column)
    return ParquetFiles(paths, split_of_path, columns)


def _find(
  pattern: str, say: Callable[[str], None] = lambda line: None
) -> tuple[tuple[pathlib.Path, str | None], ...]:
  """Returns the files of a name or pattern, each with its split."""
  try:
    found = parquet_file.find_files(pattern, say)
  except ValueError:
    if not pathlib.Path(pattern).exists():
      return ()  # a prepared copy may be there
    raise
  return tuple(
    (path, split) for split, paths in found.items() for path in paths
  )
