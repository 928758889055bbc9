"""The paired bootstrap of two models, and what it refuses."""

import contextlib
import json

import numpy as np
import pytest
from absl.testing import flagsaver

from protein_lm import cli, compare, config, loading, models
from protein_lm import evaluation_proteins as choice
from protein_lm.proteins import from_sequences
from protein_lm.scorer import Scorer
from protein_lm.scores import Scores

SEQUENCES = {f'P{i}': 'ACDEFGHIKL'[: 3 + i % 7] for i in range(30)}


@pytest.fixture
def pair(make_loaded, monkeypatch):
  """Makes compare() of two fakes: nats of B are those of A and a difference."""
  proteins = from_sequences(SEQUENCES)
  hardness_T = 2 + np.random.default_rng(0).random(len(proteins.residues)) * 4

  def make(difference=0.0, kinds=(models.FlaxLM, models.FlaxLM)):
    loaded = {name: make_loaded(x) for name, x in zip('ab', kinds, strict=True)}
    monkeypatch.setattr(loading, 'load', lambda name, *_: loaded[name])
    monkeypatch.setattr(config, 'isolated', contextlib.nullcontext)
    monkeypatch.setattr(
      choice,
      'choose_proteins',
      lambda *_: (None, 'fake', {'test': proteins}),
    )

    def score(scorer, proteins, k=0):
      nll_T = hardness_T + difference * (scorer.loaded is loaded['b'])
      return Scores(nll_T, np.ones(len(nll_T), bool), nll_T > 0)

    monkeypatch.setattr(Scorer, 'score', score)
    return compare.compare('a', 'b')

  return make


def test_a_constant_difference_has_no_spread(pair):
  (found,) = pair(0.1)
  np.testing.assert_allclose(
    [found.difference, found.low, found.high], -0.1, rtol=1e-5
  )
  assert found.share_a_better == 1 and found.num_clusters == 30
  assert 'A is better in 100.0% of the draws' in str(found)


def test_a_model_is_as_good_as_itself(pair):
  (found,) = pair()
  assert found.difference == found.low == found.high == 0
  assert found.nats_a == found.nats_b


def test_causal_and_masked_are_not_compared(pair):
  with pytest.raises(ValueError, match='is causal and .* is masked'):
    pair(kinds=(models.FlaxLM, models.FlaxBERT))


def run(capsys, *names, **flags):
  """Exit status and standard error of the command."""
  defaults = dict(out=None, overwrite=False, step_a='latest', step_b='latest')
  values = defaults | dict(
    splits=None, fasta=None, gin_bindings=[], batch_size=None, num_devices=None
  )
  with pytest.raises(SystemExit) as caught:
    main = cli.exits_cleanly(compare._main, takes_arguments=True)
    with flagsaver.flagsaver(**values | flags):
      main(['compare', *names])
  return caught.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True, scope='module')
def _flags():
  """Defines the flags without running."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cli, 'run', lambda *args, **kwargs: None)
    saved = flagsaver.save_flag_values()
    compare.main()
    compare.flags.FLAGS.mark_as_parsed()
  yield
  for name in set(compare.flags.FLAGS) - set(saved):
    delattr(compare.flags.FLAGS, name)


def test_two_folders_are_named(capsys):
  code, text = run(capsys, 'a')
  assert code == 1 and text.startswith('error: name two folders')
  assert text.endswith('got 1.\n')


def test_a_folder_without_checkpoint_is_one_sentence(capsys, tmp_path):
  code, text = run(capsys, str(tmp_path), str(tmp_path))
  assert code == 1 and text.startswith('error: no checkpoint in')
  assert text.count('\n') == 1


def test_splits_exclude_a_file(capsys):
  code, text = run(capsys, 'a', 'b', splits=['test'], fasta='x')
  assert (code, text.count('\n')) == (1, 1) and '--fasta exclude' in text


def test_a_step_is_a_number_or_a_word(capsys):
  code, text = run(capsys, 'a', 'b', step_b='all')
  assert code == 1 and '--step_b is a number, latest or best' in text


def test_an_output_that_exists_is_kept(capsys, tmp_path):
  out = tmp_path / 'x.json'
  out.write_text('mine')
  code, text = run(capsys, 'a', 'b', out=str(out))
  assert code == 1 and 'choose another name' in text
  assert out.read_text() == 'mine'


def test_rows_are_written(pair, tmp_path, capsys):
  pair(0.1)  # puts the fakes in place
  out = tmp_path / 'x.json'
  with flagsaver.flagsaver(out=str(out), gin_bindings=[]):
    compare._main(['compare', 'a', 'b'])
  (row,) = json.loads(out.read_text())
  assert row['split'] == 'test' and row['share_a_better'] == 1
