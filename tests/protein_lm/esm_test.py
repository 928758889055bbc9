"""ESM-2 in and out: its logits from another implementation, its tensors back.

Axes: L length, D model width, H heads, K head width, V vocabulary.
"""

import json
import math
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from absl import flags
from safetensors.numpy import load_file, save_file

from protein_lm import (
  cli,
  config,
  esm,
  esm_export,
  experiment,
  export,
  import_esm,
  loading,
  run_start,
  vocab,
)

CONFIG = {
  'architectures': ['EsmForMaskedLM'],
  'model_type': 'esm',
  'vocab_size': 33,
  'mask_token_id': 32,
  'pad_token_id': 1,
  'hidden_size': 8,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 12,
  'max_position_embeddings': 30,
  'position_embedding_type': 'rotary',
  'token_dropout': True,
  'emb_layer_norm_before': False,
  'layer_norm_eps': 1e-5,
}
LAYER = 'esm.encoder.layer'
CONTACTS = 'esm.contact_head.regression.weight'


def tensors(D=8, F=12, V=33, seed=0, is_rotary=True, dtype=np.float32):
  """Random tensors under the names that transformers gives them."""
  generator = np.random.default_rng(seed)
  shapes = {
    'esm.embeddings.word_embeddings': (V, D),
    'esm.encoder.emb_layer_norm_after': None,
    'lm_head.dense': (D, D),
    'lm_head.layer_norm': None,
  }
  for n in range(2):
    for name in ('self.query', 'self.key', 'self.value', 'output.dense'):
      shapes[f'{LAYER}.{n}.attention.{name}'] = (D, D)
    shapes[f'{LAYER}.{n}.attention.LayerNorm'] = None
    shapes[f'{LAYER}.{n}.LayerNorm'] = None
    shapes[f'{LAYER}.{n}.intermediate.dense'] = (F, D)
    shapes[f'{LAYER}.{n}.output.dense'] = (D, F)
  found = {'lm_head.bias': generator.normal(size=V)}
  for name, shape in shapes.items():
    found[f'{name}.weight'] = generator.normal(size=shape or D)
    found[f'{name}.bias'] = generator.normal(size=(shape or (D,))[0])
  del found['esm.embeddings.word_embeddings.bias']
  if not is_rotary:
    for name in ('weight', 'bias'):
      found[f'esm.embeddings.layer_norm.{name}'] = generator.normal(size=D)
    rows = generator.normal(size=(30, D))
    found['esm.embeddings.position_embeddings.weight'] = rows
  found[CONTACTS] = generator.normal(size=(1, 4))
  return {k: (v / 2).astype(dtype) for k, v in found.items()}


def write(folder, arrays, **changes):
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps({**CONFIG, **changes}))
  save_file(arrays, folder / 'model.safetensors', {'format': 'pt'})
  return folder


def logits_of(arrays, ids_L, is_rotary=True, H=2):
  """ESM-2 for one protein, written down again in float64."""
  w = {k: v.astype(np.float64) for k, v in arrays.items()}

  def dense(name, x):
    return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

  def norm(name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * w[f'{name}.weight'] + w[f'{name}.bias']

  def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

  def heads(x_LD):
    return x_LD.reshape(len(x_LD), H, -1).swapaxes(0, 1)

  def rotated(x_HLK):
    half = x_HLK.shape[-1] // 2
    angles = np.outer(
      np.arange(x_HLK.shape[1]), 10_000.0 ** (-np.arange(half) / half)
    )
    turns = np.exp(1j * angles) * (x_HLK[..., :half] + 1j * x_HLK[..., half:])
    return np.concatenate([turns.real, turns.imag], -1)

  is_mask_L = ids_L == 32
  x_LD = np.where(
    is_mask_L[:, None], 0, w['esm.embeddings.word_embeddings.weight'][ids_L]
  )
  x_LD = x_LD * (1 - 0.12) / (1 - is_mask_L.mean())
  if not is_rotary:
    table = w['esm.embeddings.position_embeddings.weight']
    x_LD = norm('esm.embeddings.layer_norm', x_LD + table[2:][: len(ids_L)])
  for n in range(2):
    attention = f'{LAYER}.{n}.attention'
    h_LD = norm(f'{attention}.LayerNorm', x_LD)
    q, k, v = (
      heads(dense(f'{attention}.self.{name}', h_LD))
      for name in ('query', 'key', 'value')
    )
    if is_rotary:
      q, k = rotated(q), rotated(k)
    p_HLL = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
    p_HLL /= p_HLL.sum(-1, keepdims=True)
    out_LD = (p_HLL @ v).swapaxes(0, 1).reshape(x_LD.shape)
    x_LD = x_LD + dense(f'{attention}.output.dense', out_LD)
    h_LD = norm(f'{LAYER}.{n}.LayerNorm', x_LD)
    h_LF = gelu(dense(f'{LAYER}.{n}.intermediate.dense', h_LD))
    x_LD = x_LD + dense(f'{LAYER}.{n}.output.dense', h_LF)
  x_LD = norm('esm.encoder.emb_layer_norm_after', x_LD)
  x_LD = norm('lm_head.layer_norm', gelu(dense('lm_head.dense', x_LD)))
  embedding = w['esm.embeddings.word_embeddings.weight']
  return x_LD @ embedding.T + w['lm_head.bias']


@pytest.fixture(autouse=True)
def clean():
  """An import leaves its bindings."""
  yield
  config.clear()


@pytest.fixture(scope='module')
def rotary(tmp_path_factory):
  """(tensors, folder there, LoadedModel)."""
  folder = tmp_path_factory.mktemp('rotary')
  # As published files are, with tensors that their logits do not need.
  arrays = {
    **tensors(),
    'esm.embeddings.position_ids': np.arange(30)[None],
    'esm.embeddings.position_embeddings.weight': np.ones((30, 8), np.float32),
  }
  arrays['lm_head.decoder.weight'] = arrays[esm.EMBEDDING]
  hf = write(folder / 'hf', arrays)
  return arrays, hf, import_esm.import_esm(hf, folder / 'run')


@pytest.fixture(scope='module')
def absolute(tmp_path_factory):
  """The same of an ESM-1b, in half precision."""
  folder = tmp_path_factory.mktemp('absolute')
  arrays = tensors(is_rotary=False, dtype=np.float16)
  hf = write(
    folder / 'hf',
    arrays,
    position_embedding_type='absolute',
    emb_layer_norm_before=True,
  )
  return arrays, hf, import_esm.import_esm(hf, folder / 'run')


@pytest.mark.parametrize(
  'kind', ['rotary', pytest.param('absolute', marks=pytest.mark.slow)]
)
def test_padded_and_masked_proteins_have_the_logits_of_esm(kind, request):
  arrays, _, loaded = request.getfixturevalue(kind)
  proteins = ['MKT*YIAK', 'A', '*CDEFGHIKLMNPQRSTVWY*XBUZO']
  ids_of = {token: i for i, token in enumerate(esm.TOKENS)}
  tokens_BL = np.full((3, 28), vocab.PAD_ID, np.int32)
  for i, protein in enumerate(proteins):
    row = [vocab.TOKENS.index(x) for x in f'<{protein}>']
    tokens_BL[i, : len(row)] = row
  ours_BLV = jax.jit(lambda tokens: loaded.model(tokens))(tokens_BL)
  for i, protein in enumerate(proteins):
    letters = ['<cls>', *protein.replace('*', '.'), '<eos>']
    letters = ['<mask>' if x == '.' else x for x in letters]
    ids_L = np.array([ids_of[letter] for letter in letters])
    theirs_LV = logits_of(arrays, ids_L, kind == 'rotary')
    columns = [ids_of[token] for token in esm.OUR_TOKENS]
    np.testing.assert_allclose(
      ours_BLV[i, : len(ids_L)], theirs_LV[:, columns], atol=1e-4
    )


@pytest.mark.parametrize('kind', ['rotary', 'absolute'])
def test_what_came_in_goes_out_bit_for_bit(kind, request, tmp_path):
  arrays, hf, loaded = request.getfixturevalue(kind)
  export.export(loaded.work_dir, tmp_path / 'out', 'esm')
  back = load_file(tmp_path / 'out/model.safetensors')
  assert back.keys() == arrays.keys()
  for name, array in arrays.items():
    assert back[name].dtype == array.dtype
    assert back[name].tobytes() == array.tobytes(), name
  there, exported = (
    json.loads((folder / 'config.json').read_text())
    for folder in (hf, tmp_path / 'out')
  )
  assert there.items() <= exported.items()


def test_bfloat16_comes_back_as_it_was(tmp_path):
  arrays = tensors(dtype=ml_dtypes.bfloat16)
  import_esm.import_esm(write(tmp_path / 'hf', arrays), tmp_path / 'run')
  export.export(tmp_path / 'run', tmp_path / 'out', 'esm')
  back = load_file(tmp_path / 'out/model.safetensors')
  for name, array in arrays.items():
    assert back[name].dtype == array.dtype
    assert back[name].tobytes() == array.tobytes(), name


def test_old_names_of_norms_go_in_and_out(tmp_path):
  arrays = {
    k.replace('.LayerNorm.weight', '.LayerNorm.gamma').replace(
      '.LayerNorm.bias', '.LayerNorm.beta'
    ): v
    for k, v in tensors().items()
  }
  hf = write(tmp_path / 'hf', arrays)
  import_esm.import_esm(hf, tmp_path / 'run')
  export.export(tmp_path / 'run', tmp_path / 'out', 'esm')
  assert load_file(tmp_path / 'out/model.safetensors').keys() == arrays.keys()


def test_shards_are_read(rotary, tmp_path):
  arrays, hf, loaded = rotary
  (tmp_path / 'hf').mkdir()
  (tmp_path / 'hf/config.json').write_text((hf / 'config.json').read_text())
  names = sorted(arrays)
  index = {}
  for file_name, part in (('1.safetensors', names[:9]), ('2', names[9:])):
    save_file({k: arrays[k] for k in part}, tmp_path / 'hf' / file_name)
    index |= dict.fromkeys(part, file_name)
  (tmp_path / 'hf/model.safetensors.index.json').write_text(
    json.dumps({'weight_map': index})
  )
  other = import_esm.import_esm(tmp_path / 'hf', tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, other.params, loaded.params)


def test_an_import_has_a_configuration_that_trains(rotary):
  _, _, loaded = rotary
  text = pathlib.Path(loaded.work_dir, 'config.gin').read_text()
  assert 'experiment.model_cls = @FlaxBERT' in text
  assert "data.source = 'human_swissprot'" in text


def test_an_import_is_no_run_to_go_on_with(rotary):
  with pytest.raises(ValueError, match='experiment.init_from = '):
    run_start.first_state(rotary[2].work_dir, None, None, '', {})


def test_a_binding_swaps_the_attention(rotary):
  binding = 'FlaxModel.attention_fn = @make_fast_softmax_attention()'
  loaded = loading.load(rotary[2].work_dir, gin_bindings=[binding])
  assert type(loaded.model.attention_fns[0]).__name__ == 'FastAttention'


def test_frequencies_in_half_precision_are_kept(tmp_path):
  half = (10_000.0 ** -(np.arange(0, 4, 2) / 4)).astype(np.float16)
  name = f'{LAYER}.0.attention.self.rotary_embeddings.inv_freq'
  hf = write(tmp_path / 'hf', {**tensors(), name: half.astype(np.float32)})
  loaded = import_esm.import_esm(hf, tmp_path / 'run')
  # 1 and 0.01: the second is no half.
  assert loaded.model.rotary_dtype == 'float16'


@pytest.mark.slow
def test_an_import_is_tuned_under_fast_attention(rotary, tmp_path, fasta_60):
  _, _, loaded = rotary
  config.clear()
  config.parse(
    [f'{loaded.work_dir}/config.gin'],
    [
      f'experiment.init_from = {loaded.work_dir!r}',
      'experiment.num_train_steps = 2',
      'FlaxModel.attention_fn = @make_fast_softmax_attention()',
      f'data.source = {str(fasta_60)!r}',
      f'data.data_dir = {str(tmp_path / "data")!r}',
      'MAX_LEN = 32',
    ],
  )
  experiment.run_experiment(str(tmp_path / 'tuned'))
  export.export(tmp_path / 'tuned', tmp_path / 'out', 'esm')
  back = load_file(tmp_path / 'out/model.safetensors')
  assert not back[CONTACTS].any()  # it was that of other attention
  assert np.any(back[esm.EMBEDDING] != rotary[0][esm.EMBEDDING])


# What is refused.


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'architectures': ['EsmForProteinFolding']}, 'only an EsmForMaskedLM'),
    ({'model_type': 'bert'}, "model_type 'bert'"),
    ({'is_decoder': True}, 'is_decoder is True'),
    ({'vocab_size': 34}, 'vocab_size is 34'),
    ({'hidden_size': -8}, 'hidden_size is -8, which is no size'),
    ({'hidden_size': 16}, r'\(33, 8\), and \(33, 16\) by its config.json'),
    ({'num_attention_heads': 3}, 'no multiple of its 3 heads'),
    ({'num_hidden_layers': 3}, 'lacks esm.encoder.layer.2'),
    ({'num_hidden_layers': 1}, 'esm.encoder.layer.1.+ has not'),
    ({'rope_theta': 500.0}, 'rope_theta is 500.0'),
    ({'mask_token_id': 4}, 'mask_token_id is 4, and <mask> is 32'),
    ({'position_embedding_type': 'relative_key'}, "is 'relative_key'"),
  ],
)
def test_another_configuration_is_refused(tmp_path, changes, message):
  hf = write(tmp_path / 'hf', tensors(), **changes)
  with pytest.raises(ValueError, match=message) as error:
    import_esm.import_esm(hf, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def cut(hf):
  path = hf / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-100])


def pickle(hf):
  (hf / 'model.safetensors').rename(hf / 'pytorch_model.bin')


def climb(hf):
  (hf / 'model.safetensors').unlink()
  (hf / 'model.safetensors.index.json').write_text(
    '{"weight_map": {"lm_head.bias": "../secret"}}'
  )


@pytest.mark.parametrize(
  'damage, message',
  [
    (cut, 'is no good safetensors file'),
    (pickle, 'a pickle, which runs code'),
    (climb, "'../secret', which is no name"),
    (lambda hf: (hf / 'config.json').unlink(), 'has no config.json'),
    (lambda hf: (hf / 'config.json').write_text('[]'), 'is no JSON object'),
    (lambda hf: (hf / 'config.json').write_text('{'), 'is no JSON: '),
    (lambda hf: (hf / 'vocab.txt').write_text('A\nC\n'), 'other tokens than'),
    (lambda hf: (hf / 'model.safetensors').write_text(''), 'is empty'),
  ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, message):
  hf = write(tmp_path / 'hf', tensors())
  damage(hf)
  with pytest.raises(ValueError, match=message):
    import_esm.import_esm(hf, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'gin_bindings': ['FlaxModel.num_layers = 3']}, 'change the parameter'),
    ({'data_source': 'absent.fasta'}, 'there is no file'),
    ({'data_source': 'absent'}, 'neither a file nor one of'),
  ],
)
def test_a_wrong_argument_is_refused(rotary, tmp_path, arguments, message):
  with pytest.raises((ValueError, OSError), match=message):
    import_esm.import_esm(rotary[1], tmp_path / 'run', **arguments)
  assert not list(tmp_path.iterdir())


@pytest.fixture
def command(monkeypatch):
  """Runs the command with these flags, then forgets them."""
  before = set(flags.FLAGS)
  mains = []
  monkeypatch.setattr(cli, 'run', mains.append)
  import_esm.main()

  def run(*args):
    flags.FLAGS(['import_esm', *args])
    cli.exits_cleanly(mains[0])(['import_esm'])

  yield run
  flags.FLAGS.unparse_flags()
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def test_the_command_tells_an_error_in_a_line(tmp_path, command, capsys):
  with pytest.raises(SystemExit) as exit_info:
    command(f'--hf={tmp_path}/absent', f'--work_dir={tmp_path}/runs/a')
  assert exit_info.value.code == 1
  assert capsys.readouterr().err.startswith('error: there is no folder ')
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_reports_the_kernel_error(
  rotary, tmp_path, command, capsys
):
  command(f'--hf={rotary[1]}', f'--work_dir={tmp_path}/run')
  out = capsys.readouterr().out
  assert 'softmax(nb_features=256) attention in place of its own' in out
  assert 'kernel error' in out and 'logits differ by' in out


def test_a_work_dir_that_exists_is_kept(rotary):
  _, hf, loaded = rotary
  with pytest.raises(FileExistsError, match='choose another name'):
    import_esm.import_esm(hf, loaded.work_dir)


def test_an_export_names_the_bindings_it_needs(rotary):
  class Model:
    objective, norm, mlp, output_head = 'masked', 'rmsnorm', 'gelu', 'dense'
    use_bias, qk_norm, position_embedding = True, False, 'sinusoidal'
    qkv_dim = emb_dim = 8
    vocab_size = 29

  with pytest.raises(esm.ESMError) as error:
    esm_export.export(Model(), {})
  for text in ("norm = 'layernorm'", "mlp = 'gelu_exact'", 'position_embed'):
    assert text in str(error.value)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'format': 'onnx'}, "must be one of .*'llama'.*got 'onnx'"),
    ({'format': 'esm', 'weights': 'ema_params'}, 'takes the average where'),
    ({'out': 'x.safetensors', 'gin_bindings': ['a.b = 1']}, 'is of --format='),
    ({'format': 'llama'}, 'a FlaxBERT is no causal language model'),
    ({'format': 'esm', 'out': 'absent/out'}, 'there is no folder'),
  ],
)
def test_a_wrong_export_is_refused(rotary, tmp_path, arguments, message):
  arguments = {'out': 'out', **arguments}
  arguments['out'] = tmp_path / arguments['out']
  with pytest.raises((ValueError, OSError), match=message):
    export.export(rotary[2].work_dir, **arguments)
  assert not list(tmp_path.iterdir())


def test_an_export_replaces_only_an_export(rotary, tmp_path):
  out = tmp_path / 'out'
  export.export(rotary[2].work_dir, out, 'esm')
  with pytest.raises(FileExistsError, match='--overwrite'):
    export.export(rotary[2].work_dir, out, 'esm')
  export.export(rotary[2].work_dir, out, 'esm', overwrite=True)
  (out / 'thesis.tex').write_text('mine')
  with pytest.raises(FileExistsError, match=r"'thesis.tex', which no export"):
    export.export(rotary[2].work_dir, out, 'esm', overwrite=True)
  assert (out / 'thesis.tex').read_text() == 'mine'
