"""Where the wild type of a table of variants comes from."""

import pathlib

from protein_lm import fasta_records, vocab
from protein_lm.mutation_table import ENDINGS, read_cells, stem


class WildTypes:
  """Wild types by the name of a table, as the user gave them.

  Example:
    WildTypes('wt.fasta').of('dms/BLAT_ECOLX.csv')
  """

  def __init__(self, given: str | None):
    """Reads them.

    Args:
      given: a sequence; a FASTA file, of one protein or of one for each table,
        whose id is the table's name without ending; a CSV such as ProteinGym's
        reference file, with DMS_id or DMS_filename, and target_seq; or None.

    Raises:
      ValueError: it is none of these.
    """
    self._given, self._by_name, self._only = given, {}, None
    if given is None:
      return
    if not pathlib.Path(given).expanduser().is_file():
      self._only = _sequence(given)
      return
    path = pathlib.Path(given).expanduser()
    read = _reference if path.name.endswith(ENDINGS) else _proteins
    self._by_name = read(path)
    if len(self._by_name) == 1 and read is _proteins:
      (self._only,) = self._by_name.values()

  def of(self, path) -> str | None:
    """The wild type of a table; None if none was given.

    Raises:
      ValueError: wild types were given, and not that of this table.
    """
    if self._given is None or self._only is not None:
      return self._only
    name = stem(path)
    if name not in self._by_name:
      raise ValueError(
        f'{self._given} holds {len(self._by_name):,} wild types and none named '
        f'{name!r}, which {path} needs.'
      )
    return self._by_name[name]


def _sequence(given):
  try:
    if not given:
      raise ValueError('it is empty')
    vocab.encode(given)
  except ValueError as error:
    raise ValueError(
      f'--wild_type is neither a file nor a sequence, got {given[:40]!r}: '
      f'{error}'
    ) from error
  return given


def _proteins(path):
  found = {}
  for id_, sequence in fasta_records.read(path):
    if found.setdefault(id_, sequence) != sequence:
      raise ValueError(f'{path} holds two wild types named {id_!r}.')
  return found


def _reference(path):
  rows = read_cells(path)
  line, header = next(rows, (1, []))
  names = [name.strip() for name in header]
  name = next((x for x in ('DMS_id', 'DMS_filename') if x in names), None)
  if name is None or 'target_seq' not in names:
    raise ValueError(
      f'{path}:{line} must name the columns DMS_id or DMS_filename, and '
      'target_seq.'
    )
  found = {}
  for line, cells in rows:
    sequence = cells[names.index('target_seq')].strip()
    try:
      vocab.encode(sequence)
    except ValueError as error:
      raise ValueError(f'{path}:{line} target_seq: {error}') from error
    found[stem(cells[names.index(name)].strip())] = sequence
  return found
