"""Scores against the model read one sequence, or one mask, at a time."""

import dataclasses
import functools
import math
import types

import jax
import numpy as np
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import (
  batches,
  loading,
  models,
  objectives,
  scoring,
  train_step,
  vocab,
)

WILD = 'MKTAYIAKQRQISF'
MAX_LEN = 24


def make_loaded(cls, attention_fn=None, **options):
  model = cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=1,
    max_len=MAX_LEN,
    rngs=nnx.Rngs(0),
    **options,
  )
  graphdef, params = train_step.split_model(model)
  params = jax.tree.map(lambda x: 3 * x, params)  # far from uniform
  return loading.LoadedModel(
    'run',
    1,
    graphdef,
    params,
    (),
    '',
    {'max_len': MAX_LEN, 'batch_size': 4},
    objectives.make_objective(cls.objective),
    {},
  )


@pytest.fixture(scope='module')
def causal():
  return make_loaded(models.FlaxLM, make_fast_softmax_attention(nb_features=8))


@pytest.fixture(scope='module')
def masked():
  return make_loaded(models.FlaxBERT)


def log_probs(loaded, letters):
  """[L, V] of one row, read alone."""
  ids = [vocab.TOKENS.index(letter) for letter in letters]
  logits_BLV = _model(loaded.graphdef, loaded.params, np.array([ids], np.int32))
  return jax.nn.log_softmax(logits_BLV[0])


@functools.partial(jax.jit, static_argnums=0)
def _model(graphdef, params, tokens):
  return train_step.merge_model(graphdef, params)(tokens)


def log_likelihood(loaded, sequence):
  """Residues, and EOS."""
  each = log_probs(loaded, f'<{sequence}>')
  ids = [vocab.TOKENS.index(letter) for letter in f'{sequence}>']
  nats = [float(each[t, i]) for t, i in enumerate(ids)]
  return sum(nats[:-1]), nats[-1]


def masked_log_probs(loaded, sequence, residue):
  shown = f'{sequence[:residue]}*{sequence[residue + 1 :]}'
  return log_probs(loaded, f'<{shown}>')[residue + 1]


def test_log_likelihood_of_sequences(causal):
  rows = scoring.score_sequences(causal, {'a': WILD, 'b': 'MK', 'c': WILD})
  assert [row['id'] for row in rows] == ['a', 'b', 'c']
  for row, sequence in zip(rows, (WILD, 'MK', WILD), strict=True):
    residues, eos = log_likelihood(causal, sequence)
    assert row['length'] == row['num_scored'] == len(sequence)
    assert row['log_likelihood'] == pytest.approx(residues, abs=1e-4)
    assert row['eos_log_likelihood'] == pytest.approx(eos, abs=1e-4)
    mean = residues / len(sequence)
    assert row['perplexity'] == pytest.approx(math.exp(-mean), rel=1e-4)


def test_pseudo_log_likelihood_masks_one_at_a_time(masked):
  (row,) = scoring.score_sequences(masked, ['MKTXA'], batch_size=2)
  expected = sum(
    float(masked_log_probs(masked, 'MKTXA', i)[vocab.RESIDUES.index(letter)])
    for i, letter in enumerate('MKTXA')
    if letter != 'X'
  )
  assert row['pseudo_log_likelihood'] == pytest.approx(expected, abs=1e-4)
  assert row['num_scored'] == 4
  assert not [name for name in row if name.startswith('log_')]


def test_likelihood_is_a_ratio_and_takes_indels(causal):
  texts = ['K2R:I6V', 'WT', WILD[:3] + WILD[4:], WILD + 'AA']
  scores, strategy = scoring.score_variants(causal, WILD, texts)
  assert strategy == 'likelihood'
  wild = sum(log_likelihood(causal, WILD))
  for score, sequence in zip(
    scores, ['MRTAYVAKQRQISF', WILD, *texts[2:]], strict=True
  ):
    expected = sum(log_likelihood(causal, sequence)) - wild
    assert score == pytest.approx(expected, abs=1e-4)


def test_masked_marginal_masks_each_place_of_the_wild_type(masked):
  scores, strategy = scoring.score_variants(
    masked, WILD, ['K25R:I29V', 'WT', 'M24A'], offset=23
  )
  assert strategy == 'masked-marginal'

  def gain(residue, mutant):
    log_probs_V = masked_log_probs(masked, WILD, residue)
    wild = vocab.RESIDUES.index(WILD[residue])
    return float(log_probs_V[vocab.RESIDUES.index(mutant)] - log_probs_V[wild])

  expected = [gain(1, 'R') + gain(5, 'V'), 0, gain(0, 'A')]
  np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize('name, shift', [('causal', 0), ('masked', 1)])
def test_wild_type_marginal_is_one_unmasked_pass(request, name, shift):
  loaded = request.getfixturevalue(name)
  scores, strategy = scoring.score_variants(
    loaded, WILD, ['I6V'], strategy='wild-type-marginal'
  )
  assert strategy == 'wild-type-marginal'
  log_probs_V = log_probs(loaded, f'<{WILD}>')[5 + shift]
  expected = log_probs_V[vocab.RESIDUES.index('V')]
  expected -= log_probs_V[vocab.RESIDUES.index('I')]
  np.testing.assert_allclose(scores, [expected], atol=1e-4)


def test_pseudo_likelihood_takes_indels(masked):
  scores, _ = scoring.score_variants(
    masked, 'MKTA', ['MKT'], strategy='pseudo-likelihood'
  )
  rows = scoring.score_sequences(masked, ['MKTA', 'MKT'])
  wild, mutant = (row['pseudo_log_likelihood'] for row in rows)
  np.testing.assert_allclose(scores, [mutant - wild], atol=1e-4)


def test_a_long_protein_is_read_in_the_window_around_a_place(masked):
  long = WILD * 4
  scores, _ = scoring.score_variants(masked, long, ['K30G'])
  first = 30 - MAX_LEN // 2  # of the tokens, BOS being 0
  shown = f'<{long[:29]}*{long[30:]}>'[first : first + MAX_LEN]
  log_probs_V = log_probs(masked, shown)[30 - first]
  expected = log_probs_V[vocab.RESIDUES.index('G')]
  expected -= log_probs_V[vocab.RESIDUES.index(long[29])]
  np.testing.assert_allclose(scores, [expected], atol=1e-4)


def test_windows_of_a_causal_model_are_those_of_evaluation(causal):
  long = WILD * 4
  (row,) = scoring.score_sequences(causal, [long])
  scores, _ = scoring.score_variants(
    causal, long, ['K30G'], strategy='wild-type-marginal'
  )
  first = MAX_LEN // 2  # windows are 0, 12, ...: that of 12 first reaches 30
  log_probs_V = log_probs(causal, f'<{long}>'[first : first + MAX_LEN])
  log_probs_V = log_probs_V[30 - first - 1]
  gain = log_probs_V[vocab.RESIDUES.index('G')]
  gain -= log_probs_V[vocab.RESIDUES.index(long[29])]
  np.testing.assert_allclose(scores, [gain], atol=1e-4)
  assert np.isfinite(row['log_likelihood'])


def test_the_batch_size_changes_nothing(causal):
  texts = ['K2R', 'T3A', 'WT', 'I6V', WILD[2:]]
  few, many = (
    scoring.score_variants(causal, WILD, texts, batch_size=size)[0]
    for size in (1, 3)
  )
  np.testing.assert_allclose(few, many, atol=1e-4)


def test_the_cost_is_told(masked):
  variants = [
    scoring.variants_lib.read(text, WILD) for text in ('K2R:I6V', 'K2M', 'WT')
  ]
  passes = {
    strategy: scoring.num_passes(variants, strategy, WILD)
    for strategy in (*scoring.STRATEGIES['masked'], 'likelihood')
  }
  assert list(passes.values()) == [2, 1, 3 * len(WILD), 3]


@pytest.mark.parametrize(
  'name, kwargs, message',
  [
    ('causal', {'strategy': 'masked_marginal'}, 'choose from auto, likelihood'),
    ('masked', {'strategy': 'likelihood'}, 'none of FlaxBERT, a masked model'),
    ('masked', {'variants': [WILD[1:]]}, 'use --strategy=pseudo-likelihood'),
    ('causal', {'variants': ['A2G']}, 'expects A at position 2'),
    ('causal', {'wild_type': ''}, 'empty'),
    ('causal', {'max_len': 0}, 'max_len'),
  ],
)
def test_refused(request, name, kwargs, message):
  kwargs = {'wild_type': WILD, 'variants': ['K2R'], **kwargs}
  with pytest.raises(ValueError, match=message):
    scoring.score_variants(request.getfixturevalue(name), **kwargs)


def test_a_sequence_that_is_none_is_named(causal):
  with pytest.raises(ValueError, match="sequence b: '1' at position 2"):
    scoring.score_sequences(causal, {'a': 'MK', 'b': 'M1'})


def test_a_diverged_model_is_named(causal):
  params = jax.tree.map(lambda x: x * np.nan, causal.params)
  loaded = dataclasses.replace(causal, params=params)
  with pytest.raises(FloatingPointError, match='training has diverged'):
    scoring.score_sequences(loaded, ['MK'])


class WithData(loading.LoadedModel):
  """Opens data of one batch that is always the same."""

  def open_data(self):
    batch = batches.empty_batch(1, MAX_LEN)
    batch.tokens[0] = vocab.encode('MKTAYIAKQRQISFVKSHFSRQLE')
    batch.segment_ids[0] = 1
    return types.SimpleNamespace(train_batch=lambda seed, step: batch)


@pytest.mark.slow
def test_statistics_are_measured_for_the_attention_that_needs_them():
  attention = make_fast_softmax_attention(
    nb_features=8, features_type='centred_aderf'
  )
  loaded = make_loaded(models.FlaxLM, attention)
  loaded = WithData(**vars(loaded))
  calibrated = scoring.ready(loaded)
  assert loaded.needs_calibration and not calibrated.needs_calibration
  found, expected = (
    scoring.score_variants(its, WILD, ['K2R'])[0]
    for its in (loaded, calibrated)
  )
  np.testing.assert_array_equal(found, expected)
