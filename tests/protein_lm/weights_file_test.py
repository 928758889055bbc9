"""Weights in a safetensors file: bit-equal, whole, and never trusted."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from protein_lm import checkpoint, cli, export, weights_file


def make_params():
  return {
    'embed': {'table': jax.random.normal(jax.random.key(0), (21, 4))},
    'layers': {0: {'w': jnp.full((4, 3), 1 / 3, jnp.bfloat16)}},
    'scale': jnp.float32(2.5),
  }


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
  work_dir = tmp_path_factory.mktemp('run')
  averaged = jax.tree.map(lambda x: x / 2, make_params())
  state = {'params': make_params(), 'ema_params': averaged}
  checkpoint.save(
    work_dir, 5, state, config='a.b = 1\n', metadata={'data': 'xyz'}
  )
  return work_dir


@pytest.mark.parametrize('weights, factor', [('params', 1), ('ema_params', 2)])
def test_round_trip_is_bit_equal(work_dir, tmp_path, weights, factor):
  path = tmp_path / 'model.safetensors'
  step, num_params = weights_file.export(work_dir, path, weights=weights)
  assert (step, num_params) == (5, 21 * 4 + 4 * 3 + 1)
  arrays, metadata = weights_file.read(path)
  assert metadata['step'] == '5' and metadata['config'] == 'a.b = 1\n'
  assert metadata['weights'] == weights
  assert json.loads(metadata['metadata']) == {'data': 'xyz'}
  assert arrays.keys() == {'embed/table', 'layers/0/w', 'scale'}
  expected = jax.tree.map(lambda x: np.asarray(x / factor), make_params())
  for name, array in arrays.items():
    want = expected
    for part in name.split('/'):
      want = want[int(part) if part.isdecimal() else part]
    assert array.dtype == want.dtype and array.shape == want.shape
    assert array.tobytes() == want.tobytes()


def test_a_file_is_replaced_only_if_asked(work_dir, tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_text('mine')
  with pytest.raises(FileExistsError, match='model.safetensors exists'):
    weights_file.export(work_dir, path)
  assert path.read_text() == 'mine'
  weights_file.export(work_dir, path, overwrite=True)
  assert weights_file.read(path)[1]['step'] == '5'
  assert [p.name for p in tmp_path.iterdir()] == ['model.safetensors']


def test_weights_that_are_not_there_are_named(work_dir, tmp_path):
  state = {'params': make_params()}
  checkpoint.save(tmp_path, 1, state, config='', metadata={})
  with pytest.raises(ValueError, match='has no ema_params; export params'):
    weights_file.export(tmp_path, tmp_path / 'x', weights='ema_params')
  with pytest.raises(ValueError, match="got 'opt_state'"):
    weights_file.export(tmp_path, tmp_path / 'x', weights='opt_state')


def test_a_folder_that_is_not_there_is_named(work_dir, tmp_path):
  with pytest.raises(FileNotFoundError, match='absent'):
    weights_file.export(work_dir, tmp_path / 'absent' / 'x.safetensors')


def entry(dtype='F32', shape=(2,), offsets=(0, 8)):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}


def as_file(header, data=bytes(16), length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return (
    struct.pack('<Q', len(text) if length is None else length) + text + data
  )


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'\x01',
    as_file({'a': entry()}, length=2**62),
    as_file({'a': entry()}, length=10**9),
    as_file({'a': entry(), 'b': entry(offsets=(4, 12))}),
    as_file({'a': entry(), 'b': entry(offsets=(16, 24))}, bytes(24)),
    as_file({'a': entry(shape=(2**40, 2**40), offsets=(0, 16))}),
    as_file({'a': entry(shape=(10**12,), offsets=(0, 4 * 10**12))}),
    as_file({'a': entry(dtype='pickle', offsets=(0, 16))}),
    as_file({'a': entry(offsets=(8, 0))}),
    as_file({'a': entry(shape=(-2,), offsets=(0, 16))}),
    as_file({'a': entry(offsets=(0, 8))}, bytes(4)),
    as_file(b'[' * 10_000),
    as_file(b'\xff\xfe'),
    as_file({'a': 3}),
  ],
)
def test_a_hostile_header_is_one_sentence(tmp_path, content):
  path = tmp_path / 'x.safetensors'
  path.write_bytes(content)
  with pytest.raises(weights_file.WeightsFileError, match='x.safe') as error:
    weights_file.read(path)
  assert '\n' not in str(error.value) and len(str(error.value)) < 600


def test_each_cut_is_an_error(work_dir, tmp_path):
  path = tmp_path / 'x.safetensors'
  weights_file.export(work_dir, path)
  content = path.read_bytes()
  for size in range(0, len(content), 97):
    path.write_bytes(content[:size])
    with pytest.raises(weights_file.WeightsFileError):
      weights_file.read(path)


@pytest.fixture
def command(monkeypatch):
  """Runs the command with these flags, then forgets them."""
  before = set(flags.FLAGS)
  monkeypatch.setattr(cli, 'run', lambda main: None)
  export.main()

  def run(*args):
    flags.FLAGS(['export', *args])
    export._main([])

  yield run
  flags.FLAGS.unparse_flags()
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def test_the_command_writes_and_says_so(work_dir, tmp_path, command, capsys):
  path = tmp_path / 'model.safetensors'
  command(f'--work_dir={work_dir}', f'--out={path}')
  assert '97 parameters of step 5' in capsys.readouterr().out
  assert path.is_file()
  with pytest.raises(ValueError, match='--out must end in .safetensors'):
    command(f'--work_dir={work_dir}', f'--out={tmp_path}/model.bin')
