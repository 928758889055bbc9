"""The files of a checkpoint: hashes, the manifest that lists them, syncing.

Whatever is read here may be damaged or hostile: each function returns what it
has checked, or raises CheckpointError with the file's name.
"""

import hashlib
import json
import os
import pathlib
import re
import time
from typing import Any

FORMAT = 1
MANIFEST = 'manifest.json'
CONFIG = 'config.gin'
STATE = 'state'
# Far above any real one; stops a hostile manifest from filling the memory.
MAX_MANIFEST_BYTES = 64 * 2**20


# A file that changed less than so long ago is hashed again each time: another
# change could leave its size and its time, as coarse as 10 ms, as they are.
_SETTLED_NS = 2 * 10**9
# (device, inode, size, times of change) of files hashed by this process.
_hashed: dict[tuple[int, ...], str] = {}


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be written, read or trusted."""


class NotFoundError(CheckpointError):
  """There is no complete checkpoint (of this step)."""


class MismatchError(CheckpointError):
  """A good checkpoint of another architecture than the one asked for."""


def write_manifest(
  directory: pathlib.Path,
  step: int,
  metric: float | None,
  metadata: dict[str, Any],
) -> None:
  """Syncs and hashes every file of a checkpoint, then lists them."""
  files = {}
  for path in sorted(p for p in directory.rglob('*') if p.is_file()):
    digest, size = sync_and_hash(path)
    name = path.relative_to(directory).as_posix()
    files[name] = {'sha256': digest, 'size': size}
  text = manifest_text(
    {
      'format': FORMAT,
      'step': step,
      'metric': metric,
      'metadata': metadata,
      'files': files,
    }
  )
  (directory / MANIFEST).write_text(text, encoding='utf-8')
  sync_and_hash(directory / MANIFEST)
  for folder, _, _ in os.walk(directory, topdown=False):
    sync_directory(folder)


def read_manifest(directory: pathlib.Path, step: int) -> dict[str, Any]:
  """Returns a manifest whose own hash is right and whose names are safe."""
  path = directory / MANIFEST
  try:
    if path.stat().st_size > MAX_MANIFEST_BYTES:
      raise ValueError(f'it is larger than {MAX_MANIFEST_BYTES} bytes')
    text = path.read_bytes().decode('utf-8')
    content = json.loads(text)
    if not isinstance(content, dict):
      raise ValueError('it is not an object')
    content.pop('sha256', None)
    if manifest_text(content) != text:
      raise ValueError('it differs from its own sha256')
    _check_manifest(content, step)
  except (OSError, ValueError, RecursionError) as error:
    raise CheckpointError(f'{path} is damaged: {reason(error)}.') from error
  return content


def manifest_text(content: dict[str, Any]) -> str:
  """Returns the one text of a manifest; any flipped bit makes it another."""

  def text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)

  digest = hashlib.sha256(text(content).encode('utf-8')).hexdigest()
  return text({**content, 'sha256': digest}) + '\n'


def _check_manifest(content: dict[str, Any], step: int) -> None:
  if content.get('format') != FORMAT:
    raise ValueError(
      f'its format is {content.get("format")!r}, this version reads {FORMAT}'
    )
  if content.get('step') != step:
    raise ValueError(f'it is of step {content.get("step")!r}')
  metric = content.get('metric')
  if metric is not None and type(metric) not in (int, float):
    raise ValueError('its metric is not a number')
  files = content.get('files')
  if not isinstance(files, dict) or CONFIG not in files:
    raise ValueError(f'it does not list {CONFIG}')
  for name, entry in files.items():
    first, *rest = name.split('/')
    plain = not any(part in ('', '.', '..') or '\0' in part for part in rest)
    if name != CONFIG and not (first == STATE and rest and plain):
      raise ValueError(f'it names {name!r}, which no checkpoint holds')
    if not isinstance(entry, dict) or set(entry) != {'sha256', 'size'}:
      raise ValueError(f'its entry of {name} is not a sha256 and a size')


def check_files(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
  """Compares every file of a checkpoint with its manifest."""
  for name, entry in manifest['files'].items():
    check_file(directory / name, entry)


def check_file(path: pathlib.Path, entry: dict[str, Any]) -> None:
  """Compares a file with its entry; one unchanged since is not read again.

  Raises:
    CheckpointError: it is missing, a link, unreadable or different.
  """
  try:
    if path.is_symlink() or not path.is_file():
      raise CheckpointError(f'{path} is missing.')
    size = path.stat().st_size
    if size != entry['size']:
      raise CheckpointError(
        f'{path} has {size} bytes, its manifest says {entry["size"]}.'
      )
    with path.open('rb') as file:
      digest = _hash(file)
  except OSError as error:
    raise CheckpointError(f'cannot read {path}: {reason(error)}') from error
  if digest != entry['sha256']:
    raise CheckpointError(f'{path} differs from the sha256 in its manifest.')


def _hash(file: Any) -> str:
  status = os.fstat(file.fileno())
  changed = max(status.st_mtime_ns, status.st_ctime_ns)
  identity = (status.st_dev, status.st_ino, status.st_size)
  identity += (status.st_mtime_ns, status.st_ctime_ns)
  if identity in _hashed:
    return _hashed[identity]
  digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if time.time_ns() - changed > _SETTLED_NS:
    _hashed[identity] = digest
  return digest


def sync_and_hash(path: pathlib.Path) -> tuple[str, int]:
  """Returns sha256 and size of a file that is on the disk from now on.

  Its pages leave the cache, so that who reads it next reads the disk.
  """
  with path.open('rb') as file:
    os.fsync(file.fileno())
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    size = file.tell()
    if hasattr(os, 'posix_fadvise'):  # not on macOS
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest, size


def sync_directory(path: str | os.PathLike) -> None:
  descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def reason(error: Exception) -> str:
  """Returns what went wrong in a few words, without a traceback."""
  text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
  # Tensorstore wraps the number of the system's error in all it was doing.
  if code := re.search(r"os_error_code='(\d+)'", text):
    return os.strerror(int(code[1]))
  return text.strip().splitlines()[0][:300]
