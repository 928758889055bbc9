"""Records are those of TFDS, and nothing is lost in them."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from protein_lm.datasets import record

PROTEIN = record.Protein(
  id='P12345',
  sequence='MKVXU',
  description='β-Klotho',
  organism='Homo sapiens',
  taxonomy_id=9606,
  cluster='P1',
  nearest_train_share=0.25,
  envelopes=((1, 2), (4, 5)),
  pure=True,
)
FEATURES = tfds.features.FeaturesDict(
  {
    'id': tfds.features.Text(),
    'sequence': tfds.features.Text(),
    'length': np.int32,
    'description': tfds.features.Text(),
    'organism': tfds.features.Text(),
    'taxonomy_id': np.int32,
    'cluster': tfds.features.Text(),
    'nearest_train_share': np.float32,
    'envelopes': tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
    'pure': np.bool_,
  }
)


@pytest.mark.parametrize(
  'protein', [PROTEIN, record.Protein('a', 'M', nearest_train_share=1.0)]
)
def test_what_is_written_is_read(protein):
  data = record.Encoder().to_bytes(protein)
  assert record.from_bytes(data) == protein


def test_the_bytes_are_those_of_tfds():
  example = dataclasses.asdict(PROTEIN) | {'length': 5}
  example['envelopes'] = np.array(PROTEIN.envelopes, np.int32)
  by_tfds = FEATURES.serialize_example(FEATURES.encode_example(example))
  assert tf_example_pb2.Example.FromString(by_tfds) == (
    tf_example_pb2.Example.FromString(record.Encoder().to_bytes(PROTEIN))
  )


def test_nothing_of_a_record_is_left_in_the_next():
  encoder = record.Encoder()
  plain = record.Protein('a', 'M', nearest_train_share=1.0)
  before = encoder.to_bytes(plain)
  encoder.to_bytes(PROTEIN)
  assert encoder.to_bytes(plain) == before


def test_a_record_of_another_length_is_refused():
  example = tf_example_pb2.Example.FromString(
    record.Encoder().to_bytes(PROTEIN)
  )
  example.features.feature['length'].int64_list.value[0] = 6
  with pytest.raises(ValueError, match='5 residues, not 6'):
    record.from_bytes(example.SerializeToString())


def test_the_hash_is_of_a_set():
  other = dataclasses.replace(PROTEIN, id='b')
  hashes = {
    record.content_hash(proteins)
    for proteins in ([PROTEIN, other], [other, PROTEIN])
  }
  assert len(hashes) == 1
  assert record.content_hash([PROTEIN, PROTEIN]) not in hashes


@pytest.mark.parametrize(
  'changed',
  [{'id': 'Q'}, {'sequence': 'MK'}, {'envelopes': ((1, 3),)}, {'pure': False}],
)
def test_the_hash_changes_with_what_is_learnt(changed):
  other = dataclasses.replace(PROTEIN, **changed)
  assert record.content_hash([other]) != record.content_hash([PROTEIN])
