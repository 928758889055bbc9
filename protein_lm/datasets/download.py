"""Downloads that go on where they stopped and are checked before use.

Bytes go to `<path>.part`, which becomes `path` only when its checksum is right:
a file of that name is whole. A broken connection costs what it had not yet
delivered, and so does a killed process.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import BinaryIO

MAX_TEXT_BYTES = 10_000_000
_PIECE_BYTES = 1 << 20
_MAX_PAUSE = 60  # seconds
_TOLD_EVERY = 15  # seconds
# Beside 5xx: request timeout, too early, too many requests.
_PASSING_CODES = (408, 425, 429)
_DIGITS = {'md5': 32, 'sha256': 64}
_CONTENT_RANGE = re.compile(r'bytes (\d+)-\d+/(\d+|\*)')


class NotFoundError(ValueError):
  """The server has no such file."""


class _RangeError(ValueError):
  """The server has no bytes from the offset on (416)."""


class _BrokenOffError(Exception):
  """The transfer failed in a way that may pass."""


_REFUSALS = {404: NotFoundError, 410: NotFoundError, 416: _RangeError}


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects to http and https, but never from https to http."""

  def redirect_request(self, request, file, code, message, headers, newurl):
    file.close()
    _check_scheme(newurl)
    if request.type == 'https' and not newurl.lower().startswith('https:'):
      raise ValueError(
        f'{request.full_url} redirects to {newurl}, which is not encrypted; '
        'give another address.'
      )
    return super().redirect_request(
      request, file, code, message, headers, newurl
    )


class _Patience:
  """Pauses between attempts, longer each time one has brought nothing."""

  def __init__(self, url, retries, sleep, say):
    self._url, self._retries = url, retries
    self._sleep, self._say = sleep, say
    self._failures = 0

  def pause(self, error: _BrokenOffError, has_progress: bool, way_out: str):
    """Waits, or gives up after more than `retries` failures in a row.

    Raises:
      ValueError: names the address, the last failure and `way_out`.
    """
    self._failures = 0 if has_progress else self._failures + 1
    if self._failures > self._retries:
      raise ValueError(
        f'{self._url} cannot be downloaded: {error}, {self._failures} times in '
        f'a row; {way_out}.'
      ) from error
    seconds = min(2**self._failures, _MAX_PAUSE)
    self._say(f'{self._url}: {error}; trying again in {seconds} s')
    self._sleep(seconds)


class _Meter:
  """Says every few seconds how far a download is."""

  def __init__(self, num_bytes: int, total: int | None, say):
    self._start, self._total, self._say = num_bytes, total, say
    self._began = self._told = time.monotonic()

  def show(self, num_bytes: int) -> None:
    """Says how far it is, given the bytes on disk, if it is time to."""
    now = time.monotonic()
    if now - self._told < _TOLD_EVERY:
      return
    self._told = now
    rate = max((num_bytes - self._start) / (now - self._began), 1)
    line = f'  {_size_text(num_bytes)} at {_size_text(rate)}/s'
    if self._total:
      from tqdm import tqdm

      left = tqdm.format_interval((self._total - num_bytes) / rate)
      line += f', {num_bytes / self._total:.1%}, {left} left'
    self._say(line)


def fetch(
  url: str,
  path: str | os.PathLike,
  checksum: str,
  size: int | None = None,
  *,
  retries: int = 5,
  timeout: float = 30.0,
  say: Callable[[str], None] = print,
  sleep: Callable[[float], None] = time.sleep,
) -> pathlib.Path:
  """Downloads a file, unless it is there already with the right checksum.

  Args:
    url: an http or https address.
    path: where the file goes; its folder is made. Until it is whole, its bytes
      are in `<path>.part`, from which a later call goes on.
    checksum: 'md5:' or 'sha256:' and the digest in hexadecimal digits.
    size: bytes, if known.
    retries: attempts in a row that may bring nothing, after the first.
    timeout: seconds without a byte after which a connection is given up.
    say: takes each line of progress.
    sleep: waits for a number of seconds.

  Returns:
    `path`.

  Raises:
    NotFoundError: the server has no such file (404, 410).
    ValueError: the address or checksum is malformed, the server refuses or
      stays silent, the file is not the expected one, or it cannot be stored.

  Example:
    fetch('https://host/a.gz', 'data/a.gz', 'md5:<32 digits>', 93_000_000)
  """
  path = pathlib.Path(path)
  _check_scheme(url)
  checksum = normal_checksum(checksum)
  algorithm = checksum.partition(':')[0]
  with _storing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      found = file_checksum(path, algorithm)
      if found == checksum:
        return path
      say(f'{path} has the checksum {found}, not {checksum}: replacing it')
    with _open_part(path) as part:
      patience = _Patience(url, retries, sleep, say)
      download = _Download(url, path, part, size, timeout, patience, say)
      download.run()
      found = file_checksum(part.name, algorithm)
      if found != checksum and download.is_joined:
        say(f'{url}: the joined parts have a wrong checksum: starting again')
        part.truncate(0)
        download.run()
        found = file_checksum(part.name, algorithm)
      if found != checksum:
        os.unlink(part.name)
        raise ValueError(
          f'{url} has the checksum {found}, not {checksum}; the file there has '
          'changed or is damaged, so give its present checksum or the address '
          'of another copy.'
        )
      os.replace(part.name, path)
      _sync_folder(path.parent)
  return path


def read_text(
  url: str,
  max_bytes: int = MAX_TEXT_BYTES,
  *,
  retries: int = 5,
  timeout: float = 30.0,
  say: Callable[[str], None] = print,
  sleep: Callable[[float], None] = time.sleep,
) -> str:
  """Returns a small UTF-8 file from the net.

  Args:
    url: an http or https address.
    max_bytes: the most it may hold.
    retries, timeout, say, sleep: as in `fetch`.

  Raises:
    NotFoundError: the server has no such file (404, 410).
    ValueError: the address is malformed, the server refuses or stays silent,
      or the file is larger or no UTF-8.
  """
  _check_scheme(url)
  patience = _Patience(url, retries, sleep, say)
  while True:
    try:
      content = _read_small(url, max_bytes, timeout)
      break
    except _BrokenOffError as error:
      patience.pause(error, False, 'try again later, or give another address')
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{url} is no UTF-8 text (byte {error.start}); is it the right address?'
    ) from error


def normal_checksum(checksum: str) -> str:
  """Returns a checksum in lower case.

  Raises:
    ValueError: it is not 'md5:' and 32, or 'sha256:' and 64 digits.
  """
  algorithm, _, digest = checksum.strip().lower().partition(':')
  num_digits = _DIGITS.get(algorithm, 0)
  if not num_digits or not re.fullmatch(f'[0-9a-f]{{{num_digits}}}', digest):
    raise ValueError(
      f'checksum = {checksum!r} must be "md5:" and 32, or "sha256:" and 64 '
      'hexadecimal digits.'
    )
  return f'{algorithm}:{digest}'


def file_checksum(path: str | os.PathLike, algorithm: str) -> str:
  """Returns '<algorithm>:<hex>' of a file's bytes."""
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(
      file, lambda: hashlib.new(algorithm, usedforsecurity=False)
    )
  return f'{algorithm}:{digest.hexdigest()}'


class _Download:
  """The transfer of one file to its open `.part`, in as few parts as it can.

  `is_joined` says whether the bytes are not of a single response.
  """

  def __init__(self, url, path, part, size, timeout, patience, say):
    self._url, self._path, self._part = url, path, part
    self._size, self._timeout = size, timeout
    self._patience, self._say = patience, say
    self.is_joined = False

  def run(self) -> None:
    """Receives until the file is whole, as far as its length tells."""
    self.is_joined = False
    furthest = self._length()
    place = f', going on from {_size_text(furthest)}' if furthest else ''
    self._say(f'downloading {self._url} to {self._path}{place}')
    while self._length() != self._size:
      try:
        self._receive()
        break
      except _BrokenOffError as error:
        # A server without Range starts again at 0: only new ground counts.
        self._patience.pause(
          error,
          self._length() > furthest,
          f'run this again to go on from the {self._length():,} bytes in '
          f'{self._part.name}, or put the file at {self._path} yourself',
        )
        furthest = max(furthest, self._length())
    else:
      self.is_joined = True
    self._part.flush()
    os.fsync(self._part.fileno())

  def _length(self) -> int:
    return os.fstat(self._part.fileno()).st_size

  def _receive(self) -> None:
    """Appends one response to the part.

    Raises:
      _BrokenOffError: it ended early; what came is kept.
      ValueError: the server refuses, or holds a file of another size.
    """
    if self._size is not None and self._length() > self._size:
      self._part.truncate(0)
    offset = self._length()
    headers = {'Range': f'bytes={offset}-'} if offset else {}
    try:
      response = _open(self._url, headers, self._timeout)
    except _RangeError:
      self.is_joined = True  # all there is; the checksum tells if it is right
      return
    with response:
      total = _total_bytes(response)
      self._check_total(total)
      if response.status == 206 and _first_byte(response) != offset:
        self._part.truncate(0)
        raise _BrokenOffError('it answered with another part of the file')
      if response.status != 206 and offset:
        self._say(f'{self._url}: the server cannot go on, starting at 0')
        self._part.truncate(0)
        offset = 0
      self.is_joined = offset > 0
      self._check_space(total, offset)
      self._append(response, offset, total)

  def _append(self, response, num_bytes: int, total: int | None) -> None:
    meter = _Meter(num_bytes, total, self._say)
    limit = self._size if total is None else total
    for piece in _pieces(
      response, None if limit is None else limit - num_bytes
    ):
      rest = memoryview(piece)
      while rest:  # an unbuffered write may stop short
        rest = rest[self._part.write(rest) :]
      num_bytes += len(piece)
      meter.show(num_bytes)
    if limit is not None and num_bytes < limit:
      raise _BrokenOffError(
        f'the connection ended at {num_bytes:,} of {limit:,} bytes'
      )

  def _check_total(self, total: int | None) -> None:
    # Before the part is touched: a login page must not replace it.
    if None not in (total, self._size) and total != self._size:
      raise ValueError(
        f'{self._url} holds {total:,} bytes, not {self._size:,}; the file '
        'there has changed or the address is wrong, so give its present size '
        'and checksum or the address of another copy.'
      )

  def _check_space(self, total: int | None, offset: int) -> None:
    missing = (total or self._size or 0) - offset
    free = shutil.disk_usage(self._path.parent).free
    if missing > free:
      raise OSError(
        errno.ENOSPC,
        f'{_size_text(missing)} are still to come and {_size_text(free)} are '
        'free on its disk',
      )


def _check_scheme(url: str) -> None:
  try:
    parts = urllib.parse.urlsplit(url)
    is_fine = parts.scheme in ('http', 'https') and bool(parts.hostname)
  except ValueError:  # of half an IPv6 address
    is_fine = False
  if not is_fine:
    raise ValueError(f'{url!r} is no address of the form https://host/file.')


@contextlib.contextmanager
def _network(url: str) -> Iterator[None]:
  """Sorts failures into those that may pass and those that will not."""
  try:
    yield
  except urllib.error.HTTPError as error:
    error.close()
    answer = ' '.join(f'answered {error.code} {error.reason}'.split())
    if error.code >= 500 or error.code in _PASSING_CODES:
      raise _BrokenOffError(f'the server {answer}') from error
    raise _REFUSALS.get(error.code, ValueError)(
      f'{url} {answer}; check the address, or give that of another copy.'
    ) from error
  except http.client.InvalidURL as error:
    raise ValueError(f'{url!r} is no address: {error}.') from error
  except (OSError, http.client.HTTPException) as error:
    cause = getattr(error, 'reason', error)
    if isinstance(cause, ssl.SSLCertVerificationError):
      raise ValueError(
        f'{url} cannot be trusted: {cause.verify_message}; check the clock and '
        'the certificates of this machine, or give another address.'
      ) from error
    reason = getattr(cause, 'strerror', None) or str(cause)
    raise _BrokenOffError(reason or type(cause).__name__) from error


def _open(url: str, headers: dict[str, str], timeout: float):
  headers = {'User-Agent': 'protein-lm', **headers}
  with _network(url):
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_SafeRedirects)
    return opener.open(request, timeout=timeout)


def _pieces(response, num_bytes: int | None) -> Iterator[bytes]:
  """Yields the bytes of a response as they come, at most `num_bytes`."""
  left = num_bytes
  while left is None or left > 0:
    with _network(response.url):
      # read1: what came before a connection breaks is not lost with it.
      piece = response.read1(min(_PIECE_BYTES, left or _PIECE_BYTES))
    if not piece:
      return
    if left is not None:
      left -= len(piece)
    yield piece


def _read_small(url: str, max_bytes: int, timeout: float) -> bytes:
  with _open(url, {}, timeout) as response:
    total = _total_bytes(response)
    if (total or 0) <= max_bytes:
      content = b''.join(_pieces(response, max_bytes + 1))
      if len(content) < (total or 0):
        raise _BrokenOffError(
          f'the connection ended at {len(content):,} of {total:,} bytes'
        )
      if len(content) <= max_bytes:
        return content
  raise ValueError(
    f'{url} holds more than {max_bytes:,} bytes; is it the right address?'
  )


def _first_byte(response) -> int | None:
  match = _CONTENT_RANGE.match(response.headers.get('Content-Range', ''))
  return int(match[1]) if match else None


def _total_bytes(response) -> int | None:
  """The bytes of the whole file, or None where the server does not say."""
  if response.status == 206:
    match = _CONTENT_RANGE.match(response.headers.get('Content-Range', ''))
    return int(match[2]) if match and match[2] != '*' else None
  return response.length


@contextlib.contextmanager
def _storing(path: pathlib.Path) -> Iterator[None]:
  """Turns what the disk raises into one sentence."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(
      f'{path} cannot be stored: {reason}; free some space or choose another '
      'place, then run this again.'
    ) from error


@contextlib.contextmanager
def _open_part(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens `<path>.part` for this process alone, to be appended to."""
  part = path.with_name(path.name + '.part')
  # Unbuffered, so that a full disk is told by the write that meets it.
  with open(part, 'ab', buffering=0) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
    except (BlockingIOError, FileNotFoundError):
      is_ours = False
    except OSError as error:  # a file system without locks
      if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        raise
      is_ours = True
    if not is_ours:
      raise ValueError(
        f'another process is downloading {path}; wait for it, or stop it.'
      )
    yield file


def _sync_folder(folder: pathlib.Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _size_text(num_bytes: float) -> str:
  from tqdm import tqdm

  return tqdm.format_sizeof(num_bytes, 'B', 1000)
