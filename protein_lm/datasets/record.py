"""A protein as the data sets hold it, and as the bytes of a tf.Example.

The bytes are what TFDS writes for the features of `builder.py`, made with its
own protocol buffers; they are a function of the protein alone.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable

from tensorflow_datasets.proto import tf_example_pb2

_HASH_MODULUS = 2**256


@dataclasses.dataclass(slots=True)
class Protein:
  """One sequence with what is known of it.

  Attributes:
    id: unique in its data set; the accession in UniProt's headers.
    sequence: letters of `vocab.RESIDUES`.
    description: free text, '' if unknown.
    organism: its scientific name, '' if unknown.
    taxonomy_id: of NCBI, 0 if unknown.
    cluster: name of the group that went to one split as a whole.
    nearest_train_share: the largest share of this protein's distinct 8-mers
      that a single protein of `train` has too; 1 in `train` itself, NaN where
      it was not measured (a sample is, in a large collection).
    envelopes: held-out domains as (start, end), from 1, both ends included;
      only proteins of the split `ood` have any.
    pure: in `ood`, whether it shares no family with a protein outside.
  """

  id: str
  sequence: str
  description: str = ''
  organism: str = ''
  taxonomy_id: int = 0
  cluster: str = ''
  nearest_train_share: float = math.nan
  envelopes: tuple[tuple[int, int], ...] = ()
  pure: bool = False


class Encoder:
  """Turns proteins into records, one after another.

  One message is filled again and again: that is three times as fast as a new
  one each time.
  """

  _TEXTS = ('id', 'sequence', 'description', 'organism', 'cluster')

  def __init__(self):
    self._example = tf_example_pb2.Example()
    feature = self._example.features.feature
    self._values = values = {}
    for name in self._TEXTS:
      values[name] = feature[name].bytes_list.value
      values[name].append(b'')
    for name in ('length', 'taxonomy_id', 'pure'):
      values[name] = feature[name].int64_list.value
      values[name].append(0)
    share = 'nearest_train_share'
    values[share] = feature[share].float_list.value
    values[share].append(0.0)
    feature['envelopes'].int64_list.SetInParent()  # present, if empty
    self._ends = feature['envelopes'].int64_list.value

  def to_bytes(self, protein: Protein) -> bytes:
    """Returns the record of a protein, a serialized tf.Example."""
    values = self._values
    for name in self._TEXTS:
      values[name][0] = getattr(protein, name).encode('utf-8', 'replace')
    values['length'][0] = len(protein.sequence)
    values['taxonomy_id'][0] = protein.taxonomy_id
    values['nearest_train_share'][0] = protein.nearest_train_share
    values['pure'][0] = int(protein.pure)
    self._ends[:] = [end for span in protein.envelopes for end in span]
    return self._example.SerializeToString(deterministic=True)


def from_bytes(record: bytes) -> Protein:
  """Returns the protein of a record.

  Raises:
    Exception: whatever protocol buffers raise for other bytes.
  """
  feature = tf_example_pb2.Example.FromString(record).features.feature

  def text(name):
    return feature[name].bytes_list.value[0].decode()

  ends = feature['envelopes'].int64_list.value
  protein = Protein(
    id=text('id'),
    sequence=text('sequence'),
    description=text('description'),
    organism=text('organism'),
    taxonomy_id=feature['taxonomy_id'].int64_list.value[0],
    cluster=text('cluster'),
    nearest_train_share=feature['nearest_train_share'].float_list.value[0],
    envelopes=tuple(zip(ends[::2], ends[1::2], strict=True)),
    pure=bool(feature['pure'].int64_list.value[0]),
  )
  length = feature['length'].int64_list.value[0]
  if length != len(protein.sequence):
    raise ValueError(f'{len(protein.sequence)} residues, not {length}')
  return protein


def hash_number(protein: Protein) -> int:
  """The sha256, as a number, of what a model sees and is told of a protein."""
  rest = f'{protein.envelopes}{protein.pure}' if protein.envelopes else ''
  text = f'{protein.id}\0{protein.sequence}\0{rest}'.encode()
  return int.from_bytes(hashlib.sha256(text).digest())


def hash_of_sum(numbers: Iterable[int]) -> str:
  """Hashes proteins as a set: the sum, mod 2^256, of `hash_number` of each."""
  return f'{sum(numbers) % _HASH_MODULUS:064x}'


def content_hash(proteins: Iterable[Protein]) -> str:
  """Hashes proteins, in whatever order they come."""
  return hash_of_sum(map(hash_number, proteins))
