"""Preparing: the command, the names, folders, and who else is at it."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import gin
import numpy as np
import pytest
from absl import flags

from protein_lm import cli, prepare
from protein_lm.datasets.splits import SplitRule
from protein_lm.proteins import load_proteins


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


# --- the flags, read in this process


@pytest.fixture(scope='module')
def flag_names():
  """Defines the flags of the command for the length of this module."""
  before = set(flags.FLAGS)
  prepare._define_flags()
  cli.define_gin_flags()
  names = set(flags.FLAGS) - before
  yield names
  for name in names:
    delattr(flags.FLAGS, name)


@pytest.fixture
def command(flag_names, tmp_path, capsys):
  """Runs the command with its data in tmp_path/data; returns what it prints."""

  def command(*args):
    for name in flag_names:
      flags.FLAGS[name].unparse()
    flags.FLAGS(['prepare', f'--data_dir={tmp_path}/data', *args])
    capsys.readouterr()
    prepare.prepare_from_flags([])
    return capsys.readouterr().out

  yield command
  flags.FLAGS.unparse_flags()
  gin.clear_config()


@pytest.fixture
def random_fasta(tmp_path):
  """Writes `size` unrelated sequences, the first of them always the same."""

  def write(name, size=30, prefix='p', first=0):
    path = tmp_path / name
    lines = []
    for i in range(first, first + size):
      rng = np.random.default_rng(i)
      sequence = ''.join(rng.choice(list('ACDEFGHIKLMNPQRSTVWY'), 40))
      lines.append(f'>{prefix}{i}\n{sequence}\n')
    path.parent.mkdir(exist_ok=True)
    path.write_text(''.join(lines))
    return path

  return write


def printed_source(out):
  """The folder that is printed as data.source."""
  (line,) = [line for line in out.splitlines() if 'data.source = ' in line]
  return line.partition(' = ')[2].strip("'")


def all_ids(builder):
  return {
    id_
    for split in builder.info.splits
    for id_ in load_proteins(builder, split).ids
  }


def test_a_report_is_written_beside_the_data(command, random_fasta):
  out = command(f'--fasta={random_fasta("a.fasta")}', '--report')
  page = pathlib.Path(printed_source(out), 'report.html')
  assert f'report: {page}' in out
  assert page.read_text().lower().startswith('<!doctype html>')


def test_a_report_can_be_had_of_a_prepared_data_set(command, random_fasta):
  path = random_fasta('a.fasta')
  source = printed_source(command(f'--fasta={path}'))
  assert not pathlib.Path(source, 'report.html').exists()
  command(f'--fasta={path}', '--report')
  assert pathlib.Path(source, 'report.html').is_file()


@pytest.mark.parametrize(
  'args, message',
  [
    ([], '--dataset is required, one of human_swissprot'),
    (['--dataset=fasta'], '--fasta=my.fasta.gz'),
    (['--dataset=parquet'], '--parquet=my.parquet'),
    (['--dataset=parquet', '--fasta=a'], '--fasta goes with --dataset=fasta'),
    (['--dataset=fasta', '--parquet=a'], '--parquet goes with --dataset=parq'),
    (['--fasta=a', '--parquet=b'], 'cannot both be given'),
    (['--fasta=no.fasta'], '--fasta=no.fasta: there is no such file'),
    (['--parquet=no'], '--parquet=no: there is no such file'),
    (['--fasta=HERE', '--sequence_column=x'], '--sequence_column goes with'),
    (['--fasta=HERE', '--mirror=http://x'], '--mirror and --checksum go with'),
    (['--fasta=HERE', '--checksum=md5:0'], '--mirror and --checksum go with'),
    (['--fasta=HERE', '--split_fractions=0.9,x,0'], 'must be three numbers'),
    (['--fasta=HERE', '--split_fractions=0.9,0.1'], 'must be three shares'),
    (['--fasta=HERE', '--max_cluster_fraction=2'], 'max_cluster_fraction must'),
    (['--fasta=HERE', '--num_processes=-1'], '--num_processes must be at'),
    (['--fasta=HERE', '--clusters=no.tsv'], 'no.tsv cannot be read'),
    (
      ['--fasta=HERE', '--split_ids=test=HERE', '--split_organisms=test=1'],
      'cannot both be given',
    ),
    (
      ['--dataset=human_swissprot', '--split_fractions=0.8,0.1,0.1'],
      'has its own splits',
    ),
    (['--dataset=uniprot'], 'these are: uniprot/swissprot'),
  ],
)
def test_flags_that_contradict_are_refused(command, path, args, message):
  args = [arg.replace('HERE', str(path)) for arg in args]
  with pytest.raises(ValueError, match=message):
    command(*args)


@pytest.mark.parametrize('name', ['uniprot_sprot.fasta', 'uniprot', 'fasta'])
def test_a_file_may_be_called_as_a_data_set_is(
  command, random_fasta, tmp_path, monkeypatch, name
):
  monkeypatch.chdir(tmp_path)
  random_fasta(name)
  assert '30 kept' in command(f'--fasta={name}')


def test_a_folder_may_be_called_as_a_data_set_is(
  command, random_fasta, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  random_fasta('uniprot/sprot.fasta')
  assert '30 kept' in command('--fasta=uniprot/s*.fasta')


def test_flags_make_the_splits(command, random_fasta, tmp_path):
  path, ids = random_fasta('a.fasta'), tmp_path / 'ids.txt'
  ids.write_text('p0\np1\n')
  out = command(f'--fasta={path}', f'--split_ids=test={ids}')
  assert 'train             28 proteins' in out
  assert 'test               2 proteins' in out
  out = command(f'--fasta={path}', '--split_fractions=0.5,0,0.5')
  assert 'validation ' not in out.partition('data.source')[0].splitlines()[-2]


# --- several files


def test_files_of_a_pattern_are_one_data_set(command, random_fasta, tmp_path):
  random_fasta('in/a.fasta', 20)
  random_fasta('in/b.fasta', 20, first=15)  # five of them are in a.fasta too
  random_fasta('in/c.fa', 20, first=40)  # not of the pattern
  out = command(f'--fasta={tmp_path}/in/*.fasta')
  assert '40 records read' in out and '5 duplicates dropped' in out
  builder = prepare.prepare(printed_source(out))
  assert all_ids(builder) == {f'p{i}' for i in range(35)}


def test_ids_of_several_files_are_made_distinct(command, tmp_path):
  for name, sequence in (('a', 'MKVLAW'), ('b', 'WWWWWW'), ('c', 'YYYYYY')):
    (tmp_path / f'{name}.fasta').write_text(f'>x\n{sequence}\n')
  out = command(*(f'--fasta={tmp_path}/{name}.fasta' for name in 'bca'))
  assert f'{tmp_path}/c.fasta:1: id x again, now x-2' in out
  builder = prepare.prepare(printed_source(out))
  sequence_of = {
    record['id'].decode(): record['sequence']
    for split in builder.info.splits
    for record in builder.as_data_source(split)
  }
  assert sequence_of == {'x': b'WWWWWW', 'x-2': b'YYYYYY', 'x-3': b'MKVLAW'}


def test_a_changed_file_of_several_is_another_data_set(
  command, random_fasta, tmp_path
):
  random_fasta('in/a.fasta'), random_fasta('in/b.fasta', first=30)
  first = printed_source(command(f'--fasta={tmp_path}/in/*'))
  assert printed_source(command(f'--fasta={tmp_path}/in/*')) == first
  random_fasta('in/b.fasta', first=31)
  assert printed_source(command(f'--fasta={tmp_path}/in/*')) != first


# --- data.source = the printed folder


@pytest.fixture
def prepared(path, tmp_path):
  return pathlib.Path(prepare.prepare(str(path), tmp_path / 'data').data_dir)


def test_a_prepared_folder_is_a_source(prepared):
  builder = prepare.prepare(str(prepared), '/no/where')
  assert str(builder.data_dir) == str(prepared)
  assert all_ids(builder) == {'a', 'b', 'c'}


def test_a_prepared_folder_can_be_moved(prepared, tmp_path):
  moved = prepared.rename(tmp_path / 'elsewhere')
  assert all_ids(prepare.prepare(str(moved))) == {'a', 'b', 'c'}


def test_a_prepared_folder_takes_no_rule(prepared):
  with pytest.raises(ValueError, match=r'prepared already and takes no .*rule'):
    prepare.prepare(str(prepared), rule=SplitRule())


@pytest.mark.parametrize('text', ['', '{', '{"name": 3}'])
def test_a_damaged_folder_is_refused(prepared, text):
  (prepared / 'dataset_info.json').write_text(text)
  with pytest.raises(ValueError, match='prepare it again'):
    prepare.prepare(str(prepared))


@pytest.mark.parametrize('name', ['metadata.json', 'features.json'])
def test_a_folder_that_lacks_a_file_is_refused(prepared, name):
  (prepared / name).unlink()
  with pytest.raises(ValueError, match='prepare it again'):
    prepare.prepare(str(prepared))


def test_a_lost_shard_is_named(prepared):
  (shard,) = prepared.glob('*train.array_record*')
  shard.unlink()
  with pytest.raises(ValueError, match=f'{shard.name}.*prepare again'):
    load_proteins(prepare.prepare(str(prepared)), 'train')


def test_a_folder_of_an_older_version_is_refused(prepared):
  info = prepared / 'dataset_info.json'
  info.write_text(
    json.dumps(json.loads(info.read_text()) | {'version': '1.0.0'})
  )
  with pytest.raises(ValueError, match='not prepared by this version'):
    prepare.prepare(str(prepared))


def test_a_damaged_copy_is_not_prepared_over(prepared, path, tmp_path):
  (prepared / 'metadata.json').write_text('{')
  with pytest.raises(ValueError, match='delete this folder and prepare again'):
    prepare.prepare(str(path), tmp_path / 'data')


# --- gin


@pytest.mark.parametrize(
  'binding',
  [
    'letters.min_len = 2',
    "letters.symbols = 'X'",
    'splits.fractions = (0.8, 0.1, 0.1)',
    'splits.max_cluster_fraction = 0.5',
  ],
)
def test_bindings_make_another_data_set(command, path, binding):
  plain = printed_source(command(f'--fasta={path}'))
  bound = printed_source(
    command(f'--fasta={path}', f'--gin_bindings={binding}')
  )
  assert bound != plain
  gin.clear_config()
  assert printed_source(command(f'--fasta={path}')) == plain


def test_a_binding_that_says_the_default_changes_nothing(command, path):
  plain = printed_source(command(f'--fasta={path}'))
  bound = command(f'--fasta={path}', '--gin_bindings=letters.min_len = 1')
  assert printed_source(bound) == plain


def test_bindings_say_what_is_read(command, path):
  path.write_text('>a\nM\n>b\nM-K\n>c\nWWW\n')
  out = command(
    f'--fasta={path}',
    "--gin_bindings=letters.symbols = 'X'",
    '--gin_bindings=letters.min_len = 2',
  )
  assert '1 shorter than min_len skipped' in out and '2 kept' in out
  records = {
    record['sequence']
    for split in ('train', 'validation')
    for record in prepare.prepare(printed_source(out)).as_data_source(split)
  }
  assert records == {b'MXK', b'WWW'}


@pytest.mark.parametrize('name', ['human_swissprot', 'human_proteome'])
@pytest.mark.parametrize(
  'binding', ['letters.min_len = 2', 'splits.fractions = (0.8, 0.1, 0.1)']
)
def test_human_data_sets_refuse_bindings(command, name, binding):
  with pytest.raises(ValueError, match=f'{name} has its own splits and letter'):
    command(f'--dataset={name}', f'--gin_bindings={binding}')
