"""The commands on a real run of seconds: right and wrong inputs."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import protein_lm
from protein_lm import cli, compare, config, evaluate, evaluation, vocab
from protein_lm.experiment import run_experiment

pytestmark = pytest.mark.slow
MASKED = ('experiment.model_cls = @FlaxBERT', 'experiment.num_train_steps = 3')


def train(work_dir, fasta, *bindings):
  config.register()
  config.clear()
  config.parse(['configs/tiny.gin'], [f"data.source = '{fasta}'", *bindings])
  run_experiment(str(work_dir))
  config.clear()
  return work_dir


@pytest.fixture(scope='module')
def causal(tmp_path_factory, fasta_60):
  rotary = "FlaxModel.position_embedding = 'rotary'"  # for any length
  return train(tmp_path_factory.mktemp('causal'), fasta_60, rotary)


@pytest.fixture(scope='module')
def masked(tmp_path_factory, fasta_60):
  return train(tmp_path_factory.mktemp('masked'), fasta_60, *MASKED)


@pytest.fixture(scope='module', autouse=True)
def _flags():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cli, 'run', lambda *args, **kwargs: None)
    before = set(flags.FLAGS)
    evaluate.main()
    flags.FLAGS.mark_as_parsed()
  yield
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def run(work_dir, capsys, **values):
  """Exit status (None if all is well) and standard error of evaluate."""
  code = None
  with flagsaver.flagsaver(work_dir=str(work_dir), **values):
    try:
      cli.exits_cleanly(evaluate._main)(['evaluate'])
    except SystemExit as error:
      code = error.code
  return code, capsys.readouterr().err


def files_of(folder):
  return sorted(str(path) for path in folder.rglob('*'))


def mean_log_likelihood(loaded, proteins):
  """In numpy, from the logits of one protein at a time."""
  model, total, count = jax.jit(lambda x: loaded.model(x)), 0.0, 0
  bounds = zip(proteins.offsets[:-1], proteins.offsets[1:], strict=True)
  for start, end in bounds:
    residues = proteins.residues[start:end]
    tokens = np.full((1, 128), vocab.PAD_ID, np.int32)
    tokens[0, : len(residues) + 2] = [vocab.BOS_ID, *residues, vocab.EOS_ID]
    logits_LV = np.asarray(model(tokens)[0], np.float64)
    log_p_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
    total += log_p_LV[np.arange(len(residues)), residues].sum()
    count += len(residues)
  return total / count


def test_the_test_split_equals_numpy_on_one_device_and_on_eight(causal):
  bindings = ['data.max_len = 128']  # no windows
  loaded = protein_lm.load(causal, gin_bindings=bindings)
  expected = mean_log_likelihood(loaded, loaded.open_data().proteins('test'))
  for options in ({}, {'batch_size': 3}, {'batch_size': 8, 'num_devices': 8}):
    rows, _ = evaluate.evaluate(
      causal, gin_bindings=bindings, splits=['test'], **options
    )
    found = -np.log(rows[-1]['residue_perplexity'])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_all_steps_under_two_attentions(causal, capsys):
  code, _ = run(causal, capsys, step='all', attention=['exact', 'softmax'])
  assert code is None
  rows = json.loads((causal / 'evaluation.json').read_text())
  found = {(row['step'], row['attention']) for row in rows if row['step']}
  fast = 'softmax(nb_features=256)'
  assert {(x, y) for x in (3, 6) for y in ('exact', fast)} <= found
  errors = json.loads((causal / 'evaluation_kernel_error.json').read_text())
  assert {row['error'] for row in errors if row['attention'] == 'exact'} == {0}
  assert all(row['error'] > 0 for row in errors if row['attention'] == fast)
  (spread,) = {
    row['num_projections']
    for row in rows
    if row.get('projection_perplexity_std') is not None
  }
  assert spread == 5


def test_masked_with_pseudo_perplexity(masked, capsys):
  code, _ = run(masked, capsys, pseudo_perplexity=3, splits=['test'])
  assert code is None
  rows = json.loads((masked / 'evaluation.json').read_text())
  values = {row['name']: row['pseudo_perplexity'] for row in rows}
  np.testing.assert_allclose(values['uniform'], 25)
  assert 10 < values['FlaxBERT'] < 60 and values['two-sided 5-gram']


def test_the_api_and_the_command_say_the_same(causal, fasta_60):
  rows, paths = evaluate.evaluate(causal, fasta=fasta_60, num_projections=1)
  loaded = protein_lm.load(causal)
  (table,) = [x for x in paths if x.name == 'per_sequence_random.parquet']
  from pyarrow import parquet

  found = {row['id']: row for row in parquet.read_table(table).to_pylist()}
  sequences = {'P3': None}
  for block in fasta_60.read_text().split('>'):
    if block.startswith('P3\n'):
      sequences['P3'] = block.split()[1]
  (alone,) = evaluation.perplexity_of(loaded, sequences)
  np.testing.assert_allclose(alone['loss'], found['P3']['loss'], rtol=1e-5)


def test_a_run_is_no_better_than_itself(causal):
  (found,) = compare.compare(causal, causal, splits=['test'])
  assert found.difference == found.low == found.high == 0


def test_a_truncated_checkpoint_is_one_sentence(causal, tmp_path, capsys):
  copy = tmp_path / 'run'
  shutil.copytree(causal, copy)
  for folder in (copy / 'checkpoints').iterdir():
    if folder.name.isdecimal():
      largest = max(
        (x for x in folder.rglob('*') if x.is_file()), key=os.path.getsize
      )
      largest.write_bytes(largest.read_bytes()[:-7])
  before = files_of(copy)
  for step in ('latest', '6', 'all'):
    code, text = run(copy, capsys, step=step)
    assert code == 1 and text.count('error: ') == 1, text
  assert files_of(copy) == before


def test_a_config_that_imports_is_refused(causal, tmp_path, capsys):
  copy = tmp_path / 'run'
  shutil.copytree(causal, copy)
  before = files_of(copy)
  for path in (copy / 'checkpoints').glob('*/config.gin'):
    path.write_text('import os\n' + path.read_text())
  code, text = run(copy, capsys)
  assert code == 1 and text.startswith('error: ') and text.count('\n') == 1
  assert files_of(copy) == before


@pytest.mark.parametrize(
  'values, why',
  [
    ({'splits': ['tset']}, "no split 'tset'"),
    ({'splits': ['test'], 'fasta': 'x.fasta'}, '--fasta exclude each other'),
    ({'fasta': 'nowhere.fasta'}, 'nowhere.fasta'),
    ({'pseudo_perplexity': 3}, 'pseudo-perplexity is of masked models'),
    ({'step': '4'}, '4'),
    ({'num_devices': 9}, 'num_devices=9'),
  ],
)
def test_wrong_inputs_are_one_sentence(causal, tmp_path, capsys, values, why):
  copy = tmp_path / 'run'
  shutil.copytree(causal, copy)
  before = files_of(copy)
  code, text = run(copy, capsys, **values)
  assert code == 1 and why in text and text.count('\n') == 1, text
  assert files_of(copy) == before
