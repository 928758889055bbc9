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
from protein_lm import (
  checkpoint,
  evaluate,
  evaluation_table,
  loading,
  scorer,
  vocab,
)
from protein_lm import follow as follow_lib
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


class FakeLM:
  objective = 'causal'

  def __init__(self, attention):
    self.attention_fns = (attention,)


class FakeBERT(FakeLM):
  objective = 'masked'


def constant_scores(graphdef, objective, mesh):
  return constant_nll


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
        work_dir=str(work_dir),
        objective=None,
        data_arguments={'max_len': 16, 'batch_size': 2},
        metadata={'data_fingerprint': 'abc'},
        weights=sign * float(step),
        needs_calibration=False,
        model=model_cls(types.SimpleNamespace(__name__=gin_bindings[0])),
        open_data=lambda: data,
      )

    monkeypatch.setattr(loading, 'load', load)
    monkeypatch.setattr(scorer, '_score_step', constant_scores)
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
    'per_sequence_test.csv',
    'per_sequence_test.parquet',
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


def test_masked_model_stands_beside_baselines_that_see_what_it_sees(run):
  rows, _ = run(model_cls=FakeBERT)
  names = [row['name'] for row in rows]
  assert names == ['uniform', 'unigram', 'two-sided 5-gram', 'FakeBERT']
  np.testing.assert_allclose(rows[0]['masked_residue_perplexity'], 25)
  for row in rows:
    assert row['objective'] == 'masked' and row['num_residues'] == 5 * 10
    for name, value in row.items():
      is_causal = name.endswith(('perplexity', 'accuracy', 'ece'))
      if is_causal and not name.startswith('masked_'):
        assert value is None, name


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

  def score_step_of(step, objective, mesh):
    def score_step(params, batch, mask_BL):
      nll_BL = np.full(batch.tokens.shape, 10.0 * step, np.float32)
      return TokenScores(nll_BL, nll_BL > 0, batch.weights)

    return score_step

  run()  # puts the fakes in place
  fake_load = loading.load

  def load(work_dir, step, gin_bindings):
    loaded = fake_load(work_dir, step, gin_bindings)
    loaded.graphdef = step
    return loaded

  monkeypatch.setattr(loading, 'load', load)
  monkeypatch.setattr(scorer, '_score_step', score_step_of)
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


def test_several_steps_are_evaluated(run):
  rows, _ = run(step=[1, 3])
  assert [row['step'] for row in rows[5:]] == [1, 3]


def test_a_live_run_is_followed_and_can_be_left(run, monkeypatch, capsys):
  def follow_steps(work_dir):
    yield from (1, 2)
    raise KeyboardInterrupt

  monkeypatch.setattr(follow_lib, 'follow_steps', follow_steps)
  rows, _ = run(step='latest', follow=True)
  assert [row['step'] for row in rows[5:]] == [1, 2]
  assert 'ended by hand after 2 checkpoints' in capsys.readouterr().out


def test_an_interrupt_before_any_row_stays_one(run, monkeypatch):
  def follow_steps(work_dir):
    raise KeyboardInterrupt
    yield

  monkeypatch.setattr(follow_lib, 'follow_steps', follow_steps)
  with pytest.raises(KeyboardInterrupt):
    run(step='latest', follow=True)


def test_a_checkpoint_that_vanishes_is_passed_over(
  run, monkeypatch, tmp_path, capsys
):
  run()  # puts the fakes in place
  fake_load = loading.load

  def load(work_dir, step, gin_bindings):
    if step == 2:
      raise checkpoint.CheckpointError('deleted')
    return fake_load(work_dir, step, gin_bindings)

  monkeypatch.setattr(loading, 'load', load)
  rows, _ = evaluate.evaluate(tmp_path, 'all', ['test'], ('exact',))
  assert [row['step'] for row in rows if row['step']] == [1, 3]
  assert 'step 2 is left out: deleted' in capsys.readouterr().out


def test_a_file_is_a_split_of_its_own(run, tmp_path):
  fasta = tmp_path / 'mine.fasta'
  fasta.write_text('>a\nACDEFGHIKL\n>b\nMNPQRST\n')
  rows, paths = run(fasta=fasta)
  assert {(row['split'], row['data']) for row in rows} == {
    ('mine', 'mine.fasta')
  }
  assert [row['name'] for row in rows] == [*BASELINES, 'FakeLM']
  assert {row['num_residues'] for row in rows} == {17}
  assert tmp_path / 'per_sequence_mine.csv' in paths


def test_a_file_named_like_a_split_keeps_its_ending(run, tmp_path):
  fasta = tmp_path / 'test.fasta'
  fasta.write_text('>a\nACDEFGHIKL\n')
  rows, _ = run(fasta=fasta)
  assert {row['split'] for row in rows} == {'test.fasta'}


def test_an_empty_file_is_one_sentence_and_writes_nothing(run, tmp_path):
  (tmp_path / 'empty.fasta').write_text('')
  with pytest.raises(ValueError, match='empty.fasta'):
    run(fasta=tmp_path / 'empty.fasta')
  assert [path.name for path in tmp_path.iterdir()] == ['empty.fasta']


@pytest.mark.parametrize(
  'arguments, why',
  [
    ({'splits': ['test'], 'fasta': 'x'}, '--splits and --fasta exclude'),
    ({'attention': ['exat']}, "no attention 'exat'; the kinds are exact, soft"),
    ({'num_pseudo': 3}, 'causal FakeLM: pseudo-perplexity is of masked'),
    ({'follow': True, 'step': 3}, '--follow takes every step, got --step=3'),
  ],
)
def test_arguments_that_make_no_sense_write_nothing(
  run, tmp_path, arguments, why
):
  with pytest.raises(ValueError, match=why):
    run(**arguments)
  assert not list(tmp_path.iterdir())


def test_a_foreign_file_is_named_and_stays(run, tmp_path):
  (tmp_path / 'per_sequence_test.parquet').write_text('mine')
  with pytest.raises(ValueError, match='per_sequence_test.parquet does not'):
    run()
  assert [path.name for path in tmp_path.iterdir()] == [
    'per_sequence_test.parquet'
  ]


@pytest.mark.parametrize(
  'text, step',
  [('7', 7), ('300,100', [100, 300]), ('5,5', 5), ('best', 'best')],
)
def test_step_is_a_number_or_several_or_a_word(text, step):
  assert evaluate.parse_step(text) == step


@pytest.mark.parametrize('text', ['', 'last', '1,best', '-3', '1.5'])
def test_another_step_is_refused(text):
  with pytest.raises(ValueError, match='--step is a number, several'):
    evaluate.parse_step(text)


@pytest.mark.parametrize(
  'argument, number',
  [('true', 20), ('false', None), ('7', 7), (None, None)],
)
def test_pseudo_perplexity_needs_no_number(argument, number):
  flag = evaluate._NumProteins()
  flag.parse(argument)
  assert flag.value == number


def test_a_folder_that_cannot_be_written_to_is_told_first(run, monkeypatch):
  monkeypatch.setattr('os.access', lambda path, mode: False)
  with pytest.raises(PermissionError, match='cannot be written to'):
    run()


def test_proteins_without_a_residue_to_score_have_no_perplexity(run, tmp_path):
  (tmp_path / 'x.fasta').write_text('>a\nXXXX\n')
  rows, _ = run(fasta=tmp_path / 'x.fasta')
  assert {row['residue_perplexity'] for row in rows} == {None}
