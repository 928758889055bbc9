"""Downloads from a real server that drops, refuses, redirects and lies."""

import gzip
import hashlib
import http.server
import io
import pathlib
import random
import resource
import threading
import time
import urllib.request

import pytest

from protein_lm.datasets import download
from protein_lm.datasets.download import NotFoundError, fetch, read_text

PATH = '/current_release/uniref/uniref50/uniref50.fasta.gz'
BODY = gzip.compress(random.Random(0).randbytes(30_000), mtime=0)
MD5 = 'md5:' + hashlib.md5(BODY).hexdigest()
SHA256 = 'sha256:' + hashlib.sha256(BODY).hexdigest()
N = len(BODY)


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves `server.files`, after the answers in `server.answers`."""

  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    self.close_connection = True
    self.server.ranges.append(self.headers.get('Range'))
    answers = self.server.answers
    (answers.pop(0) if answers else serve)(self)

  def head(self, status, length=None, **headers):
    self.send_response(status)
    if length is not None:
      self.send_header('Content-Length', str(length))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()

  def log_message(self, *args):
    pass


def serve(handler, drop_after=None):
  """Answers as a good server does, or breaks off after some bytes."""
  body = handler.server.files.get(handler.path)
  if body is None:
    return handler.head(404, 0)
  offset = int((handler.headers.get('Range') or 'bytes=0-')[6:-1])
  if offset >= len(body) > 0:
    return handler.head(416, 0, Content_Range=f'bytes */{len(body)}')
  rest = body[offset:]
  end = f'bytes {offset}-{len(body) - 1}/{len(body)}'
  if offset:
    handler.head(206, len(rest), Content_Range=end)
  else:
    handler.head(200, len(rest))
  handler.wfile.write(rest[:drop_after])


def drop(num_bytes):
  return lambda handler: serve(handler, num_bytes)


def status(code, **headers):
  return lambda handler: handler.head(code, 0, **headers)


def whole(num_bytes=None, body=BODY, length=N):
  """Ignores Range, and may send less or other than it says."""

  def answer(handler):
    handler.head(200, length)
    handler.wfile.write(body[:num_bytes])

  return answer


def hang_up(handler):
  handler.connection.close()


def stall(handler):
  handler.head(200, N)
  handler.wfile.write(BODY[:100])
  time.sleep(0.5)


def chunked(handler, last=b'0\r\n\r\n'):
  handler.head(200, Transfer_Encoding='chunked')
  for start in range(0, N, 10_000):
    piece = BODY[start : start + 10_000]
    handler.wfile.write(b'%x\r\n%b\r\n' % (len(piece), piece))
  handler.wfile.write(last)


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    server.handle_error = lambda *args: None
    server.files, server.answers, server.ranges = {PATH: BODY}, [], []
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def get(server, tmp_path):
  """Fetches the file; `get.pauses` are the seconds it would have waited."""

  def get(*answers, checksum=MD5, **options):
    server.answers = list(answers)
    path = tmp_path / 'raw' / 'a.gz'
    options = {'say': get.lines.append, 'sleep': get.pauses.append, **options}
    return fetch(server.url + PATH, path, checksum, **options)

  get.lines, get.pauses = [], []
  get.path = tmp_path / 'raw' / 'a.gz'
  get.part = tmp_path / 'raw' / 'a.gz.part'
  get.path.parent.mkdir()
  return get


def is_whole(get):
  return get.path.read_bytes() == BODY and not get.part.exists()


@pytest.mark.parametrize('checksum', [MD5, SHA256, MD5.upper()])
@pytest.mark.parametrize('size', [None, N])
def test_a_file_is_stored_whole(get, checksum, size):
  assert get(checksum=checksum, size=size) == get.path
  assert is_whole(get) and not get.pauses


def test_a_file_that_is_there_is_not_asked_for(get, server):
  get.path.write_bytes(BODY)
  assert get() == get.path and not server.ranges


def test_a_file_with_another_checksum_is_replaced(get):
  get.path.write_bytes(b'of an older release')
  get()
  assert is_whole(get) and 'replacing' in get.lines[0]


def test_a_part_is_gone_on_from(get, server):
  get.part.write_bytes(BODY[:1000])
  get()
  assert is_whole(get) and server.ranges == ['bytes=1000-']


@pytest.mark.parametrize('size, ranges', [(None, [f'bytes={N}-']), (N, [])])
def test_a_whole_part_is_not_loaded_again(get, server, size, ranges):
  get.part.write_bytes(BODY)
  get(size=size)
  assert is_whole(get) and server.ranges == ranges


@pytest.mark.parametrize('size', [None, N])
def test_a_part_that_is_too_long_is_dropped(get, server, size):
  get.part.write_bytes(BODY + b'more')
  get(size=size)
  assert is_whole(get) and server.ranges[-1] is None


def test_a_server_without_range_starts_again(get):
  get.part.write_bytes(BODY[:1000])
  get(whole())
  assert is_whole(get)


def test_a_wrong_range_starts_again(get, server):
  get.part.write_bytes(BODY[:1000])
  get(status(206, Content_Range=f'bytes 5-9/{N}'))
  assert is_whole(get) and server.ranges == ['bytes=1000-', None]


def test_dropped_connections_go_on_and_do_not_count(get, server):
  get(*[drop(1000)] * 9, retries=1)
  assert is_whole(get) and get.pauses == [1] * 9
  assert server.ranges[1:3] == ['bytes=1000-', 'bytes=2000-']


def test_a_lost_length_is_made_good_by_the_size(get):
  def without_length(handler):
    handler.head(200)
    handler.wfile.write(BODY[:2000])

  get(without_length, size=N)
  assert is_whole(get)


@pytest.mark.parametrize('size', [None, N])
def test_a_chunked_body_is_read(get, size):
  get(chunked, size=size)
  assert is_whole(get)


def test_a_chunked_body_cut_short_is_gone_on_with(get, server):
  get(lambda handler: chunked(handler, last=b'ff\r\nab'), checksum=MD5)
  assert is_whole(get) and server.ranges[1] == f'bytes={N + 2}-'


@pytest.mark.parametrize('answer', [status(500), status(503), status(429)])
def test_a_server_in_trouble_is_asked_again_after_growing_pauses(get, answer):
  get(*[answer] * 4)
  assert is_whole(get) and get.pauses == [2, 4, 8, 16]


@pytest.mark.parametrize('answer', [hang_up, whole(0), drop(0)])
def test_silence_is_given_up_after_the_retries(get, answer):
  get.part.write_bytes(BODY[:10])
  with pytest.raises(ValueError, match='3 times in a row; run this again') as e:
    get(drop(1000), *[answer] * 9, retries=2)
  assert PATH in str(e.value) and get.pauses == [1, 2, 4]


def test_the_part_outlives_a_failure(get):
  with pytest.raises(ValueError, match='from the 1,000 bytes in .*a.gz.part'):
    get(drop(1000), *[status(500)] * 9, retries=0)
  get()
  assert is_whole(get)


def test_a_server_that_only_repeats_itself_is_given_up(get):
  with pytest.raises(ValueError, match='ended at 500 of .* 3 times in a row'):
    get(*[whole(500)] * 9, retries=2)


def test_a_stalled_connection_is_broken_off(get, server):
  get(stall, timeout=0.1)
  assert is_whole(get) and server.ranges[1] == 'bytes=100-'


def test_a_closed_port_is_given_up(get, server):
  with pytest.raises(ValueError, match='Connection refused, 2 times in a row'):
    fetch(
      'http://127.0.0.1:1/a', get.path, MD5, retries=1, sleep=lambda _: None
    )


@pytest.mark.parametrize(
  'code, kind',
  [(403, ValueError), (404, NotFoundError), (410, NotFoundError)],
)
def test_a_refusal_is_final(get, code, kind):
  with pytest.raises(kind, match=f'answered {code} .*another copy'):
    get(status(code))
  assert not get.pauses


def test_a_wrong_checksum_removes_the_part(get, server):
  server.files[PATH] = b'x' * N
  wrong = 'md5:' + hashlib.md5(b'x' * N).hexdigest()
  with pytest.raises(ValueError, match=f'{wrong}, not {MD5}') as error:
    get(size=N)
  assert server.url + PATH in str(error.value)
  assert not get.part.exists() and not get.path.exists()
  assert len(server.ranges) == 1


def test_a_wrong_part_costs_one_fresh_download(get, server):
  get.part.write_bytes(b'x' * 1000)
  get()
  assert is_whole(get) and server.ranges == ['bytes=1000-', None]


def test_a_fresh_download_after_a_wrong_part_is_the_last(get, server):
  get.part.write_bytes(b'y' * 1000)
  server.files[PATH] = b'x' * N
  with pytest.raises(ValueError, match='not md5'):
    get()
  assert len(server.ranges) == 2 and not get.part.exists()


def test_another_size_is_told_before_the_part_is_touched(get):
  get.part.write_bytes(BODY[:1000])
  with pytest.raises(ValueError, match=f'holds 9 bytes, not {N:,}'):
    get(whole(body=b'log in!!!', length=9), size=N)
  assert get.part.read_bytes() == BODY[:1000]


def test_a_body_longer_than_its_size_is_not_stored(get):
  def endless(handler):
    handler.head(200)
    handler.wfile.write(BODY + b'x' * 100_000)

  get(endless, size=N)
  assert is_whole(get)


def test_redirects_are_followed_with_the_range(get, server):
  get.part.write_bytes(BODY[:1000])
  get(status(302, Location=PATH))
  assert is_whole(get) and server.ranges == ['bytes=1000-'] * 2


@pytest.mark.parametrize('target', ['file:///etc/passwd', 'ftp://host/a'])
def test_redirects_elsewhere_are_refused(get, target):
  with pytest.raises(ValueError, match=r'ftp://host/a|not allowed'):
    get(status(302, Location=target))
  assert not get.pauses


def test_a_redirect_in_a_circle_is_refused(get):
  with pytest.raises(ValueError, match='answered 302'):
    get(*[status(302, Location=PATH)] * 20)


def test_a_redirect_may_not_drop_encryption():
  request = urllib.request.Request('https://host/a')
  with pytest.raises(ValueError, match='http://host/a, which is not encrypted'):
    download._SafeRedirects().redirect_request(
      request, io.BytesIO(), 302, 'Found', {}, 'http://host/a'
    )


@pytest.mark.parametrize(
  'url',
  ['file:///etc/passwd', 'ftp://host/a', '/a', 'data:,x', 'http:', 'http://[a']
  + ['https://host:x/a', 'http://host/a b'],
)
def test_other_addresses_are_refused(url, tmp_path):
  with pytest.raises(ValueError, match='is no address'):
    fetch(url, tmp_path / 'a', MD5)


@pytest.mark.parametrize('checksum', ['', 'md5:', 'sha1:' + '0' * 40, MD5[4:]])
def test_a_malformed_checksum_is_refused(get, checksum):
  with pytest.raises(ValueError, match='must be "md5:" and 32'):
    get(checksum=checksum)


def test_a_full_disk_names_the_path(get):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
  try:
    with pytest.raises(ValueError, match='a.gz cannot be stored: File too'):
      get()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert get.part.stat().st_size == 10_000
  get()
  assert is_whole(get)


def test_too_little_space_is_told_before_anything_is_loaded(get):
  with pytest.raises(ValueError, match='a.gz cannot be stored: .* to come'):
    get(whole(length=10**18))
  assert get.part.stat().st_size == 0


def test_a_path_below_a_file_is_refused(server, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=r'file/a cannot be stored'):
    fetch(server.url + PATH, tmp_path / 'file' / 'a', MD5)


def test_two_downloads_do_not_share_a_part(get):
  with (
    download._open_part(get.path),
    pytest.raises(ValueError, match='another process is downloading'),
  ):
    get()


def test_progress_is_told_now_and_then(get, monkeypatch):
  monkeypatch.setattr(download, '_TOLD_EVERY', 0)
  get()
  assert '100.0%' in get.lines[-1] and '/s' in get.lines[-1]


def test_a_text_is_read(server):
  server.files['/a'] = '\ufeffhé'.encode()
  assert read_text(server.url + '/a') == 'hé'


def test_a_text_is_asked_for_again(server):
  server.files['/a'] = b'text'
  server.answers = [status(500), drop(1), hang_up]
  pauses = []
  text = read_text(server.url + '/a', say=lambda _: None, sleep=pauses.append)
  assert text == 'text' and pauses == [2, 4, 8]


@pytest.mark.parametrize('answer', [serve, chunked])
def test_a_large_text_is_refused(server, answer):
  server.answers = [answer]
  with pytest.raises(ValueError, match='holds more than 100 bytes'):
    read_text(server.url + PATH, max_bytes=100)


def test_a_text_that_is_none_is_refused(server):
  with pytest.raises(ValueError, match='is no UTF-8 text'):
    read_text(server.url + PATH)


def test_a_missing_text_is_told_apart(server):
  with pytest.raises(NotFoundError, match='/b answered 404'):
    read_text(server.url + '/b')


def test_a_relative_path_is_accepted(server, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert fetch(server.url + PATH, 'a.gz', MD5) == pathlib.Path('a.gz')
