"""One split of a prepared data set, in memory.

Axes: P proteins, T all residues of all proteins (or all tokens).
"""

import dataclasses

import numpy as np

from protein_lm import vocab


@dataclasses.dataclass(frozen=True)
class Proteins:
  """The proteins of a split, their residues one after another.

  Attributes:
    ids: [P] names.
    residues: [T] uint8, ids of residues; protein p has
      `residues[offsets[p]:offsets[p + 1]]`.
    offsets: [P + 1] int64.
    held_out: [T] bool, whether a residue lies in a held-out domain.
    pure: [P] bool, whether a protein shares no family with one outside `ood`.
    clusters: [P] names of the 8-mer clusters.
  """

  ids: list[str]
  residues: np.ndarray
  offsets: np.ndarray
  held_out: np.ndarray
  pure: np.ndarray
  clusters: list[str]

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def lengths(self) -> np.ndarray:
    """[P] residues of each protein."""
    return np.diff(self.offsets)


def from_sequences(sequences: dict[str, str]) -> Proteins:
  """Makes Proteins of id -> sequence, held out nowhere."""
  encoded = [vocab.encode(sequence) for sequence in sequences.values()]
  residues_T = np.concatenate([np.zeros(0, np.uint8), *encoded])
  return Proteins(
    ids=list(sequences),
    residues=residues_T,
    offsets=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    held_out=np.zeros(len(residues_T), bool),
    pure=np.zeros(len(encoded), bool),
    clusters=list(sequences),
  )


def with_ends(proteins: Proteins) -> tuple[np.ndarray, np.ndarray]:
  """Returns flat tokens with BOS and EOS, [T] uint8, and offsets, [P + 1]."""
  starts = proteins.offsets + 2 * np.arange(len(proteins) + 1)
  tokens_T = np.empty(starts[-1], np.uint8)
  is_residue_T = np.ones(starts[-1], bool)
  for place, token_id in (
    (starts[:-1], vocab.BOS_ID),
    (starts[1:] - 1, vocab.EOS_ID),
  ):
    tokens_T[place] = token_id
    is_residue_T[place] = False
  tokens_T[is_residue_T] = proteins.residues
  return tokens_T, starts


def load_proteins(builder, split: str) -> Proteins:
  """Reads a split of a prepared data set, and checks it against its hash.

  Args:
    builder: as `prepare.prepare` returns it.
    split: one of its splits.

  Raises:
    ValueError: no such split, or a file is missing, damaged or changed.
  """
  from protein_lm.datasets.builder import content_hash, to_protein

  content = builder.info.metadata['content']
  if split not in content:
    raise ValueError(
      f'{builder.info.full_name} has no split {split!r}; it has '
      f'{", ".join(content)}.'
    )
  members = []
  info = builder.info.splits[split]
  for path, size in zip(info.filepaths, info.shard_lengths, strict=True):
    for number, raw in enumerate(_read_shard(path, size, builder)):
      try:
        example = builder.info.features.deserialize_example_np(raw)
        members.append(to_protein(example))
      except Exception as error:
        raise _damaged(f'{path}, record {number}', error, builder) from error
  if content_hash(members) != content[split]['sha256']:
    raise _damaged(
      builder.data_dir,
      f'the proteins of split {split!r} are not those that were prepared',
      builder,
    )
  return _flatten(members)


def _read_shard(path, size: int, builder) -> list[bytes]:
  """Reads all records of one ArrayRecord file."""
  from array_record.python import array_record_module

  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
      records = reader.read_all()
    finally:
      reader.close()
  except (RuntimeError, IndexError) as error:
    raise _damaged(path, error, builder) from error
  if len(records) != size:
    raise _damaged(path, f'{len(records)} records, not {size}', builder)
  return records


def _damaged(where, why, builder) -> ValueError:
  return ValueError(
    f'{where} cannot be read as it was prepared ({str(why)[:200]}); delete '
    f'{builder.data_dir} and prepare again.'
  )


def _flatten(members: list) -> Proteins:
  """Lays proteins one after another and marks held-out residues."""
  proteins = from_sequences({member.id: member.sequence for member in members})
  for index, member in enumerate(members):
    proteins.pure[index] = member.pure
    first = proteins.offsets[index]
    for start, end in member.envelopes:
      proteins.held_out[first + start - 1 : first + end] = True
  clusters = [member.cluster for member in members]
  return dataclasses.replace(proteins, clusters=clusters)
