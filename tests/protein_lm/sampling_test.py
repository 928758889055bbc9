"""Samples: alone as among others, what the model says, and nothing else."""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import draw_loop, models, sampling, train_step, vocab
from protein_lm.exact_attention import exact_attention

SOFTMAX = make_fast_softmax_attention(nb_features=8)


def load(attention_fn=SOFTMAX, cls=models.FlaxLM, eos_bias=0.0, **options):
  """Stands for a checkpoint whose samples are short."""
  model = cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    **{
      'num_layers': 1,
      'position_embedding': 'rotary',
      'vocab_size': 33,
      **options,
    },
    rngs=nnx.Rngs(0),
  )
  model.output.kernel[...] *= 20  # far from uniform
  bias_V = jnp.zeros(33).at[vocab.EOS_ID].set(eos_bias)
  # Those that must never be drawn are what the model wants most.
  for unwanted in (*range(20, 26), vocab.PAD_ID, vocab.MASK_ID, 29, 32):
    bias_V = bias_V.at[unwanted].set(3.0)
  model.output.bias[...] = bias_V
  graphdef, params = train_step.split_model(model)
  return types.SimpleNamespace(
    model=model,
    graphdef=graphdef,
    weights=train_step.Weights(params),
    needs_calibration=False,
    data_arguments={'max_len': 24},
  )


@pytest.fixture(scope='module')
def loaded():
  return load()


@pytest.fixture(scope='module')
def samples(loaded):
  return draw(loaded, 10, prompt='MKT')


def draw(loaded, num_samples, **settings):
  settings = {'batch_size': 4, 'seed': 5, **settings}
  return sampling.sample(loaded, num_samples, **settings)


def assert_equal(a, b):
  assert (a.index, a.sequence, a.finished) == (b.index, b.sequence, b.finished)
  np.testing.assert_array_equal(a.token_log_probs, b.token_log_probs)


@pytest.mark.parametrize('index', [0, 5, 9])
def test_a_sample_is_the_same_alone_and_among_others(loaded, samples, index):
  (alone,) = draw(loaded, 1, prompt='MKT', first=index)
  assert_equal(alone, samples[index])


def test_fewer_samples_are_the_first_of_more(loaded, samples):
  few = draw(loaded, 3, prompt='MKT')
  assert len(few) == 3
  for a, b in zip(few, samples, strict=False):
    assert_equal(a, b)


def test_another_seed_gives_other_samples(loaded, samples):
  others = draw(loaded, 10, prompt='MKT', seed=6)
  assert {s.sequence for s in others} != {s.sequence for s in samples}


@pytest.mark.slow
def test_another_batch_size_gives_the_same_samples(loaded, samples):
  others = draw(loaded, 10, prompt='MKT', batch_size=7)
  assert [s.sequence for s in others] == [s.sequence for s in samples]


def test_only_standard_residues_follow_the_prompt(samples):
  for sample in samples:
    assert sample.sequence.startswith('MKT')
    assert set(sample.sequence) <= set(vocab.STANDARD_RESIDUES)
    assert sample.sequence == 'MKT' + sample.drawn


def test_some_end_and_the_others_are_cut(samples):
  assert {sample.finished for sample in samples} == {True, False}
  for sample in samples:
    assert sample.finished or len(sample.sequence) == 24


def test_log_probs_are_those_of_the_full_pass(loaded, samples):
  call = jax.jit(loaded.model)
  for sample in samples[:3]:
    ids = [vocab.BOS_ID, *vocab.encode(sample.sequence), vocab.EOS_ID]
    tokens_L = np.full(26, vocab.PAD_ID)
    tokens_L[: len(ids)] = ids
    log_p_LV = jax.nn.log_softmax(call(tokens_L[None]))[0]
    places = 3 + np.arange(len(sample.drawn) + sample.finished)
    expected = log_p_LV[places, tokens_L[places + 1]]
    np.testing.assert_allclose(sample.token_log_probs, expected, atol=1e-4)
    np.testing.assert_allclose(sample.log_prob, expected.sum(), atol=1e-3)
    residues = expected[: len(sample.drawn)]
    np.testing.assert_allclose(sample.per_residue, residues.mean(), atol=1e-4)


def test_none_ends_before_min_len(loaded):
  lengths = [len(s.sequence) for s in draw(loaded, 4, prompt='MKT', min_len=15)]
  assert min(lengths) >= 15


def test_min_len_0_lets_a_sample_be_empty(loaded):
  samples = draw(loaded, 32, min_len=0, batch_size=4)
  empty = [s for s in samples if not s.sequence]
  assert empty
  assert empty[0].finished and len(empty[0].token_log_probs) == 1
  assert np.isnan(empty[0].per_residue)


def test_temperature_0_takes_the_most_probable_residue(loaded):
  (sample,) = draw(loaded, 1, temperature=0, min_len=24)
  ids = [vocab.BOS_ID, *vocab.encode(sample.sequence)]
  logits_LV = jax.jit(loaded.model)(np.array([ids]))[0]
  assert logits_LV[:-1, :20].argmax(1).tolist() == ids[1:]


def test_other_settings_run_the_same_program(loaded, samples):
  programs = draw_loop._draw_chunk._cache_size()
  draw(loaded, 2, prompt='MKTA', temperature=0.5, top_k=3, top_p=0.9, seed=8)
  assert draw_loop._draw_chunk._cache_size() == programs


def test_tokens_are_counted_from_0(loaded, samples):
  counts = []
  draw(loaded, 10, prompt='MKT', after_chunk=counts.append)
  assert counts[0] == 0
  assert sum(counts) == sum(len(s.token_log_probs) for s in samples)


def test_more_tokens_than_a_chunk(loaded):
  (sample,) = draw(loaded, 1, max_len=150, min_len=150)
  assert len(sample.sequence) == len(sample.token_log_probs) == 150


def test_weights_that_are_not_finite_are_refused():
  loaded = load(cls=models.FlaxLM)
  params = jax.tree.map(lambda x: x * jnp.nan, loaded.weights.params)
  loaded.weights = train_step.Weights(params)
  with pytest.raises(FloatingPointError, match='no finite logits'):
    draw(loaded, 1)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'prompt': 'MKJ'}, "'J' at position 3 is no residue"),
    ({'prompt': 'A' * 24}, 'the prompt has 24 residues, .* .the default.'),
    ({'prompt': 'MK', 'max_len': 2}, 'leaves nothing to draw with max_len=2;'),
    ({'max_len': 0}, 'max_len must be from 1'),
    ({'min_len': 25}, 'min_len must be from 0 to max_len=24, got 25'),
    ({'num_samples': 0}, 'num_samples must be a whole number from 1'),
    ({'num_samples': 1.5}, 'num_samples must be a whole number from 1'),
    ({'batch_size': 0}, 'batch_size must be .*, got 0'),
    ({'seed': -1}, 'seed must be .*, got -1'),
    ({'seed': 2**32}, 'seed must be'),
    ({'first': -1}, 'first must be'),
    ({'temperature': -1}, 'temperature must be'),
  ],
)
def test_an_argument_out_of_range_is_named(loaded, settings, message):
  with pytest.raises(ValueError, match=message):
    draw(loaded, **{'num_samples': 1, **settings})


def test_a_learned_table_bounds_the_length():
  loaded = load(position_embedding='learned', max_len=16)
  with pytest.raises(ValueError, match='max_len=17 is beyond the 16 learned'):
    draw(loaded, 1, max_len=17)


@pytest.mark.slow
def test_a_learned_table_is_used_to_its_end():
  loaded = load(position_embedding='learned', max_len=16)
  (sample,) = draw(loaded, 1, prompt='A' * 15, min_len=16)
  assert len(sample.sequence) == 16


def test_an_attention_without_its_statistics_gets_them(loaded):
  uncalibrated = types.SimpleNamespace(**vars(loaded))
  uncalibrated.needs_calibration = True
  uncalibrated.open_data = lambda: None
  uncalibrated.calibrate = lambda batches: loaded
  assert draw(uncalibrated, 1)[0].sequence == draw(loaded, 1)[0].sequence


@pytest.mark.slow
def test_exact_attention_samples_alone_as_among_others():
  loaded = load(exact_attention())
  samples = draw(loaded, 9)
  for index in (0, 6):
    (alone,) = draw(loaded, 1, first=index)
    assert_equal(alone, samples[index])


@pytest.mark.slow
def test_penalty_avoids_repeats(loaded):
  def share(penalty):
    samples = draw(
      loaded, 8, min_len=200, max_len=200, repetition_penalty=penalty
    )
    pairs = [
      p for s in samples for p in zip(s.drawn, s.drawn[1:], strict=False)
    ]
    return np.mean([a == b for a, b in pairs])

  assert share(100.0) < 0.2 * share(1.0)


@pytest.mark.slow
def test_a_token_takes_as_long_at_4000_as_at_100():
  loaded, chunks = load(num_layers=4), []
  for _ in range(5):
    times = []
    sampling.sample(
      loaded,
      1,
      max_len=4_200,
      min_len=4_200,
      batch_size=1,
      after_chunk=lambda _, times=times: times.append(time.perf_counter()),
    )
    chunks.append(np.diff(times))
  # The fastest of 40 chunks of 64 tokens: others share this machine.
  early, late = (np.min(chunks, 0)[c : c + 8].min() for c in (1, 58))
  assert late <= 1.1 * early
