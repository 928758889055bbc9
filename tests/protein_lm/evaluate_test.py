"""The command around a fake model: which rows and files it leaves."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import checkpoint, evaluate, evaluation_table, loading, vocab
from protein_lm.data import EvalBatches
from protein_lm.exact_attention import ExactAttention
from protein_lm.objectives import TokenScores
from protein_lm.proteins import from_sequences

BASELINES = ['uniform', 'unigram', 'adaptive unigram', 'trigram', '5-gram']


def make_proteins(seed):
  rng = np.random.default_rng(seed)
  letters = np.array(list(vocab.STANDARD_RESIDUES))
  return from_sequences(
    {f'{seed}-{n}': ''.join(rng.choice(letters, n)) for n in (9, 20, 40)}
  )


class FakeData:
  name, max_len, fingerprint = 'fake/1.0.0', 16, 'abc'

  def __init__(self, *splits):
    self.splits = {split: (3, 69) for split in splits}
    self._proteins = {s: make_proteins(i) for i, s in enumerate(splits)}
    self.proteins = self._proteins.__getitem__

  def eval_batches(self, proteins):
    return EvalBatches(proteins, batch_size=2, max_len=16)


class FakeLM:
  objective = 'causal'

  def __init__(self, attention):
    self.attention_fns = (attention,)


class FakeBERT(FakeLM):
  objective = 'masked'


def constant_nll(params, batch, mask_BL):
  assert (mask_BL is None) == (params > 0)  # masked fakes have params < 0
  nll_BL = np.full(batch.tokens.shape, abs(params), np.float32)
  return TokenScores(nll_BL, nll_BL > 0, batch.weights)


@pytest.fixture
def run(monkeypatch, tmp_path):
  """evaluate() on a fake; its nll is the step, its attention the binding."""
  data = FakeData('train', 'validation', 'test')

  def evaluate_fake(step=2, bindings=('exact',), model_cls=FakeLM, **kwargs):
    def load(work_dir, step, gin_bindings):
      sign = 1 if model_cls is FakeLM else -1
      return types.SimpleNamespace(
        step=int(step),
        graphdef=gin_bindings[0],
        metadata={'data_fingerprint': 'abc'},
        weights=sign * float(step),
        needs_calibration=False,
        model=model_cls(types.SimpleNamespace(__name__=gin_bindings[0])),
        open_data=lambda: data,
        make_score_step=lambda: constant_nll,
      )

    monkeypatch.setattr(loading, 'load', load)
    monkeypatch.setattr(checkpoint, 'steps', lambda work_dir: [1, 2, 3])
    monkeypatch.setattr(checkpoint, 'verify', lambda work_dir, step: None)
    return evaluate.evaluate(tmp_path, step, gin_bindings=bindings, **kwargs)

  return evaluate_fake


def test_model_and_baselines_have_a_row_each(run, tmp_path):
  rows, paths = run()
  assert [row['name'] for row in rows] == [*BASELINES, 'FakeLM']
  np.testing.assert_allclose(rows[0]['residue_perplexity'], 25)
  np.testing.assert_allclose(rows[-1]['residue_perplexity'], np.exp(2))
  assert {row['num_residues'] for row in rows} == {69}
  assert sorted(path.name for path in paths) == [
    'accuracy_test_exact.png',
    'evaluation.csv',
    'evaluation.json',
  ]
  assert all(path.is_file() for path in paths)


def test_metrics_of_the_run_give_a_learning_curve(run, tmp_path):
  record = {'step': 1, 'validation/residue_perplexity': 18.0}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(record) + '\n')
  assert tmp_path / 'learning_curve.png' in run()[1]


def test_all_steps_have_a_row_each(run):
  rows, _ = run(step='all')
  steps = {row['step']: row['residue_perplexity'] for row in rows[5:]}
  assert list(steps) == [1, 2, 3]
  np.testing.assert_allclose(list(steps.values()), np.exp([1, 2, 3]))


def test_another_attention_and_another_step_add_rows(run, tmp_path):
  run()
  run(step=3)
  rows, _ = run(bindings=('softmax',))
  models = [row for row in rows if row['step'] is not None]
  assert [row['attention'] for row in models] == ['exact', 'softmax']
  assert {row['step'] for row in models} == {2}  # step 3 is kept, not shown
  assert len(evaluation_table.merge_rows(tmp_path, [])) == len(BASELINES) + 3


def test_masked_model_stands_beside_the_baselines_without_context(run):
  rows, _ = run(model_cls=FakeBERT)
  assert [row['name'] for row in rows] == ['uniform', 'unigram', 'FakeBERT']
  np.testing.assert_allclose(rows[0]['masked_residue_perplexity'], 25)
  for row in rows:
    assert row['objective'] == 'masked' and row['num_residues'] == 10
    assert row['residue_perplexity'] is None and row['perplexity'] is None


def test_an_unknown_split_is_named_before_anything_is_written(run, tmp_path):
  with pytest.raises(ValueError, match="no split 'tset'.*validation, test"):
    run(splits=['tset'])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'fn, name',
  [
    (ExactAttention(), 'exact'),
    (make_fast_softmax_attention(), 'softmax(nb_features=256)'),
    (
      make_fast_softmax_attention(
        nb_features=64, redraw_features=False, unidirectional=True, seed=3
      ),
      'softmax(nb_features=64, seed=3)',
    ),
    (make_fast_generalized_attention(), 'generalized(relu)'),
    (
      make_fast_generalized_attention(kernel_fn='jrequ', kernel_epsilon=0.5),
      'generalized(jrequ, kernel_epsilon=0.5)',
    ),
  ],
)
def test_attention_name_tells_what_changes_the_scores(fn, name):
  assert evaluate.attention_name((fn,)) == name


def test_hybrid_names_its_pattern():
  assert evaluate.attention_name((len, ExactAttention())) == 'len + exact'


def test_command_without_checkpoint_says_so_in_one_line(tmp_path):
  command = [sys.executable, '-m', 'protein_lm.evaluate']
  result = subprocess.run(
    [*command, f'--work_dir={tmp_path}'], capture_output=True, text=True
  )
  assert result.returncode == 1
  assert result.stderr.startswith('error: no checkpoint in')
  assert result.stderr.count('\n') == 1 and not list(tmp_path.iterdir())


def test_a_step_of_another_attention_is_scored_with_its_own(
  run, monkeypatch, tmp_path
):
  """A run may go on with another attention: each step has its score_step."""

  def score_step_of(step):
    def score_step(params, batch, mask_BL):
      nll_BL = np.full(batch.tokens.shape, 10.0 * step, np.float32)
      return TokenScores(nll_BL, nll_BL > 0, batch.weights)

    return score_step

  run()  # puts the fakes in place
  fake_load = loading.load

  def load(work_dir, step, gin_bindings):
    loaded = fake_load(work_dir, step, gin_bindings)
    loaded.graphdef = step
    loaded.make_score_step = lambda: score_step_of(step)
    return loaded

  monkeypatch.setattr(loading, 'load', load)
  rows, _ = evaluate.evaluate(tmp_path, 'all', ['test'], ('exact',))
  found = {
    r['step']: np.log(r['residue_perplexity']) for r in rows if r['step']
  }
  assert found == pytest.approx({1: 10, 2: 20, 3: 30})


def test_other_data_than_that_of_training_is_told(run, monkeypatch, capsys):
  monkeypatch.setattr(FakeData, 'fingerprint', 'other')
  run()
  assert 'is not the data of training' in capsys.readouterr().out


def test_no_split_to_evaluate_is_one_sentence(run):
  with pytest.raises(ValueError, match='no split to evaluate'):
    run(splits=[])
