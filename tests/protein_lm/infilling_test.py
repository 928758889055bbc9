"""Gaps: filled with what the model says, the rest untouched."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import infilling, models, train_step, vocab

GIVEN = 'MK____LLVXA'


def load(cls=models.FlaxBERT, **options):
  """Stands for a checkpoint."""
  model = cls(
    attention_fn=make_fast_softmax_attention(nb_features=8),
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=1,
    **{'position_embedding': 'rotary', 'vocab_size': 33, **options},
    rngs=nnx.Rngs(0),
  )
  model.output.kernel[...] *= 20  # far from uniform
  model.output.bias[...] = jnp.zeros(33).at[20:].set(3.0)  # never drawn
  graphdef, params = train_step.split_model(model)
  return types.SimpleNamespace(
    model=model,
    graphdef=graphdef,
    weights=train_step.Weights(params),
    needs_calibration=False,
  )


@pytest.fixture(scope='module')
def loaded():
  return load()


@pytest.fixture(scope='module')
def samples(loaded):
  return infilling.infill(loaded, GIVEN, 5, seed=3, batch_size=2)


def log_p_of(loaded, sequence):
  """Log-probabilities at each residue; _ is MASK."""
  letters = '<' + sequence.replace('_', '*') + '>'
  ids = np.array([[vocab.TOKENS.index(letter) for letter in letters]])
  return jax.nn.log_softmax(jax.jit(loaded.model)(ids))[0, 1:-1]


def test_gaps_hold_standard_residues_and_the_rest_is_kept(samples):
  for sample in samples:
    assert sample.sequence[:2] + sample.sequence[6:] == 'MKLLVXA'
    assert sample.drawn == sample.sequence[2:6]
    assert set(sample.drawn) <= set(vocab.STANDARD_RESIDUES)
  assert len({sample.sequence for sample in samples}) > 1


@pytest.mark.parametrize('index', [0, 3])
def test_a_sample_is_the_same_alone_and_among_others(loaded, samples, index):
  (alone,) = infilling.infill(
    loaded, GIVEN, 1, seed=3, batch_size=2, first=index
  )
  assert alone.index == index and alone.sequence == samples[index].sequence
  np.testing.assert_array_equal(
    alone.token_log_probs, samples[index].token_log_probs
  )


def test_one_gap_has_the_log_probability_of_the_model(loaded):
  (sample,) = infilling.infill(loaded, 'MKA_', batch_size=2)
  letter = vocab.RESIDUES.index(sample.drawn)
  expected = log_p_of(loaded, 'MKA_')[3, letter]
  np.testing.assert_allclose(sample.log_prob, expected, atol=1e-5)
  np.testing.assert_allclose(sample.per_residue, expected, atol=1e-5)


def test_the_most_certain_gap_is_filled_first(loaded):
  (sample,) = infilling.infill(loaded, GIVEN, temperature=0, batch_size=2)
  letters = list(GIVEN)
  while '_' in letters:
    log_p_LV = log_p_of(loaded, ''.join(letters))[:, :20]
    gaps = [place for place, letter in enumerate(letters) if letter == '_']
    place = max(gaps, key=lambda place: log_p_LV[place].max())
    letters[place] = vocab.RESIDUES[int(log_p_LV[place].argmax())]
  assert sample.sequence == ''.join(letters)


def test_after_sweeps_each_gap_is_the_most_probable_given_the_others(loaded):
  (sample,) = infilling.infill(
    loaded, GIVEN, temperature=0, num_sweeps=3, batch_size=2
  )
  for place in range(2, 6):
    masked = sample.sequence[:place] + '_' + sample.sequence[place + 1 :]
    best = int(log_p_of(loaded, masked)[place, :20].argmax())
    assert sample.sequence[place] == vocab.RESIDUES[best]


def test_residues_are_counted_from_0(loaded):
  counts = []
  infilling.infill(
    loaded, GIVEN, 3, num_sweeps=1, batch_size=2, after_pass=counts.append
  )
  assert counts[0] == 0 and sum(counts) == 3 * 4 * 2


def test_weights_that_are_not_finite_are_refused(loaded):
  broken = types.SimpleNamespace(**vars(loaded))
  params = jax.tree.map(lambda x: x * jnp.nan, loaded.weights.params)
  broken.weights = train_step.Weights(params)
  with pytest.raises(FloatingPointError, match='no finite logits'):
    infilling.infill(broken, GIVEN, batch_size=2)


@pytest.mark.parametrize(
  'sequence, settings, message',
  [
    ('MKA', {}, 'the sequence has no gap: write _ for each residue'),
    ('', {}, 'the sequence has no gap'),
    ('M_J', {}, "'J' at position 3 is no residue"),
    ('M_A', {'num_sweeps': -1}, 'num_sweeps must be at least 0, got -1'),
    ('M_A', {'num_samples': 0}, 'num_samples must be'),
    ('M_A', {'top_p': 2.0}, 'top_p must be'),
  ],
)
def test_what_is_wrong_is_named(loaded, sequence, settings, message):
  with pytest.raises(ValueError, match=message):
    infilling.infill(loaded, sequence, **settings)


def test_a_causal_model_is_refused():
  with pytest.raises(ValueError, match='FlaxLM fills no gaps'):
    infilling.infill(load(models.FlaxLM), GIVEN)


def test_a_learned_table_bounds_the_length():
  loaded = load(position_embedding='learned', max_len=8)
  with pytest.raises(ValueError, match='11 residues .* beyond the 8 learned'):
    infilling.infill(loaded, GIVEN)
