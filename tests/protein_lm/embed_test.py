"""The command embed around a fake model: files, going on, refusals."""

import os
import signal
import types

import h5py
import numpy as np
import pyarrow.parquet
import pytest
from absl import flags

from protein_lm import cli, embed, embedder, embedding_file, loading, vocab
from protein_lm.embedding_job import folder_of

LETTERS = list(vocab.STANDARD_RESIDUES)
LENGTHS = (5, 70, 1, 20, 9, 33)
SEQUENCES = {
  f'P{n}': ''.join(np.random.default_rng(n).choice(LETTERS, n)) for n in LENGTHS
}
ALL = ('mean', 'max', 'last', 'bos', 'per_tok')


def vectors_of(sequence):
  """What the fake makes of residues: their ids, and these squared."""
  ids = vocab.encode(sequence).astype(np.float32)
  return np.stack([ids, ids**2], axis=1)


def fake_forward(graphdef, layers, weights, tokens_BL, segment_ids_BL):
  x_BLD = np.stack([tokens_BL, tokens_BL**2], axis=-1).astype(np.float32)
  return [x_BLD * weights['scale'] * (layer == 2) for layer in layers]


@pytest.fixture
def fake(monkeypatch):
  """Stands for a masked model of 2 layers and width 2."""
  model = types.SimpleNamespace(
    num_layers=2, causal=False, emb_dim=2, position_embedding='rotary'
  )
  loaded = types.SimpleNamespace(
    model=model,
    step=7,
    config='',
    graphdef=None,
    weights={'scale': np.ones(1, np.float32)},
    data_arguments={'max_len': 16, 'batch_size': 2},
    needs_calibration=False,
  )
  monkeypatch.setattr(loading, 'load', lambda work_dir, step, bindings: loaded)
  monkeypatch.setattr(embedder, '_forward', fake_forward)
  return loaded


@pytest.fixture
def fasta(tmp_path):
  path = tmp_path / 'in.fasta'
  path.write_text(''.join(f'>{id_} x\n{x}\n' for id_, x in SEQUENCES.items()))
  return path


def check_rows(read):
  """Compares `read(name)`, [P, 2], with the sequences."""
  vectors = [vectors_of(sequence) for sequence in SEQUENCES.values()]
  for name, expected in {
    'mean_-1': [x.mean(axis=0) for x in vectors],
    'max_-1': [x.max(axis=0) for x in vectors],
    'last_-1': [x[-1] for x in vectors],
    'bos_-1': [[vocab.BOS_ID, vocab.BOS_ID**2]] * len(vectors),
    'mean_0': np.zeros((len(vectors), 2)),
  }.items():
    np.testing.assert_allclose(read(name), expected, rtol=1e-6)


def run(fasta, out, **options):
  options = {'include': ALL, 'repr_layers': (0, -1)} | options
  return embed.embed_file('run', fasta, out, **options)


def test_npz_has_an_array_of_residues_a_protein(fake, fasta, tmp_path):
  run(fasta, tmp_path / 'x.npz')
  with np.load(tmp_path / 'x.npz') as file:
    assert file['ids'].tolist() == list(SEQUENCES)
    assert file['lengths'].tolist() == list(LENGTHS)
    check_rows(file.__getitem__)
    for id_, sequence in SEQUENCES.items():
      found = file[f'per_tok_-1/{id_}']
      np.testing.assert_array_equal(found, vectors_of(sequence))


def test_hdf5_has_all_residues_and_offsets(fake, fasta, tmp_path):
  run(fasta, tmp_path / 'x.h5')
  with h5py.File(tmp_path / 'x.h5') as file:
    assert file['ids'].asstr()[:].tolist() == list(SEQUENCES)
    assert file['offsets'][:].tolist() == np.cumsum([0, *LENGTHS]).tolist()
    check_rows(lambda name: file[name][:])
    np.testing.assert_array_equal(
      file['per_tok_-1'][:],
      np.concatenate([*map(vectors_of, SEQUENCES.values())]),
    )


def test_parquet_has_lists(fake, fasta, tmp_path):
  run(fasta, tmp_path / 'x.parquet')
  table = pyarrow.parquet.read_table(tmp_path / 'x.parquet').to_pydict()
  assert table['id'] == list(SEQUENCES)
  assert table['length'] == list(LENGTHS)
  check_rows(table.__getitem__)
  for found, sequence in zip(
    table['per_tok_-1'], SEQUENCES.values(), strict=True
  ):
    np.testing.assert_array_equal(found, vectors_of(sequence))


@pytest.mark.parametrize('suffix', ['npz', 'h5', 'parquet'])
def test_a_file_is_read_again(fake, fasta, tmp_path, suffix):
  path = tmp_path / f'x.{suffix}'
  run(fasta, path, dtype='float16')
  ids, rows = embedding_file.read(path, 'mean_-1')
  assert ids == list(SEQUENCES)
  assert rows.dtype == np.float16
  expected = [vectors_of(x).mean(axis=0) for x in SEQUENCES.values()]
  np.testing.assert_allclose(rows, expected, rtol=1e-3)
  with pytest.raises(
    ValueError, match="no array 'mean_1'; it has bos_-1, bos_0"
  ):
    embedding_file.read(path, 'mean_1')


def test_what_is_no_file_of_embeddings_is_refused(fasta, tmp_path):
  (tmp_path / 'x.npz').write_bytes(fasta.read_bytes())
  with pytest.raises(
    ValueError, match='cannot be read as a file of embeddings'
  ):
    embedding_file.read(tmp_path / 'x.npz', 'mean_-1')


@pytest.mark.parametrize('parts', [1, 30, 10**6])
def test_parts_do_not_show(fake, fasta, tmp_path, monkeypatch, parts):
  run(fasta, tmp_path / 'x.npz')
  monkeypatch.setattr(embed, '_RESIDUES_AHEAD', parts)
  run(fasta, tmp_path / 'y.npz')
  assert (tmp_path / 'x.npz').read_bytes() == (tmp_path / 'y.npz').read_bytes()


@pytest.mark.parametrize('suffix', ['npz', 'h5', 'parquet'])
def test_stopped_it_goes_on_to_the_same_file(
  fake, fasta, tmp_path, monkeypatch, capsys, suffix
):
  out = tmp_path / f'x.{suffix}'
  run(fasta, tmp_path / f'y.{suffix}')

  def interrupt(*args):
    monkeypatch.setattr(embedder, '_forward', fake_forward)
    os.kill(os.getpid(), signal.SIGINT)
    return fake_forward(*args)

  monkeypatch.setattr(embedder, '_forward', interrupt)
  with pytest.raises(KeyboardInterrupt):
    run(fasta, out)
  assert 'the same command goes on from there' in capsys.readouterr().err
  assert not out.exists()
  _, residues, computed, _ = run(fasta, out)
  assert 0 < computed < residues == sum(LENGTHS)
  assert out.read_bytes() == (tmp_path / f'y.{suffix}').read_bytes()
  assert not folder_of(out).exists()


def test_another_step_does_not_go_on(fake, fasta, tmp_path, monkeypatch):
  def fail(*args):
    fail.count += 1
    if fail.count > 2:
      raise OSError('disk full')
    return fake_forward(*args)

  fail.count = 0
  monkeypatch.setattr(embedder, '_forward', fail)
  with pytest.raises(OSError, match='disk full'):
    run(fasta, tmp_path / 'x.npz')
  monkeypatch.setattr(embedder, '_forward', fake_forward)
  fake.weights['scale'] *= 2
  with pytest.raises(ValueError, match='with another model; run that command'):
    run(fasta, tmp_path / 'x.npz')
  run(fasta, tmp_path / 'x.npz', overwrite=True)
  _, rows = embedding_file.read(tmp_path / 'x.npz', 'last_-1')
  assert rows[0, 0] == 2 * vectors_of(SEQUENCES['P5'])[-1, 0]


def test_windows_of_a_long_protein_are_joined(fake, fasta, tmp_path):
  run(fasta, tmp_path / 'x.npz', max_len=8)
  with np.load(tmp_path / 'x.npz') as file:
    check_rows(file.__getitem__)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'dtype': 'int8'}, "dtype must be float32 or float16, got 'int8'"),
    ({'include': ('all',)}, "got 'all'"),
    ({'repr_layers': (3,)}, 'there is no layer 3'),
    ({'out': 'x.txt'}, "'x.txt' must end in .npz, .h5, .hdf5 or .parquet"),
    ({'out': 'none/x.npz'}, 'none is no folder'),
    ({'fasta': 'none.fasta'}, 'none.fasta cannot be read'),
  ],
)
def test_a_wrong_argument_writes_nothing(
  fake, fasta, tmp_path, options, message
):
  out = tmp_path / options.pop('out', 'x.npz')
  with pytest.raises(ValueError, match=message):
    run(options.pop('fasta', fasta), out, **options)
  assert list(tmp_path.iterdir()) == [fasta]


def test_an_empty_file_writes_nothing(fake, fasta, tmp_path):
  fasta.write_text('')
  with pytest.raises(ValueError, match='holds no protein'):
    run(fasta, tmp_path / 'x.npz')
  assert list(tmp_path.iterdir()) == [fasta]


def test_a_file_that_exists_is_kept(fake, fasta, tmp_path):
  (tmp_path / 'x.npz').write_text('mine')
  with pytest.raises(FileExistsError, match='choose another name'):
    run(fasta, tmp_path / 'x.npz')
  assert (tmp_path / 'x.npz').read_text() == 'mine'
  run(fasta, tmp_path / 'x.npz', overwrite=True)
  assert len(np.load(tmp_path / 'x.npz')['ids']) == len(SEQUENCES)


@pytest.fixture
def command(monkeypatch):
  """Runs the command with these flags, then forgets them."""
  before = set(flags.FLAGS)
  monkeypatch.setattr(cli, 'run', lambda main: None)
  embed.main()

  def run(*args):
    flags.FLAGS(['embed', '--work_dir=run', *args])
    cli.exits_cleanly(embed._main)(['embed'])

  yield run
  flags.FLAGS.unparse_flags()
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def test_the_command_says_what_it_did(fake, fasta, tmp_path, command, capsys):
  command(f'--fasta={fasta}', f'--out={tmp_path}/x.npz', '--repr_layers=0,-1')
  assert '6 proteins, 138 residues in' in capsys.readouterr().out
  assert 'mean_0' in np.load(tmp_path / 'x.npz').files


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--repr_layers=last', "parted by commas, got 'last'"),
    ('--step=newest', "latest or best, got 'newest'"),
    ('--include=means', "got 'means'"),
  ],
)
def test_a_wrong_flag_is_one_line(
  fake, fasta, tmp_path, command, capsys, flag, message
):
  with pytest.raises(SystemExit) as caught:
    command(f'--fasta={fasta}', f'--out={tmp_path}/x.npz', flag)
  assert caught.value.code == 1
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
