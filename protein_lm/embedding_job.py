"""The unfinished part of a command that embeds a file: what makes it resumable.

Beside the output lies a hidden folder with a manifest, which says of what the
job is, and a file to which the arrays of each batch are added. A record of it
is whole or cut off with all that follows; what is done is never done again.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_HEADER = struct.Struct('<QI')  # bytes of the record, their crc32


class Job:
  """A folder that one process holds; see `open_job`.

  Attributes:
    folder: of the job.
    num_done: records.
  """

  def __init__(self, folder: pathlib.Path, file):
    self.folder, self._file = folder, file
    self._offsets = _whole_records(file)
    self.num_done = len(self._offsets) - 1
    file.truncate(self._offsets[-1])
    file.seek(self._offsets[-1])

  def append(self, arrays: Mapping[str, np.ndarray]) -> None:
    """Adds the arrays of a batch."""
    record = b''.join(np.ascontiguousarray(x).data for x in arrays.values())
    self._file.write(_HEADER.pack(len(record), zlib.crc32(record)))
    self._file.write(record)
    self._file.flush()
    self._offsets.append(self._file.tell())
    self.num_done += 1

  def read(self, layout) -> Iterator[dict[str, 'StoredArray']]:
    """Yields the arrays of each batch, of which rows are read when asked for.

    Args:
      layout: an iterable, for each batch, of name -> (shape, dtype) as they
        were added.
    """
    for start, arrays in zip(self._offsets, layout, strict=False):
      start += _HEADER.size
      found = {}
      for name, (shape, dtype) in arrays.items():
        found[name] = StoredArray(self._file, start, shape[1], dtype)
        start += shape[0] * found[name].row_bytes
      yield found

  def finish(self, path: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a file of the folder in its place, and removes the folder."""
    os.replace(path, target)
    shutil.rmtree(self.folder)


@dataclasses.dataclass(frozen=True)
class StoredArray:
  """A matrix in a file.

  Attributes:
    file: that is open.
    start: its first byte there.
    width: of its rows.
    dtype: of its numbers.
  """

  file: Any
  start: int
  width: int
  dtype: str

  @property
  def row_bytes(self) -> int:
    """Bytes of a row."""
    return self.width * np.dtype(self.dtype).itemsize

  def __getitem__(self, where) -> np.ndarray:
    """A row, or the rows of a slice, from the file."""
    is_row = not isinstance(where, slice)
    first, last = (where, where + 1) if is_row else (where.start, where.stop)
    content = os.pread(
      self.file.fileno(),
      (last - first) * self.row_bytes,
      self.start + first * self.row_bytes,
    )
    rows = np.frombuffer(content, self.dtype).reshape(-1, self.width)
    return rows[0] if is_row else rows


def folder_of(out: pathlib.Path) -> pathlib.Path:
  """Where the job of an output lies."""
  return out.parent / f'.{out.name}.partial'


@contextlib.contextmanager
def open_job(out: pathlib.Path, manifest: dict, afresh: bool) -> Iterator[Job]:
  """Starts the job of an output, or goes on with it.

  Args:
    out: path of the output.
    manifest: all that the arrays depend on, of strings and numbers.
    afresh: if what is there has another manifest, throw it away.

  What has not done anything leaves nothing behind.

  Raises:
    ValueError: another process is at it, or what is there has another
      manifest.
  """
  folder = folder_of(out)
  _check(folder, manifest, afresh)
  folder.mkdir(exist_ok=True)
  with open(folder / 'batches', 'a+b') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f'another process is writing {out}; wait for it or choose another name.'
      ) from None
    except OSError:
      pass  # a file system without locks
    if not _is_of(folder, manifest):
      file.truncate(0)
      partial = folder / 'manifest.json.new'
      partial.write_text(json.dumps(manifest, indent=2), encoding='utf-8')
      os.replace(partial, folder / 'manifest.json')
    job = Job(folder, file)
    try:
      yield job
    except BaseException:
      if not job.num_done:
        shutil.rmtree(folder)
      raise


def _manifest(folder):
  try:
    return json.loads((folder / 'manifest.json').read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None  # it was stopped before it began


def _is_of(folder, manifest):
  return _manifest(folder) == json.loads(json.dumps(manifest))


def _check(folder, manifest, afresh):
  found = _manifest(folder)
  if afresh or found is None or _is_of(folder, manifest):
    return
  manifest = json.loads(json.dumps(manifest))
  other = [name for name in manifest if found.get(name) != manifest[name]]
  raise ValueError(
    f'{folder} holds the beginning of this output with another '
    f'{", ".join(other)}; run that command again to finish it, or give '
    '--overwrite to start afresh.'
  )


def _whole_records(file):
  """Where each whole record of a file begins, and where the last one ends."""
  offsets = [0]
  file.seek(0)
  while len(header := file.read(_HEADER.size)) == _HEADER.size:
    size, crc = _HEADER.unpack(header)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if size > left or zlib.crc32(file.read(size)) != crc:
      break
    offsets.append(file.tell())
  return offsets
