"""The whole way on a small FASTA, from gin file to perplexity."""

import math
import os
import pathlib
import shutil
import signal

import gin
import jax
import numpy as np
import pytest

import protein_lm
from protein_lm import checkpoint, config, evaluation, metrics
from protein_lm.experiment import run_experiment

EXACT = 'FlaxModel.attention_fn = @exact_attention()'
GENERALIZED = 'FlaxModel.attention_fn = @make_fast_generalized_attention()'


def softmax_with(nb_features):
  return (
    'FlaxModel.attention_fn = @make_fast_softmax_attention()\n'
    f'make_fast_softmax_attention.nb_features = {nb_features}'
  )


@pytest.fixture(autouse=True)
def _clear_gin():
  config.register()
  yield
  config.clear()


@pytest.fixture(scope='module')
def fasta(tmp_path_factory):
  """100 proteins over four letters, each with a period of its own."""
  generator = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('fasta') / 'periodic.fasta'
  with path.open('w') as file:
    for i in range(100):
      word = ''.join(generator.choice(list('ACDEFGHIKL'), 2 + i % 7))
      length = int(generator.integers(20, 90))
      file.write(f'>P{i} period {len(word)}\n{(word * 90)[:length]}\n')
  return path


def train(work_dir, fasta, *bindings):
  config.clear()
  config.parse(
    ['configs/tiny.gin'], [f"data.source = '{fasta}'", EXACT, *bindings]
  )
  run_experiment(str(work_dir))
  return work_dir


def score(work_dir, *bindings):
  """Scores of validation, and its proteins."""
  loaded = protein_lm.load(work_dir, gin_bindings=bindings)
  data = loaded.open_data()
  proteins = data.proteins('validation')
  batches = data.eval_batches(proteins)
  score_step = loaded.make_score_step()
  return (
    evaluation.score_split(score_step, loaded.params, batches, proteins),
    proteins,
  )


def perplexity(work_dir, *bindings):
  return evaluation.summarize(*score(work_dir, *bindings))['residue_perplexity']


@pytest.fixture(scope='module')
def trained(tmp_path_factory, fasta):
  config.register()
  work_dir = tmp_path_factory.mktemp('runs') / 'exact'
  return train(
    work_dir,
    fasta,
    'experiment.num_train_steps = 100',
    'experiment.num_eval_batches = 99',
    'experiment.eval_every_steps = 50',
    'experiment.checkpoint_every_steps = 50',
    'make_optimizer.learning_rate = 1e-2',
  )


def test_training_learns(trained):
  losses = [r['train/loss'] for r in metrics.read(trained) if 'train/loss' in r]
  assert losses[0] > 2.8
  assert losses[-1] < losses[0] - 0.5


def test_the_last_record_is_what_evaluation_finds(trained, fasta):
  config.clear()
  last = metrics.read(trained)[-1]
  assert perplexity(trained) == pytest.approx(
    last['validation/residue_perplexity'], rel=1e-5
  )


def test_one_checkpoint_evaluates_under_every_attention(trained):
  found = [
    perplexity(trained, binding)
    for binding in (EXACT, softmax_with(256), GENERALIZED)
  ]
  assert all(math.isfinite(value) for value in found)
  assert len(set(found)) == 3


@pytest.mark.slow
def test_more_features_bring_the_softmax_kernel_to_exact_attention(trained):
  exact = score(trained, EXACT)[0].nll

  def gaps(num_features):
    """Mean |difference| a residue, and ratio of perplexities (two seeds)."""
    differences = [
      score(
        trained,
        softmax_with(num_features),
        f'make_fast_softmax_attention.seed = {seed}',
      )[0].nll
      - exact
      for seed in (0, 1)
    ]
    return (
      np.mean(np.abs(differences)),
      np.exp(np.mean(differences)),
    )

  few, many = gaps(64), gaps(1024)
  assert few[0] > 1.5 * many[0]
  assert many[1] == pytest.approx(1, abs=0.05)


def test_a_finished_run_says_so_and_changes_nothing(trained, fasta, capsys):
  before = sorted(pathlib.Path(trained).rglob('*'))
  train(trained, fasta, 'experiment.num_train_steps = 100')
  assert 'is finished: 100 of 100 steps' in capsys.readouterr().out
  assert sorted(pathlib.Path(trained).rglob('*')) == before


def test_the_operative_config_stands_beside_the_weights(trained):
  text = checkpoint.config(trained, 100)
  config.clear()
  config.parse_text(text, trusted=False)
  assert gin.query_parameter('experiment.num_train_steps') == 100
  assert 'FlaxModel.attention_fn = @exact_attention()' in text


@pytest.mark.slow
def test_resuming_at_any_checkpoint_equals_the_straight_run(tmp_path, fasta):
  bindings = [
    'experiment.num_train_steps = 12',
    'experiment.checkpoint_every_steps = 5',
    'experiment.log_every_steps = 5',
    'experiment.keep_checkpoints = 9',
    'FlaxModel.dropout_rate = 0.1',
    softmax_with(16),
  ]
  straight = train(tmp_path / 'straight', fasta, *bindings)
  resumed = tmp_path / 'resumed'
  for stop in (5, 10, 12):
    train(resumed, fasta, *bindings, f'experiment.num_train_steps = {stop}')
  a, b = (protein_lm.load(d).params for d in (straight, resumed))
  jax.tree.map(np.testing.assert_array_equal, a, b)

  def records(work_dir):
    return [
      {k: v for k, v in r.items() if not metrics.is_timed(k)}
      for r in metrics.read(work_dir)
    ][-1]

  assert records(straight) == records(resumed)


def test_masked_training_and_evaluation(tmp_path, fasta):
  work_dir = train(
    tmp_path / 'masked',
    fasta,
    'experiment.model_cls = @FlaxBERT',
    'experiment.num_train_steps = 4',
  )
  last = metrics.read(work_dir)[-1]
  assert last['validation/masked_residue_perplexity'] > 1
  assert not any(name.endswith('/perplexity') for name in last)
  assert protein_lm.load(work_dir).model.objective == 'masked'


def test_changed_data_stops_the_run(trained, fasta, tmp_path):
  other = tmp_path / 'other.fasta'
  other.write_text(fasta.read_text().replace('>P0 ', '>Q0 '))
  with pytest.raises(ValueError, match='the data changed since the checkpoint'):
    train(trained, other, 'experiment.num_train_steps = 200')


def test_a_changed_architecture_stops_the_run_with_a_diff(trained, fasta):
  with pytest.raises(ValueError, match='FlaxModel.num_layers: 2 -> 3'):
    train(trained, fasta, 'FlaxModel.num_layers = 3')


@pytest.mark.parametrize('name', ['num_train_steps', 'log_every_steps'])
def test_numbers_that_make_no_run_are_refused(tmp_path, fasta, name):
  with pytest.raises(ValueError, match=f'experiment.{name} must be at least 1'):
    train(tmp_path, fasta, f'experiment.{name} = 0')


def test_dry_run_prints_the_plan_and_saves_nothing(tmp_path, fasta, capsys):
  config.parse(['configs/tiny.gin'], [f"data.source = '{fasta}'"])
  run_experiment(str(tmp_path / 'run'), dry_run=True)
  out = capsys.readouterr().out
  for word in ('parameters', 'memory', 'steps', 'tokens', 'epochs', 'duration'):
    assert word in out
  assert not (tmp_path / 'run' / 'checkpoints').exists()
  assert not (tmp_path / 'run' / metrics.FILE_NAME).exists()


def test_a_signal_before_the_first_step_has_nothing_to_save(
  tmp_path, fasta, monkeypatch, capsys
):
  from protein_lm import data as data_lib

  open_data = data_lib.open_data

  def interrupted(work_dir):
    os.kill(os.getpid(), signal.SIGTERM)
    return open_data(work_dir)

  monkeypatch.setattr(data_lib, 'open_data', interrupted)
  train(tmp_path, fasta)
  assert 'there is nothing to save' in capsys.readouterr().out
  assert not checkpoint.steps(tmp_path)


@pytest.mark.slow
def test_other_batches_on_resume_are_told(trained, fasta, tmp_path, capsys):
  shutil.copytree(trained, tmp_path / 'run')
  train(
    tmp_path / 'run',
    fasta,
    'experiment.num_train_steps = 101',
    'data.batch_size = 2',
    'make_optimizer.learning_rate = 1e-2',
  )
  assert 'data.batch_size: 4 -> 2' in capsys.readouterr().out


@pytest.mark.slow
def test_two_loaded_models_keep_their_own_data(trained, fasta, tmp_path):
  other = tmp_path / 'other.fasta'
  other.write_text(fasta.read_text().replace('>P0 ', '>Q0 '))
  train(tmp_path / 'run', other, 'experiment.num_train_steps = 1')
  first = protein_lm.load(trained)
  protein_lm.load(tmp_path / 'run')
  assert first.open_data().fingerprint == first.metadata['data_fingerprint']
