"""Families of synthetic proteins, and their FASTA files."""

import numpy as np
import pytest

LETTERS = list('ACDEFGHIKLMNPQRSTVWY')


def _random(rng, length: int) -> str:
  return ''.join(rng.choice(LETTERS, length))


def _family_members(num_families, num_members, length, seed):
  rng = np.random.default_rng(seed)
  for family in range(num_families):
    ancestor = _random(rng, length)
    for member in range(num_members):
      yield f'f{family}_{member}', ancestor[member:] + _random(rng, 4 + member)


@pytest.fixture(scope='session')
def make_families():
  """Makes {id: sequence}; members of family f, f<f>_<m>, share most 8-mers."""

  def make(num_families=40, num_members=3, *, length=60, seed=0):
    return dict(_family_members(num_families, num_members, length, seed))

  return make


@pytest.fixture(scope='session')
def write_fasta():
  """Writes {id: sequence} to a file; header(id) may say more than the id."""

  def write(path, sequences, header=lambda id_: id_):
    path.write_text(
      ''.join(f'>{header(id_)}\n{s}\n' for id_, s in sequences.items())
    )
    return path

  return write


@pytest.fixture(scope='session')
def read_splits():
  """Reads a prepared data set: {split: {id: record}}."""

  def read(builder):
    return {
      split: {
        record['id'].decode(): record
        for record in builder.as_data_source(split)
      }
      for split in builder.info.splits
    }

  return read
