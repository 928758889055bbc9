"""UniProt's collections, downloaded from where it publishes them.

    swissprot trembl uniref50 uniref90 uniref100

The file is verified by the checksum of its release and kept beside the prepared
data, so an interrupted download goes on where it stopped. A prepared release is
used without a look at the network.
"""

import pathlib

import tensorflow_datasets as tfds

from protein_lm.datasets import builder, download, letters, split_rule
from protein_lm.datasets import uniprot_release as releases
from protein_lm.datasets.fasta_file import FastaFiles

_HASH_DIGITS = 12
# Where the folder of a release is, from what may be given as a mirror.
_FOLDERS = ('', '/current_release', '/pub/databases/uniprot/current_release')


class Uniprot(builder.ProteinBuilder):
  """A collection of UniProt.

  Args:
    collection: a key of `uniprot_release.COLLECTIONS`.
    data_dir: where the download and the prepared copy live.
    base_url: the folder of the release, UniProt's own if None.
    checksum: 'md5:...' or 'sha256:...' of the file, for a place without a
      RELEASE.metalink.
    rule, policy: for splits and letters; the gin-configured ones if None.
    look_up: asks for the release that is current there, even if another one is
      prepared.
  """

  DESCRIPTION = 'A collection of UniProt.'
  HOMEPAGE = 'https://www.uniprot.org'
  LICENSE = 'CC BY 4.0, UniProt Consortium.'

  def __init__(
    self,
    *,
    collection: str,
    data_dir,
    base_url: str | None = None,
    checksum: str | None = None,
    rule=None,
    policy=None,
    look_up: bool = False,
    config=None,
    version=None,
  ):
    rule = rule or split_rule.SplitRule()
    policy = policy or letters.LetterPolicy()
    if collection not in releases.COLLECTIONS:
      raise ValueError(
        f'{collection!r} is no collection of UniProt; these are: '
        f'{", ".join(f"uniprot/{name}" for name in releases.COLLECTIONS)}.'
      )
    self._release, folder = None, pathlib.Path(data_dir)
    asked = rule.identity(), repr(policy)
    defaults = split_rule.DEFAULT.identity(), repr(letters.DEFAULT)
    own = ''
    if asked != defaults:
      own = f'_{split_rule.text_hash(repr(asked))[:_HASH_DIGITS]}_own'
    if config is None and not look_up:
      config = self._newest_prepared(folder, collection, own)
    if config is None:
      base_url = base_url or releases.BASE_URL
      self._release = _find_release(collection, base_url, checksum)
      config = _make_config(self._release, own)
    self._folder = folder / 'downloads' / self.name
    super().__init__(
      rule=rule,
      policy=policy,
      config=config,
      data_dir=data_dir,
      version=version,
    )

  def _newest_prepared(self, folder, collection, own):
    """Returns the config of the newest prepared release, if there is one."""
    prepared = sorted(
      path.name
      for path in (folder / self.name).glob(f'{collection}_*{own}')
      if (path / str(self.VERSION) / 'dataset_info.json').is_file()
      and (own or not path.name.endswith('_own'))
    )
    return tfds.core.BuilderConfig(name=prepared[-1]) if prepared else None

  def make_source(self) -> FastaFiles:
    release = self._release
    name = f'{_release_name(release)}.fasta.gz'  # however it is split
    path = download.fetch(
      release.url, self._folder / name, release.checksum, release.size
    )
    return FastaFiles((path,))


def _find_release(collection, base_url: str, checksum):
  """Finds a release in its folder, or where a server keeps that folder."""
  absent = None
  for folder in _FOLDERS:
    try:
      return releases.find_release(
        collection, base_url.rstrip('/') + folder, checksum=checksum
      )
    except download.NotFoundError as error:
      absent = absent or error
  raise absent


def _release_name(release) -> str:
  digest = release.checksum.partition(':')[2][:_HASH_DIGITS]
  return f'{release.collection}_{release.version}_{digest}'


def _make_config(release, own):
  """Names a release by its version and content, and by how it is split."""
  return tfds.core.BuilderConfig(
    name=f'{_release_name(release)}{own}',
    description=f'UniProt {release.collection}, release {release.version}.',
  )
