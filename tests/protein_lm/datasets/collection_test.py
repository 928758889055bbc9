"""A collection in buckets on disk equals the plain rules in memory."""

import dataclasses

import numpy as np
import pytest

from protein_lm.datasets import collection, letters, runners
from protein_lm.datasets.collection import read_collection, read_proteins
from protein_lm.datasets.fasta_file import FastaFiles
from protein_lm.datasets.intake import Tally

LETTERS = np.array(list('ACDEFGHIKLMNPQRSTVWY'))


def plainly(texts):
  """The rules as a reader would write them: of each (id, sequence), in order,
  the first of equal sequences, and ids that nothing else has."""
  seen, kept = set(), []
  for id_, sequence in texts:
    if sequence not in seen:
      seen.add(sequence)
      kept.append((id_, sequence))
  originals, last, result = {id_ for id_, _ in kept}, {}, []
  for id_, sequence in kept:
    number = last.get(id_, 0) + 1
    while number > 1 and f'{id_}-{number}' in originals:
      number += 1
    last[id_] = number
    result.append((id_ if number == 1 else f'{id_}-{number}', sequence))
  return result


@pytest.fixture(scope='module')
def texts():
  """Sequences and ids of which many are met again."""
  rng = np.random.default_rng(0)
  sequences = [''.join(rng.choice(LETTERS, n)) for n in range(1, 61)]
  ids = ['a', 'a-2', 'a-4', 'a-2-2', 'b', 'b-02', 'b-2', 'c-', '-3', 'x-1']
  return [
    (str(rng.choice(ids)), sequences[rng.integers(60)]) for _ in range(300)
  ]


@pytest.fixture
def paths(texts, tmp_path):
  """The texts as three files."""
  paths = []
  for number in range(3):
    path = tmp_path / f'{number}.fasta'
    part = texts[100 * number : 100 * (number + 1)]
    path.write_text(''.join(f'>{id_} text\n{s}\n' for id_, s in part))
    paths.append(path)
  return tuple(paths)


def small(monkeypatch, block_bytes=200, bucket_bytes=1_000):
  monkeypatch.setattr(collection, '_BLOCK_BYTES', (block_bytes, block_bytes))
  monkeypatch.setattr(collection, '_BUCKET_BYTES', bucket_bytes)


@pytest.mark.parametrize(
  'block_bytes, bucket_bytes', [(10**6, 10**6), (200, 10**6), (90, 1_000)]
)
def test_what_is_kept_does_not_depend_on_blocks_and_buckets(
  texts, paths, monkeypatch, block_bytes, bucket_bytes
):
  small(monkeypatch, block_bytes, bucket_bytes)
  proteins = read_proteins(FastaFiles(paths), tally := Tally())
  assert [(p.id, p.sequence) for p in proteins] == plainly(texts)
  assert {p.description for p in proteins} == {'text'}
  assert tally.counts['records read'] == 300
  assert tally.counts['kept'] == len(proteins)
  assert tally.counts['duplicates dropped'] == 300 - len(proteins)


def test_many_partitions_of_ids_give_the_same(texts, paths, monkeypatch):
  small(monkeypatch)
  monkeypatch.setattr(collection, '_BUCKETS_PER_PARTITION', 3)
  proteins = read_proteins(FastaFiles(paths), Tally())
  assert [(p.id, p.sequence) for p in proteins] == plainly(texts)


def records(found):
  return [
    [dataclasses.astuple(p)[:5] for p in found.proteins(bucket)]
    for bucket in range(found.num_buckets)
  ]


def test_processes_and_one_process_give_the_same(paths, tmp_path, monkeypatch):
  small(monkeypatch)
  found = []
  processes = runners.Processes(2)
  for runner in (runners.InProcess(), processes):
    folder = tmp_path / f'parts-{len(found)}'
    folder.mkdir()
    tally = Tally()
    its = read_collection(
      FastaFiles(paths), letters.DEFAULT, folder, runner, tally
    )
    found.append((records(its), tally.counts, tally.told))
  processes.close()
  assert found[0] == found[1]
  assert len(found[0][0]) > 3 and found[0][1]['ids made distinct'] > 20


def test_the_order_in_a_bucket_is_that_of_the_sequences_hash(paths, tmp_path):
  found = read_collection(
    FastaFiles(paths), letters.DEFAULT, tmp_path, runners.InProcess(), Tally()
  )
  rows = found.rows(0)
  assert (np.diff(rows['digest_high'].astype(float)) > 0).all()
  assert rows['length'].tolist() == [len(p.sequence) for p in found.proteins(0)]
  assert found.num_residues == rows['length'].sum()


def test_symbols_can_be_read_as_x_or_refused(tmp_path, capsys):
  path = tmp_path / 'my.fasta'
  path.write_text('>a\nMK-V\nA7\n>b\nMKé\n>c\nMKV\n')
  source = FastaFiles((path,))
  policy = dataclasses.replace(letters.DEFAULT, symbols='X')
  proteins = read_proteins(source, tally := Tally(), policy)
  assert [p.sequence for p in proteins] == ['MKXVAX', 'MKX', 'MKV']
  assert tally.counts['symbols read as X'] == 3
  assert "my.fasta:2: '-' in record a, read as X" in capsys.readouterr().out
  policy = dataclasses.replace(letters.DEFAULT, symbols='refuse')
  with pytest.raises(
    ValueError, match="my.fasta:2: '-' in record a is no resi"
  ):
    read_proteins(source, Tally(), policy)


def test_lengths_can_be_bounded(tmp_path, capsys):
  path = tmp_path / 'my.fasta'
  path.write_text('>a\nM\n>b\nMKV\n>c\nMKVLA\n')
  policy = dataclasses.replace(letters.DEFAULT, min_len=2, max_len=4)
  (protein,) = read_proteins(FastaFiles((path,)), tally := Tally(), policy)
  assert protein.id == 'b'
  assert tally.counts['shorter than min_len skipped'] == 1
  assert tally.counts['longer than max_len skipped'] == 1
  assert 'my.fasta:5: 5 residues in record c' in capsys.readouterr().out


@pytest.mark.parametrize(
  'argument, value',
  [
    ('symbols', 'drop'),
    ('max_symbol_fraction', 1.5),
    ('min_len', 0),
    ('max_len', -1),
  ],
)
def test_a_policy_that_makes_no_sense_is_refused(argument, value):
  with pytest.raises(ValueError, match=f'letters.{argument}.*{value}'):
    letters.LetterPolicy(**{argument: value})
