"""A collection of UniProt, from a mirror on this machine to a data set."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import pathlib
import re
import threading

import pytest

from protein_lm import prepare
from protein_lm.datasets import download
from protein_lm.datasets.splits import SplitRule

FOLDER = '/current_release/knowledgebase/complete/'
NAME = 'uniprot_sprot.fasta.gz'


def metalink(body, version='2025_01'):
  return (
    '<?xml version="1.0"?><metalink version="3.0" '
    f'xmlns="http://www.metalinker.org/"><version>{version}</version><files>'
    f'<file name="{NAME}"><size>{len(body)}</size><verification>'
    f'<hash type="md5">{hashlib.md5(body).hexdigest()}</hash>'
    '</verification></file></files></metalink>'
  ).encode()


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves `server.files`; breaks off after `server.drops`, one a request."""

  def do_GET(self):
    server = self.server
    body = server.files.get(self.path)
    self.server.asked.append(self.path)
    if body is None:
      self.send_error(404)
      return
    first = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
    self.send_response(206 if first else 200)
    if first:
      span = f'bytes {first}-{len(body) - 1}/{len(body)}'
      self.send_header('Content-Range', span)
      server.resumed.append(first)
    self.send_header('Content-Length', str(len(body) - first))
    self.end_headers()
    is_fasta = self.path.endswith('.gz')
    last = server.drops.pop() if is_fasta and server.drops else len(body)
    self.wfile.write(body[first:last])

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def serving():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    server.handle_error = lambda *args: None  # of clients that hang up
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


@pytest.fixture(scope='module')
def body(make_families):
  lines = [
    f'>sp|{id_}|{id_}_HUMAN Protein {id_} OS=Homo sapiens OX=9606 PE=1 SV=1\n'
    f'{sequence}\n'
    for id_, sequence in make_families(30, 2).items()
  ]
  return gzip.compress(''.join(lines).encode(), mtime=0)


@pytest.fixture
def mirror(body, monkeypatch):
  """A server with a release."""
  monkeypatch.setenv('no_proxy', '*')
  quickly = functools.partial(download.fetch, sleep=lambda seconds: None)
  monkeypatch.setattr(download, 'fetch', quickly)
  with serving() as server:
    server.files = {
      FOLDER + NAME: body,
      FOLDER + 'RELEASE.metalink': metalink(body),
    }
    server.asked, server.drops, server.resumed = [], [], []
    server.url = f'http://127.0.0.1:{server.server_port}/current_release'
    yield server


@pytest.fixture
def swissprot(mirror, tmp_path):
  """Prepares Swiss-Prot from the mirror."""

  def swissprot(**options):
    return prepare.prepare(
      'uniprot/swissprot', tmp_path, base_url=mirror.url, **options
    )

  return swissprot


def test_a_release_is_prepared(swissprot, read_splits):
  builder = swissprot()
  assert re.fullmatch(
    r'uniprot/swissprot_2025_01_[0-9a-f]{12}/\d\.\d\.\d',
    builder.info.full_name,
  )
  found = read_splits(builder)
  assert sum(map(len, found.values())) == 60
  assert found['train']['f0_0']['taxonomy_id'] == 9606
  assert found['train']['f0_0']['description'] == b'Protein f0_0'
  assert found['train']['f0_0']['organism'] == b'Homo sapiens'


def test_a_prepared_release_needs_no_network(swissprot, mirror, tmp_path):
  first = swissprot()
  mirror.asked.clear()
  again = prepare.prepare('uniprot/swissprot', tmp_path)
  assert again.data_dir == first.data_dir and not mirror.asked


def test_a_release_split_otherwise_needs_no_network(
  swissprot, mirror, tmp_path
):
  plain = swissprot()
  rule = SplitRule(fractions=(0.5, 0.25, 0.25))
  first = swissprot(rule=rule)
  mirror.asked.clear()
  again = prepare.prepare('uniprot/swissprot', tmp_path, rule=rule)
  assert again.data_dir == first.data_dir != plain.data_dir
  assert not mirror.asked
  assert prepare.prepare('uniprot/swissprot', tmp_path).data_dir == (
    plain.data_dir
  )


def test_another_splitting_downloads_nothing_again(swissprot, mirror):
  swissprot()
  mirror.asked.clear()
  swissprot(rule=SplitRule(fractions=(0.5, 0.25, 0.25)))
  assert {*mirror.asked} == {FOLDER + 'RELEASE.metalink'}


def test_a_new_release_is_looked_up_when_asked_to(swissprot, mirror, body):
  old = swissprot()
  new = body + gzip.compress(b'>new\nMKVLAWYW\n', mtime=0)
  mirror.files[FOLDER + NAME] = new
  mirror.files[FOLDER + 'RELEASE.metalink'] = metalink(new, '2025_02')
  assert swissprot().data_dir == old.data_dir
  looked_up = swissprot(look_up=True)
  assert looked_up.builder_config.name.startswith('swissprot_2025_02_')
  assert looked_up.info.metadata['counts']['kept'] == 61
  assert swissprot().data_dir == looked_up.data_dir


def test_a_dropped_connection_is_resumed(swissprot, mirror, body):
  mirror.drops = [2_000, 1_000]  # taken from the end
  assert swissprot().info.metadata['counts']['kept'] == 60
  assert mirror.resumed == [1_000, 2_000]
  assert mirror.asked.count(FOLDER + NAME) == 3


def test_an_interrupted_download_goes_on_in_the_next_run(
  swissprot, mirror, monkeypatch
):
  fetch = download.fetch
  impatient = functools.partial(fetch, retries=0)
  monkeypatch.setattr(download, 'fetch', impatient)
  mirror.drops = [1_500, 1_500]
  with pytest.raises(ValueError, match='cannot be downloaded'):
    swissprot()
  monkeypatch.setattr(download, 'fetch', fetch)
  assert swissprot().is_prepared()
  assert 1_500 in mirror.resumed


def test_a_wrong_file_prepares_nothing(swissprot, mirror, body, tmp_path):
  damaged = bytearray(body)
  damaged[1_000] ^= 1
  mirror.files[FOLDER + NAME] = bytes(damaged)
  with pytest.raises(ValueError, match='md5'):
    swissprot()
  assert not list(tmp_path.rglob('dataset_info.json'))
  mirror.files[FOLDER + NAME] = body
  assert swissprot().is_prepared()


def test_a_checksum_stands_for_a_metalink(swissprot, mirror, body):
  del mirror.files[FOLDER + 'RELEASE.metalink']
  checksum = f'sha256:{hashlib.sha256(body).hexdigest()}'
  builder = swissprot(checksum=checksum)
  assert builder.builder_config.name == f'swissprot_unknown_{checksum[7:19]}'
  assert builder.info.metadata['counts']['kept'] == 60


def test_without_a_metalink_a_checksum_is_asked_for(swissprot, mirror):
  del mirror.files[FOLDER + 'RELEASE.metalink']
  with pytest.raises(ValueError, match='RELEASE.metalink does not exist'):
    swissprot()


def test_a_wrong_checksum_prepares_nothing(swissprot, tmp_path):
  with pytest.raises(ValueError, match='sha256'):
    swissprot(checksum='sha256:' + '0' * 64)
  assert not list(tmp_path.rglob('dataset_info.json'))


@pytest.mark.parametrize('source', ['uniprot', 'uniprot/', 'uniprot/uniref51'])
def test_other_collections_are_refused(source, tmp_path):
  with pytest.raises(ValueError, match='these are: uniprot/swissprot, '):
    prepare.prepare(source, tmp_path)


def test_nothing_is_left_of_the_parts(swissprot):
  folder = pathlib.Path(swissprot().data_dir)
  assert not [path for path in folder.iterdir() if path.is_dir()]


def test_a_mirror_may_be_named_by_its_root(mirror, tmp_path):
  root = mirror.url.removesuffix('/current_release')
  builder = prepare.prepare('uniprot/swissprot', tmp_path, base_url=root)
  assert builder.info.metadata['counts']['kept'] == 60
