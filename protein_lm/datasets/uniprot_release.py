"""Where UniProt publishes its collections, and what they must hold.

Each folder of a release has a RELEASE.metalink (Metalink 3.0) that gives the
release and the size and checksum of every file. What it says is checked before
use, since it may come from any mirror.
"""

import dataclasses
import re
import xml.etree.ElementTree as ET

from protein_lm.datasets import download

BASE_URL = 'https://ftp.uniprot.org/pub/databases/uniprot/current_release'
MIRROR_URL = (
  'https://ftp.ebi.ac.uk/pub/databases/uniprot/current_release'  # the same
)
COLLECTIONS = {
  'swissprot': 'knowledgebase/complete/uniprot_sprot.fasta.gz',
  'trembl': 'knowledgebase/complete/uniprot_trembl.fasta.gz',
  'uniref50': 'uniref/uniref50/uniref50.fasta.gz',
  'uniref90': 'uniref/uniref90/uniref90.fasta.gz',
  'uniref100': 'uniref/uniref100/uniref100.fasta.gz',
}
METALINK = 'RELEASE.metalink'
MAX_METALINK_BYTES = 10_000_000
UNKNOWN_VERSION = 'unknown'
_MAX_FILE_BYTES = 10**13  # TrEMBL, the largest, has less than 10^11
_NAMESPACE = {'m': 'http://www.metalinker.org/'}
_HASH_TYPES = ('sha256', 'md5')  # the stronger first
_VERSION = re.compile(r'\d{4}_\d{2}')
_DECLARATION = re.compile('<!(?:DOCTYPE|ENTITY)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
  """One file of one release.

  Attributes:
    collection: a key of `COLLECTIONS`.
    version: such as '2025_01', or 'unknown'.
    url: of the gzip FASTA file.
    size: bytes, None if unknown.
    checksum: 'md5:<hex>' or 'sha256:<hex>'.
  """

  collection: str
  version: str
  url: str
  size: int | None
  checksum: str


def find_release(
  collection: str,
  base_url: str = BASE_URL,
  *,
  checksum: str | None = None,
  **options,
) -> Release:
  """Finds out what a collection's file must be, from the metalink beside it.

  Args:
    collection: a key of `COLLECTIONS`.
    base_url: the folder of a release, of UniProt or of a mirror.
    checksum: 'md5:<hex>' or 'sha256:<hex>' if known; then no metalink is read,
      and neither version nor size is known.
    **options: `retries`, `timeout`, `say`, `sleep` of `download.read_text`.

  Raises:
    ValueError: there is no such collection, or no metalink that can be trusted
      to name its file.

  Example:
    release = find_release('swissprot')
    download.fetch(release.url, path, release.checksum, release.size)
  """
  if collection not in COLLECTIONS:
    raise ValueError(
      f'{collection!r} is no collection of UniProt; these are: '
      f'{", ".join(COLLECTIONS)}.'
    )
  url = f'{base_url.rstrip("/")}/{COLLECTIONS[collection]}'
  if checksum is not None:
    checksum = download.normal_checksum(checksum)
    return Release(collection, UNKNOWN_VERSION, url, None, checksum)
  folder, _, name = url.rpartition('/')
  source = f'{folder}/{METALINK}'
  root = _parse(source, _read_metalink(source, options))
  return Release(collection, _version(root), url, *_entry(source, root, name))


def _way_out() -> str:
  return (
    f'give the base_url of a mirror that has it, such as {MIRROR_URL}, or the '
    "checksum of the file ('md5:...')."
  )


def _read_metalink(source: str, options: dict) -> str:
  try:
    return download.read_text(source, MAX_METALINK_BYTES, **options)
  except download.NotFoundError as error:
    raise download.NotFoundError(
      f'{source} does not exist; {_way_out()}'
    ) from error


def _parse(source: str, text: str) -> ET.Element:
  """Returns the root of a metalink, which may declare no entities."""
  if _DECLARATION.search(text):
    raise ValueError(
      f'{source} declares a DOCTYPE or ENTITY, which no metalink needs; '
      f'{_way_out()}'
    )
  try:
    root = ET.fromstring(text)
  except ET.ParseError as error:
    raise ValueError(f'{source} is no XML ({error}); {_way_out()}') from error
  if root.tag != f'{{{_NAMESPACE["m"]}}}metalink':
    raise ValueError(f'{source} is no metalink 3.0 document; {_way_out()}')
  return root


def _version(root: ET.Element) -> str:
  """The release, such as 2025_01, wherever the document tells it."""
  for tag in ('version', 'identity', 'description'):
    match = _VERSION.search(root.findtext(f'm:{tag}', '', _NAMESPACE))
    if match:
      return match[0]
  return UNKNOWN_VERSION


def _entry(source: str, root: ET.Element, name: str) -> tuple[int, str]:
  """Returns (size, checksum) of the only entry of that very name."""
  entries = [
    entry
    for entry in root.iterfind('m:files/m:file', _NAMESPACE)
    if entry.get('name') == name
  ]
  if len(entries) != 1:
    number = 'no entry' if not entries else f'{len(entries)} entries'
    raise ValueError(f'{source} has {number} for {name}; {_way_out()}')
  return _size(source, entries[0], name), _checksum(source, entries[0], name)


def _size(source: str, entry: ET.Element, name: str) -> int:
  text = entry.findtext('m:size', '', _NAMESPACE).strip()
  if re.fullmatch('[0-9]{1,14}', text) and 0 < int(text) <= _MAX_FILE_BYTES:
    return int(text)
  raise ValueError(
    f'{source} says that {name} has {text[:40]!r} bytes; {_way_out()}'
  )


def _checksum(source: str, entry: ET.Element, name: str) -> str:
  digests = {
    element.get('type', '').lower(): (element.text or '').strip()
    for element in entry.iterfind('m:verification/m:hash', _NAMESPACE)
  }
  for kind in _HASH_TYPES:
    if kind in digests:
      try:
        return download.normal_checksum(f'{kind}:{digests[kind]}')
      except ValueError:
        break
  raise ValueError(
    f'{source} has no sound md5 or sha256 for {name}; {_way_out()}'
  )
