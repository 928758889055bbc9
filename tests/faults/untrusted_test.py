"""A configuration found in a folder says where data is read, not written."""

import pathlib

import numpy as np
import pytest

from protein_lm import config, data, prepare


@pytest.fixture
def fasta(tmp_path):
  generator = np.random.default_rng(0)
  letters = list('ACDEFGHIKLMNPQRSTVWY')
  path = tmp_path / 'my.fasta'
  path.write_text(
    ''.join(
      f'>P{i}\n{"".join(generator.choice(letters, 30))}\n' for i in range(40)
    )
  )
  return path


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'default'))
  config.register()
  config.clear()
  yield
  config.clear()


def files_in(folder):
  return sorted(pathlib.Path(folder).rglob('*'))


def test_data_is_not_prepared_where_only_a_found_config_says(tmp_path, fasta):
  elsewhere = tmp_path / 'elsewhere'
  config.parse_text(
    f"data.source = '{fasta}'\ndata.data_dir = '{elsewhere}'", trusted=False
  )
  with pytest.raises(ValueError, match='data.data_dir = .*elsewhere'):
    data.open_data(tmp_path / 'run')
  assert not elsewhere.exists()
  # What the message says is the way out.
  config.parse((), [f"data.data_dir = '{elsewhere}'"])
  assert data.open_data(tmp_path / 'run').splits
  assert files_in(elsewhere)


def test_data_that_is_prepared_there_is_read(tmp_path, fasta):
  elsewhere = tmp_path / 'elsewhere'
  prepare.prepare(str(fasta), elsewhere)
  before = files_in(elsewhere)
  config.parse_text(
    f"data.source = '{fasta}'\ndata.data_dir = '{elsewhere}'", trusted=False
  )
  assert data.open_data(tmp_path / 'run').splits
  assert files_in(elsewhere) == before


@pytest.mark.parametrize('folder', ['run/mine', 'default/mine', None])
def test_the_own_folders_may_be_written_to(tmp_path, fasta, folder):
  text = f"data.source = '{fasta}'\n"
  if folder:
    text += f"data.data_dir = '{tmp_path / folder}'\n"
  config.parse_text(text, trusted=False)
  assert data.open_data(tmp_path / 'run').splits
  assert files_in(tmp_path / (folder or 'run/data'))


def test_a_link_out_of_the_run_is_not_followed(tmp_path, fasta):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir(mode=0o755)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'data').symlink_to(elsewhere)
  config.parse_text(f"data.source = '{fasta}'", trusted=False)
  with pytest.raises(ValueError, match='is not prepared in'):
    data.open_data(tmp_path / 'run')
  assert not files_in(elsewhere)
  assert elsewhere.stat().st_mode & 0o777 == 0o755


def test_who_vouches_is_forgotten_with_the_bindings():
  config.parse((), ["data.data_dir = 'a'"])
  assert config.vouches_for('data.data_dir')
  config.parse_text("data.data_dir = 'b'", trusted=False)
  assert not config.vouches_for('data.data_dir')
  config.parse((), ["data.data_dir = 'c'"])
  assert config.vouches_for('data.data_dir')
  assert not config.vouches_for('data.source')
  config.clear()
  assert config.vouches_for('data.source')
