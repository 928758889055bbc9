"""UniProt's metalinks, read from a server and refused where they are wrong."""

import gzip
import hashlib
import http.server
import threading

import pytest

from protein_lm.datasets import download
from protein_lm.datasets.uniprot_release import (
  BASE_URL,
  COLLECTIONS,
  Release,
  find_release,
)

FASTA = gzip.compress(
  b'>sp|P1|A_HUMAN A OS=Homo sapiens OX=9606\nMKV\n', mtime=0
)
MD5 = hashlib.md5(FASTA).hexdigest()
SIZE = len(FASTA)
NAME = 'uniprot_sprot.fasta.gz'
FOLDER = '/current_release/knowledgebase/complete/'


def entry(name=NAME, size=SIZE, hashes=f'<hash type="md5">{MD5}</hash>'):
  return (
    f'<file name="{name}"><size>{size}</size><verification>{hashes}'
    '</verification><resources><url>ftp://host/a</url></resources></file>'
  )


def metalink(*entries, version='<version>2025_01</version>', head=''):
  return (
    f'<?xml version="1.0" encoding="UTF-8"?>{head}'
    '<metalink version="3.0" xmlns="http://www.metalinker.org/">'
    f'{version}<files>{"".join(entries)}</files></metalink>'
  )


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    body = self.server.files.get(self.path)
    self.send_response(200 if body is not None else 404)
    self.send_header('Content-Length', str(len(body or b'')))
    self.end_headers()
    self.wfile.write(body or b'')

  def log_message(self, *args):
    pass


@pytest.fixture(scope='module')
def server():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    server.handle_error = lambda *args: None  # of clients that hang up
    server.url = f'http://127.0.0.1:{server.server_port}/current_release'
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def find(server, monkeypatch):
  """Finds Swiss-Prot where the server has this metalink."""
  monkeypatch.setenv('no_proxy', '*')

  def find(text=None, **options):
    server.files = {FOLDER + NAME: FASTA}
    if text is not None:
      server.files[FOLDER + 'RELEASE.metalink'] = text.encode()
    return find_release('swissprot', server.url, **options)

  return find


def test_a_release_is_what_its_metalink_says(find, server):
  assert find(metalink(entry('LICENSE', 5), entry())) == Release(
    'swissprot',
    '2025_01',
    f'{server.url}/knowledgebase/complete/{NAME}',
    SIZE,
    f'md5:{MD5}',
  )


def test_a_release_can_be_fetched(find, tmp_path):
  found = find(metalink(entry()))
  path = download.fetch(found.url, tmp_path / 'a', found.checksum, found.size)
  assert path.read_bytes() == FASTA


@pytest.mark.parametrize('collection', COLLECTIONS)
def test_each_collection_has_its_own_folder(server, monkeypatch, collection):
  monkeypatch.setenv('no_proxy', '*')
  folder, _, name = f'/current_release/{COLLECTIONS[collection]}'.rpartition(
    '/'
  )
  text = metalink(entry(name, size=7))
  server.files = {f'{folder}/RELEASE.metalink': text.encode()}
  found = find_release(collection, server.url + '/')
  assert found.size == 7 and found.url.endswith(f'{folder}/{name}')


@pytest.mark.parametrize(
  'text, version',
  [
    ('<version> 2024_06 </version>', '2024_06'),
    ('<identity>UniProt release 2024_06</identity>', '2024_06'),
    ('<version>../../etc</version>', 'unknown'),
    ('', 'unknown'),
  ],
)
def test_the_version_is_found_where_it_stands(find, text, version):
  assert find(metalink(entry(), version=text)).version == version


def test_the_stronger_hash_is_taken(find):
  digest = 'AB' * 32
  hashes = f'<hash type="md5">{MD5}</hash><hash type="sha256">{digest}</hash>'
  found = find(metalink(entry(hashes=hashes)))
  assert found.checksum == f'sha256:{digest.lower()}'


def test_a_given_checksum_needs_no_metalink():
  checksum = f'md5:{MD5}'
  assert find_release('uniref50', checksum=checksum) == Release(
    'uniref50',
    'unknown',
    f'{BASE_URL}/uniref/uniref50/uniref50.fasta.gz',
    None,
    checksum,
  )


def test_a_missing_metalink_tells_the_way_out(find):
  with pytest.raises(
    ValueError, match='metalink does not exist; give the base_url .*checksum'
  ):
    find()


def test_an_unknown_collection_is_refused():
  with pytest.raises(ValueError, match="'uniref75' .* swissprot, trembl, uni"):
    find_release('uniref75')


@pytest.mark.parametrize(
  'text, reason',
  [
    (metalink(), f'no entry for {NAME}'),
    (metalink(entry(f'../{NAME}')), 'no entry'),
    (metalink(entry(), entry()), '2 entries'),
    (metalink(entry(size='')), "has '' bytes"),
    (metalink(entry(size=0)), "has '0' bytes"),
    (metalink(entry(size=-5)), "has '-5' bytes"),
    (metalink(entry(size=10**14)), 'has .* bytes'),
    (metalink(entry(size='9' * 5000)), 'has .9{40}. bytes'),
    (metalink(entry(hashes='')), 'no sound md5 or sha256'),
    (metalink(entry(hashes='<hash type="md5">x</hash>')), 'no sound md5'),
    (metalink(entry(hashes='<hash type="md5"/>')), 'no sound md5'),
    (metalink(entry(), head='<!DOCTYPE a []>'), 'declares a DOCTYPE'),
    (metalink(entry(), head='<!doctype a []>'), 'declares a DOCTYPE'),
    (metalink(entry())[:-3], 'is no XML'),
    ('<html>Log in</html>', 'is no metalink'),
    ('', 'is no XML'),
  ],
)
def test_a_metalink_that_cannot_be_trusted_is_refused(find, text, reason):
  with pytest.raises(ValueError, match=f'RELEASE.metalink .*{reason}.* mirror'):
    find(text)


def test_a_huge_metalink_is_refused(find):
  with pytest.raises(ValueError, match='holds more than 10,000,000 bytes'):
    find(metalink(entry()) + ' ' * 10**7)
