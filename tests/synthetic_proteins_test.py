"""scripts/synthetic_proteins.py gives the same again, with what it planted."""

import gzip
import importlib
import pathlib
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / 'scripts'
NUM = 2_000


@pytest.fixture(scope='module')
def script():
  sys.path.insert(0, str(SCRIPTS))
  yield importlib.import_module('synthetic_proteins')
  sys.path.remove(str(SCRIPTS))


def write(script, folder, seed=0):
  """What was planted, the text of the file and its {description: letters}."""
  path = folder / f'{seed}.fasta.gz'
  planted = script.write_synthetic_fasta(path, NUM, seed)
  text = gzip.decompress(path.read_bytes()).decode()
  heads, bodies = zip(
    *(record.split('\n', 1) for record in text.split('>')[1:]), strict=True
  )
  return planted, text, dict(zip(heads, bodies, strict=True))


@pytest.fixture(scope='module')
def written(script, tmp_path_factory):
  return write(script, tmp_path_factory.mktemp('synthetic'))


def test_number_and_seed_decide_the_records(script, written, tmp_path):
  assert write(script, tmp_path)[:2] == written[:2]
  assert write(script, tmp_path, seed=1)[1] != written[1]


def test_as_many_records_and_residues_as_planted(written):
  planted, _, records = written
  letters = ''.join(records.values()).replace('\n', '')
  assert len(records) == planted.num_sequences == NUM
  assert len(letters) == planted.num_residues


def test_duplicates_are_those_planted(written):
  planted, _, records = written
  seen, repeats = set(), []
  for head, letters in records.items():
    if letters in seen and letters.strip():  # an odd record may be empty
      repeats.append(head)
    seen.add(letters)
  assert len(repeats) == planted.num_duplicates == NUM // 100
  assert all('seen before' in head for head in repeats)


def test_odd_records_are_those_planted(written):
  planted, _, records = written
  odd = [records[head] for head in records if 'with an oddity' in head]
  assert len(odd) == planted.num_odd == NUM // 100
  assert sum(not letters.strip() for letters in odd) == 2
