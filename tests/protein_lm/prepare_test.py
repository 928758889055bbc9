"""Preparing: the command, the names, folders, and who else is at it."""

import os
import pathlib
import subprocess
import sys
import threading

import pytest

from protein_lm import prepare


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'my.fasta'
  path.write_text('>a\nMKVLA\n>b\nWWWWW\n>c\nGGGGG\n')
  return path


def run_command(*args):
  command = [sys.executable, '-m', 'protein_lm.prepare', *args]
  return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_the_command_prints_counts_and_sizes(path, tmp_path):
  done = run_command(f'--fasta={path}', f'--data_dir={tmp_path}')
  assert done.returncode == 0 and done.stderr == ''
  assert '3 records read' in done.stdout
  assert 'train              1 proteins             5 residues' in done.stdout


def test_the_command_fails_with_one_sentence():
  done = run_command('--dataset=human_swisprot')
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr.count('\n') == 1
  assert "did you mean 'human_swissprot'?" in done.stderr


def test_preparing_again_changes_nothing(path, tmp_path, capsys):
  first = prepare.prepare(str(path), tmp_path)
  files = {
    f: f.stat().st_mtime_ns for f in pathlib.Path(first.data_dir).iterdir()
  }
  capsys.readouterr()
  second = prepare.prepare(str(path), tmp_path)
  assert capsys.readouterr().out == ''
  assert files == {f: f.stat().st_mtime_ns for f in files}
  assert prepare.describe(first) == prepare.describe(second)


def test_an_unknown_name_gives_the_nearest():
  with pytest.raises(ValueError, match="data.source.*mean 'human_swissprot'"):
    prepare.prepare('swissprot_human')


@pytest.mark.parametrize('source', ['no.fasta', '/no/where/x.fa.gz', 'NO.FAA'])
def test_an_absent_file_is_told(source, tmp_path):
  with pytest.raises(ValueError, match='no such file'):
    prepare.prepare(source, tmp_path)


def test_a_folder_is_no_file(tmp_path):
  with pytest.raises(ValueError, match='is a folder; name a FASTA file'):
    prepare.prepare(str(tmp_path), tmp_path)


def test_the_name_fasta_alone_is_not_enough(tmp_path):
  with pytest.raises(ValueError, match="data.source = 'my.fasta.gz'"):
    prepare.prepare('fasta', tmp_path)


def test_an_existing_file_needs_no_suffix(path, tmp_path):
  bare = path.rename(tmp_path / 'proteins')
  assert prepare.prepare(str(bare), tmp_path).is_prepared()


def test_an_unusable_data_dir_is_named(path, tmp_path):
  with pytest.raises(ValueError, match='my.fasta/sub.*--data_dir'):
    prepare.prepare(str(path), path / 'sub')


def test_leftovers_of_an_interrupted_run_are_removed(path, tmp_path):
  builder = prepare.make_builder(str(path), tmp_path)
  leftover = pathlib.Path(builder.data_dir).parent / 'incomplete.ABC_1.0.0'
  leftover.mkdir(parents=True)
  (leftover / 'x.array_record').write_bytes(b'half')
  prepare.prepare(str(path), tmp_path)
  assert not leftover.exists()


def test_a_failed_reading_leaves_no_data_set(path, tmp_path):
  path.write_text('>a\nM-K\n')
  for _ in range(2):
    with pytest.raises(ValueError, match='1 of 1 records'):
      prepare.prepare(str(path), tmp_path)


def test_two_at_once_prepare_once(path, tmp_path, capsys):
  prepared = []
  threads = [
    threading.Thread(
      target=lambda: prepared.append(prepare.prepare(str(path), tmp_path))
    )
    for _ in range(3)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len({builder.data_dir for builder in prepared}) == 1
  assert len(prepared) == 3
  assert capsys.readouterr().out.count('3 records read') == 1


def test_the_default_data_dir_is_that_of_tfds(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/some/where')
  assert prepare.default_data_dir() == pathlib.Path('/some/where')
  monkeypatch.delenv('TFDS_DATA_DIR')
  home = os.path.expanduser('~/tensorflow_datasets')
  assert prepare.default_data_dir() == pathlib.Path(home)
