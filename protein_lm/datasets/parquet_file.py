"""Protein sequences in a column of Parquet files.

Files are found as data sets of Hugging Face lay them out, only the columns in
use are read, and every row of a file is given, or an error. A flipped bit is
found where the file has checksums of its pages; many writers leave these out.
"""

import collections
import contextlib
import dataclasses
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

SUFFIX = '.parquet'
SEQUENCE_NAMES = (
  'sequence',
  'seq',
  'sequences',
  'protein_sequence',
  'aa_seq',
  'protein',
  'text',
  'primary',
)
# Of these the first that a file has is taken.
OPTIONAL_NAMES = {
  'id': ('id', 'accession', 'entry', 'name', 'protein_id', 'uniprot_id'),
  'description': ('description',),
  'organism': ('organism',),
  'taxonomy_id': ('taxonomy_id', 'taxid', 'tax_id', 'organism_id'),
}
_SPLIT_OF_WORD = {
  'train': 'train',
  'validation': 'validation',
  'valid': 'validation',
  'val': 'validation',
  'dev': 'validation',
  'test': 'test',
}
_SHARD = re.compile(r'(.*?)-(\d+)-of-(\d+)(?:-[0-9a-f]{16})?')
_LFS_POINTER = b'version https://git-lfs'
_BUFFER_BYTES = 1 << 20
_NUM_TOLD = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
  """The names of the columns to read; None for what a file does not have."""

  sequence: str
  id: str | None = None
  description: str | None = None
  organism: str | None = None
  taxonomy_id: str | None = None

  def names(self) -> list[str]:
    """The columns there are, each once."""
    present = [name for name in dataclasses.astuple(self) if name is not None]
    return list(dict.fromkeys(present))


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
  """Rows that follow each other in one file, as lists of one length.

  What is null, or has no column, is '' or 0. Rows are counted from 1.
  """

  first_row: int
  id: list[str]
  sequence: list[str]
  description: list[str]
  organism: list[str]
  taxonomy_id: list[int]


def find_files(
  path: str | os.PathLike, say: Callable[[str], None] = print
) -> dict[str | None, list[pathlib.Path]]:
  """Finds Parquet files and the split that the name of each tells.

  A name tells a split by a whole word, train, validation, valid, val, dev or
  test, in it or else in its folder: `data/train-00000-of-00002.parquet`,
  `validation/0000.parquet`. Other files beside such are taken for train. Hidden
  files and folders are left out.

  Args:
    path: a file, a folder (searched to all depths), or a pattern with * ? []
      or **.
    say: takes the line about files taken for train.

  Returns:
    files: sorted paths by split; {None: files} if no name tells a split, as
      for a path that is one file.

  Raises:
    ValueError: there is no such file, or a shard is missing; names it.

  Example:
    find_files('data')['train'][0]  # data/train-00000-of-00002.parquet
  """
  path = pathlib.Path(path)
  if path.is_file():
    return {None: [path]}
  root, files = _search(path)
  _check_shards(files)
  splits = {file: split_of_name(file.relative_to(root)) for file in files}
  if not any(splits.values()):
    return {None: files}
  others = [file for file in files if splits[file] is None]
  if others:
    say(
      f'{_some(others)}: no split in the name of {len(others)} of {len(files)} '
      'files, taken for train'
    )
  found = {'train': [], 'validation': [], 'test': []}
  for file in files:
    found[splits[file] or 'train'].append(file)
  return {split: files for split, files in found.items() if files}


def find_columns(
  files: Sequence[pathlib.Path], sequence_column: str | None = None
) -> Columns:
  """Finds the columns to read, the same in all files.

  Args:
    files: Parquet files.
    sequence_column: the name of the column of sequences; None finds the only
      one called as in SEQUENCE_NAMES, in upper or lower case.

  Returns:
    columns: that of the sequences, and of OPTIONAL_NAMES those that every file
      has.

  Raises:
    ValueError: a file is damaged, or has none or several such columns; lists
      its columns.
  """
  found = [_find_in_file(file, sequence_column) for file in files]
  first = found[0]
  for file, columns in zip(files, found, strict=True):
    if columns.sequence != first.sequence:
      raise ValueError(
        f'{file} has its sequences in column {columns.sequence!r}, {files[0]} '
        f'in {first.sequence!r}; prepare them apart.'
      )
  optional = {
    field: getattr(first, field)
    for field in OPTIONAL_NAMES
    if len({getattr(columns, field) for columns in found}) == 1
  }
  return Columns(first.sequence, **optional)


def blocks(
  path: pathlib.Path, columns: Columns, rows_per_block: int = 20_000
) -> Iterator[Block]:
  """Yields the rows of a file in order, in bounded memory.

  Args:
    path: a Parquet file.
    columns: as `find_columns` gave them.
    rows_per_block: the most rows in a block.

  Raises:
    ValueError: the file is absent or damaged, lacks a column, or gives another
      number of rows than it says; names it, and the row groups if known.
  """
  num_rows = 0
  with _open(path) as file:
    with _readable(path):
      names = file.schema_arrow.names
    _check_columns(path, columns, names)
    groups = list(
      itertools.accumulate(
        file.metadata.row_group(i).num_rows
        for i in range(file.metadata.num_row_groups)
      )
    )
    batches = file.iter_batches(
      rows_per_block, columns=columns.names(), use_threads=False
    )
    while True:
      rows = range(num_rows + 1, num_rows + rows_per_block + 1)
      with _readable(path, _groups_text(groups, rows)):
        batch = next(batches, None)
      if batch is None:
        break
      yield _block(batch, columns, num_rows + 1)
      num_rows += batch.num_rows
    if num_rows != file.metadata.num_rows:
      raise ValueError(
        f'{path} gives {num_rows:,} rows where it says it has '
        f'{file.metadata.num_rows:,}; write or download it again.'
      )


def _search(path: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """Returns the folder that was searched, and the sorted Parquet files."""
  if path.is_dir():
    root, found = path, path.rglob('*')
  elif glob.has_magic(str(path)):
    parts = itertools.takewhile(lambda p: not glob.has_magic(p), path.parts)
    root = pathlib.Path(*parts)
    found = map(pathlib.Path, glob.iglob(str(path), recursive=True))
  else:
    raise ValueError(f'{path}: there is no such file, folder or pattern.')
  files = sorted(
    file
    for file in set(found)
    if file.suffix.lower() == SUFFIX
    and not file.is_dir()
    and not any(p.startswith('.') for p in file.relative_to(root).parts)
  )
  if not files:
    raise ValueError(
      f'{path} holds no file named *{SUFFIX}; give a Parquet file, its folder '
      'or a pattern.'
    )
  return root, files


def _check_shards(files: Iterable[pathlib.Path]) -> None:
  """Refuses a series of name-i-of-n that is not whole."""
  series = collections.defaultdict(list)
  for file in files:
    match = _SHARD.fullmatch(file.stem)
    if match:
      series[file.parent, match[1]].append((int(match[2]), match[3], file))
  for shards in series.values():
    shards.sort()
    numbers, totals, paths = zip(*shards, strict=True)
    if len(set(totals)) > 1 or len(set(numbers)) < len(numbers):
      raise ValueError(
        f'{_some(paths)} mix the shards of two versions; remove the old ones.'
      )
    total = int(totals[0])
    first = 1 if total in numbers and 0 not in numbers else 0
    if len(numbers) != total or numbers[-1] != first + total - 1:
      number = next(i for i in itertools.count(first) if i not in numbers)
      raise ValueError(
        f'{_shard_beside(paths[0], number)} is missing (there are '
        f'{len(numbers):,} shards of {total:,}); download the others.'
      )


def _shard_beside(path: pathlib.Path, number: int) -> pathlib.Path:
  """The path of another shard of a series."""
  prefix, digits, total = _SHARD.fullmatch(path.stem).groups()
  name = f'{prefix}-{number:0{len(digits)}d}-of-{total}{path.suffix}'
  return path.with_name(name)


def split_of_name(path: pathlib.Path) -> str | None:
  """The split that the name of a file, or else of a folder of it, tells."""
  for name in (path.stem, *(folder.name for folder in path.parents)):
    words = re.split('[^a-z]+', name.lower())
    splits = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    if len(splits) == 1:
      return splits.pop()
  return None


def _some(paths: Sequence[pathlib.Path]) -> str:
  names = ', '.join(map(str, paths[:_NUM_TOLD]))
  return names + (' ...' if len(paths) > _NUM_TOLD else '')


def _find_in_file(path: pathlib.Path, sequence_column: str | None) -> Columns:
  with _open(path) as file, _readable(path):
    schema = file.schema_arrow
    texts = [field.name for field in schema if _is_text(field.type)]
    numbers = [field.name for field in schema if _is_number(field.type)]
    all_names = schema.names
  sequence = _find_sequence(path, texts, all_names, sequence_column)
  optional = {
    field: _first_called(
      [name for name in texts if name != sequence]
      + (numbers if field in ('id', 'taxonomy_id') else []),
      names,
    )
    for field, names in OPTIONAL_NAMES.items()
  }
  return Columns(sequence, **optional)


def _find_sequence(path, texts, all_names, wanted: str | None) -> str:
  if wanted is not None:
    found = [name for name in texts if name == wanted] or [
      name for name in texts if name.lower() == wanted.lower()
    ]
    problem = f'no column of text called {wanted!r}'
  else:
    found = [name for name in texts if name.lower() in SEQUENCE_NAMES]
    problem = 'no column of text called ' + ', '.join(SEQUENCE_NAMES)
  if len(found) == 1:
    return found[0]
  if found:
    problem = f'several columns that may hold sequences ({", ".join(found)})'
  raise ValueError(
    f'{path} has {problem}; choose one of its columns '
    f'({", ".join(all_names)}) by --sequence_column.'
  )


def _first_called(columns: Sequence[str], names: Iterable[str]) -> str | None:
  lower = {column.lower(): column for column in reversed(columns)}
  return next((lower[name] for name in names if name in lower), None)


def _is_text(type_) -> bool:
  from pyarrow import types

  if types.is_dictionary(type_):
    type_ = type_.value_type
  tests = (
    types.is_string,
    types.is_large_string,
    types.is_string_view,
    types.is_binary,
    types.is_large_binary,
    types.is_binary_view,
    types.is_fixed_size_binary,
  )
  return any(test(type_) for test in tests)


def _is_number(type_) -> bool:
  from pyarrow import types

  # pandas makes floats of integers where some are missing.
  return types.is_integer(type_) or types.is_floating(type_)


def _check_columns(path, columns: Columns, names: Sequence[str]) -> None:
  for name in columns.names():
    if names.count(name) != 1:
      raise ValueError(
        f'{path} has {names.count(name)} columns called {name!r}; it must have '
        f'one (its columns are {", ".join(names)}).'
      )


def _block(batch, columns: Columns, first_row: int) -> Block:
  def texts(name):
    if name is None:
      return [''] * batch.num_rows
    return [_text(value) for value in _values(batch.column(name))]

  return Block(
    first_row=first_row,
    id=texts(columns.id),
    sequence=texts(columns.sequence),
    description=texts(columns.description),
    organism=texts(columns.organism),
    taxonomy_id=[_taxonomy_id(text) for text in texts(columns.taxonomy_id)],
  )


def _values(column) -> list:
  """The values of an Arrow array; bytes where they are no UTF-8."""
  try:
    return column.to_pylist()
  except UnicodeDecodeError:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
      column = column.dictionary_decode()
    return column.cast(pa.large_binary()).to_pylist()


def _text(value) -> str:
  if value is None:
    return ''
  if isinstance(value, bytes):
    # A field of fixed size is filled up with zeros.
    return value.rstrip(b'\0').decode('utf-8', 'replace')
  return str(value)


def _taxonomy_id(text: str) -> int:
  digits = text.strip().removesuffix('.0')
  is_number = digits.isascii() and digits.isdigit() and len(digits) <= 10
  number = int(digits) if is_number else 0
  return number if number < 2**31 else 0  # what a record holds, and NCBI's are


@contextlib.contextmanager
def _open(path: pathlib.Path):
  """Opens a Parquet file, or says in one sentence why it cannot."""
  try:
    import pyarrow.parquet as pq
  except ImportError as error:
    raise ValueError(
      f'{path}: reading Parquet needs pyarrow; run pip install pyarrow.'
    ) from error
  with _readable(path), open(path, 'rb') as file:
    if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
      raise ValueError(
        f'{path} is a pointer of Git LFS, not the file; run git lfs pull.'
      )
  with _readable(path):
    file = pq.ParquetFile(
      path,
      pre_buffer=False,  # else a whole row group is held in memory
      buffer_size=_BUFFER_BYTES,
      page_checksum_verification=True,
    )
  with file:
    yield file


@contextlib.contextmanager
def _readable(path: pathlib.Path, place: str = '') -> Iterator[None]:
  """Turns what a damaged or absent file raises into one sentence."""
  import pyarrow as pa

  try:
    yield
  except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
    if isinstance(error, OSError) and error.strerror:
      raise ValueError(f'{path} cannot be read: {error.strerror}.') from error
    reason = ' '.join(str(error).split()).rstrip('.')
    raise ValueError(
      f'{path}{place} is damaged or no Parquet ({reason}); write or download '
      'it again.'
    ) from error


def _groups_text(ends: Sequence[int], rows: range) -> str:
  """Names the row groups in which some rows lie."""
  touched = [
    i
    for i, (start, end) in enumerate(itertools.pairwise([0, *ends]))
    if start < rows[-1] and rows[0] <= end
  ]
  if not touched:
    return ''
  if len(touched) == 1:
    return f', row group {touched[0]} (counted from 0),'
  return f', row groups {touched[0]} to {touched[-1]} (counted from 0),'
