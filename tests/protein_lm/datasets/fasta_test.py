"""A FASTA file as a data set: named by content, split by whole clusters."""

import gzip
import json
import os
import pathlib

import numpy as np
import pytest

from protein_lm import prepare
from protein_lm.datasets import clusters, file_builder
from protein_lm.datasets.split_rule import SplitRule
from protein_lm.proteins import load_proteins


@pytest.fixture
def path(tmp_path):
  """30 families of 3 relatives, and an empty record."""
  rng = np.random.default_rng(0)
  lines = ['>empty', '']
  for i in range(30):
    family = ''.join(rng.choice(list('ACDEFGHIKLMNPQRSTVWY'), 80))
    for j in range(3):
      lines += [
        f'>f{i}_{j} protein {j} OS=Yeast OX=1',
        family[j:] + 'MKVLAC'[: j + 1],
      ]
  path = tmp_path / 'my set.fasta'
  path.write_text('\n'.join(lines))
  return path


@pytest.fixture
def builder(path, tmp_path):
  return prepare.prepare(str(path), tmp_path / 'data')


def test_splits_hold_whole_clusters(builder):
  found = {}
  for split in builder.info.splits:
    for protein_id, cluster in zip(
      *_ids_and_clusters(builder, split), strict=True
    ):
      found.setdefault(cluster, set()).add((split, protein_id.split('_')[0]))
  assert len(found) == 30
  assert all(len(members) == 1 for members in found.values())
  assert set(builder.info.splits) == {'train', 'validation', 'test'}


def _ids_and_clusters(builder, split):
  proteins = load_proteins(builder, split)
  return proteins.ids, proteins.clusters


def test_records_keep_what_the_header_says(builder):
  source = builder.as_data_source('train')
  example = source[0]
  assert example['organism'] == b'Yeast'
  assert example['description'].startswith(b'protein ')
  assert example['envelopes'].shape == (0, 2) and not example['pure']


def test_counts_are_printed_and_stored(path, tmp_path, capsys):
  builder = prepare.prepare(str(path), tmp_path / 'data')
  out = capsys.readouterr().out
  assert '91 records read, 1 empty skipped, 0 with symbols skipped' in out
  assert builder.info.metadata['counts']['kept'] == 90
  assert builder.info.metadata['counts']['clusters'] == 30


def test_another_content_is_another_data_set(builder, path, tmp_path):
  path.write_text(path.read_text() + '\n>new\nMKVLAACDEFGHIKL\n')
  changed = prepare.prepare(str(path), tmp_path / 'data')
  assert changed.data_dir != builder.data_dir
  assert changed.info.metadata['counts']['kept'] == 91


def test_a_file_that_is_gone_leaves_its_prepared_copy(builder, path, tmp_path):
  path.unlink()
  again = prepare.prepare(str(path), tmp_path / 'data')
  assert again.data_dir == builder.data_dir
  with pytest.raises(ValueError, match='there is no such file'):
    prepare.prepare(str(tmp_path / 'other.fasta'), tmp_path / 'data')


def test_the_folder_is_private(builder, tmp_path):
  assert (tmp_path / 'data' / 'fasta').stat().st_mode & 0o777 == 0o700


def test_too_few_clusters_leave_splits_out(tmp_path, capsys):
  path = tmp_path / 'two.fa.gz'
  path.write_bytes(gzip.compress(b'>a\nMKVLAAAA\n>b\nWWWW\n'))
  builder = prepare.prepare(str(path), tmp_path)
  assert set(builder.info.splits) == {'train', 'validation'}
  assert "too few clusters for a split 'test'" in capsys.readouterr().out


def test_many_sequences_are_split_by_their_own_hash(
  path, tmp_path, monkeypatch
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', 10)
  builder = prepare.prepare(str(path), tmp_path / 'data')
  assert builder.info.metadata['counts']['clusters'] == 90


@pytest.mark.parametrize(
  'name, stem',
  [('a.fasta.gz', 'a'), ('my set.v2.FA', 'my_set_v2'), ('.fa', 'fasta')],
)
def test_config_names_are_plain(name, stem):
  assert file_builder.config_stem(pathlib.Path(name)) == stem


def test_a_pipe_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='pipe is a pipe, .* to a file first'):
    prepare.prepare(str(tmp_path / 'pipe'), tmp_path, kind='fasta')


@pytest.mark.parametrize('change', ['sha256', 'num_proteins', 'num_residues'])
def test_edited_metadata_is_refused(builder, path, tmp_path, change):
  file = pathlib.Path(builder.data_dir, 'metadata.json')
  metadata = json.loads(file.read_text())
  metadata['content']['test'][change] = 1
  file.write_text(json.dumps(metadata))
  with pytest.raises(ValueError, match='delete this folder'):
    prepare.prepare(str(path), tmp_path / 'data')
  with pytest.raises(ValueError, match='no whole data set'):
    prepare.prepare(str(builder.data_dir), tmp_path)


def test_a_file_that_is_gone_cannot_be_split_otherwise(builder, path, tmp_path):
  path.unlink()
  rule = SplitRule(fractions=(0.8, 0.1, 0.1))
  with pytest.raises(ValueError, match='there is no such file'):
    prepare.prepare(str(path), tmp_path / 'data', rule=rule)
