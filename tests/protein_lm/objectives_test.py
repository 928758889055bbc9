"""Objectives: which tokens count, what is hidden, and from whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import objectives, vocab
from protein_lm.data import Batch


def make_batch(tokens, segment_ids=None):
  tokens = jnp.asarray(tokens, jnp.int32)
  if segment_ids is None:
    segment_ids = (tokens != vocab.PAD_ID).astype(jnp.int32)
  counted = (tokens < vocab.BOS_ID) | (tokens == vocab.EOS_ID)
  return Batch(
    tokens,
    jnp.asarray(segment_ids, jnp.int32),
    jnp.zeros_like(tokens),
    counted.astype(jnp.float32),
  )


class Oracle:
  """A model whose logits at t favour the token it saw at t, plus `shift`."""

  def __init__(self, shift=0):
    self.shift = shift

  def __call__(self, tokens, **kwargs):
    self.seen = tokens
    return 10.0 * jax.nn.one_hot((tokens + self.shift) % vocab.SIZE, vocab.SIZE)


def test_causal_scores_compare_a_token_with_the_logits_before_it():
  batch = make_batch([[25, 3, 4, 5, 26, 27]])
  scores = objectives.CausalObjective().eval_scores(Oracle(shift=1), batch)
  np.testing.assert_array_equal(
    (scores.correct & (scores.weights > 0))[0], [0, 0, 1, 1, 0, 0]
  )
  np.testing.assert_array_equal(scores.weights[0], [0, 1, 1, 1, 1, 0])


def test_the_first_residue_of_a_crop_is_not_a_target():
  batch = make_batch([[25, 3, 4, 5, 6, 7]], [[1, 1, 1, 2, 2, 2]])
  scores = objectives.CausalObjective().eval_scores(Oracle(), batch)
  np.testing.assert_array_equal(scores.weights[0], [0, 1, 1, 0, 1, 1])


def test_nll_is_over_the_full_vocabulary():
  batch = make_batch([[25, 3, 4]])
  scores = objectives.CausalObjective().eval_scores(
    lambda tokens, **kwargs: jnp.zeros((*tokens.shape, vocab.SIZE)), batch
  )
  np.testing.assert_allclose(scores.nll[0, 1:], np.log(29), rtol=1e-6)


def test_corruption_hides_15_percent_as_80_10_10(rng):
  tokens = np.random.default_rng(0).integers(0, 20, (64, 512))
  shown, chosen = objectives.corrupt(rng, make_batch(tokens), 0.15)
  shown, chosen = np.asarray(shown), np.asarray(chosen)
  assert chosen.mean() == pytest.approx(0.15, abs=0.01)
  masked = shown == vocab.MASK_ID
  changed = chosen & ~masked & (shown != tokens)
  assert masked.sum() / chosen.sum() == pytest.approx(0.8, abs=0.02)
  # A random amino acid is the old one 1 time in 20.
  assert changed.sum() / chosen.sum() == pytest.approx(0.095, abs=0.02)
  assert (shown == tokens)[~chosen].all()


def test_corruption_never_touches_bos_eos_pad_or_uncounted_letters(rng):
  ids = [vocab.BOS_ID, vocab.EOS_ID, vocab.PAD_ID, *vocab.UNCOUNTED_IDS]
  tokens = jnp.tile(jnp.asarray(ids, jnp.int32), (4, 50))
  batch = make_batch(tokens)
  batch = batch._replace(weights=(tokens == vocab.EOS_ID).astype(jnp.float32))
  shown, chosen = objectives.corrupt(rng, batch, 0.9)
  np.testing.assert_array_equal(shown, tokens)
  assert not chosen.any()


def test_evaluation_shows_every_asked_residue_as_mask():
  batch = make_batch([[25, 3, 4, 5, 26]])
  mask = jnp.array([[False, True, False, True, False]])
  oracle = Oracle()
  scores = objectives.MaskedObjective().eval_scores(oracle, batch, mask)
  np.testing.assert_array_equal(
    oracle.seen[0], [25, vocab.MASK_ID, 4, vocab.MASK_ID, 26]
  )
  np.testing.assert_array_equal(scores.weights[0], [0, 1, 0, 1, 0])


def test_the_evaluation_mask_is_a_function_of_id_and_k():
  mask = objectives.evaluation_mask('P12345', 200, 0, 0.15)
  assert mask.sum() == 30
  again = objectives.evaluation_mask('P12345', 200, 0, 0.15)
  np.testing.assert_array_equal(mask, again)
  for other in (('P12345', 1), ('P12346', 0)):
    assert (
      objectives.evaluation_mask(other[0], 200, other[1], 0.15) != mask
    ).any()
  assert objectives.evaluation_mask('P12345', 1, 0, 0.15).sum() == 1


def test_sums_count_eos_apart():
  batch = make_batch([[25, 3, 4, 26, 27]])
  scores = objectives.TokenScores(
    jnp.ones((1, 5)), jnp.ones((1, 5), bool), batch.weights
  )
  sums = objectives.sums(scores, batch.tokens)
  assert sums['num_tokens'] == sums['loss'] == 3
  assert sums['num_residues'] == sums['residue_loss'] == 2


class Bigram:
  """A model whose logits are a row of a table."""

  table = np.random.default_rng(0).normal(0, 2, (vocab.SIZE, vocab.SIZE))

  def __call__(self, tokens, **kwargs):
    return jnp.asarray(self.table, jnp.float32)[tokens]


@pytest.mark.parametrize('name', ['causal', 'masked'])
@pytest.mark.parametrize(
  'smoothing, z_loss', [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.2, 0.01)]
)
def test_training_minimises_the_formula_and_reports_the_nll(
  name, smoothing, z_loss, rng
):
  batch = make_batch(np.random.default_rng(1).integers(0, 20, (8, 40)))
  objective = objectives.make_objective(name).regularized(smoothing, z_loss)
  drawn, model_rng = objective.draw(batch, rng)
  scores = objective.train_scores(Bigram(), drawn, model_rng)
  shown = np.asarray(batch.tokens if name == 'causal' else drawn[1])
  logits = Bigram.table[shown]
  if name == 'causal':
    logits = np.roll(logits, 1, axis=1)
  log_z = np.log(np.exp(logits).sum(-1))
  log_probs = logits - log_z[..., None]
  target = np.eye(vocab.SIZE)[batch.tokens]
  spread = (1 - smoothing) * target + smoothing / vocab.SIZE
  loss = -(spread * log_probs).sum(-1) + z_loss * log_z**2
  weights = np.asarray(scores.weights)
  assert weights.sum() > 20
  assert float(objectives.training_loss(scores)) == pytest.approx(
    (loss * weights).sum(), rel=1e-5
  )
  assert float(objectives.sums(scores, batch.tokens)['loss']) == pytest.approx(
    -((target * log_probs).sum(-1) * weights).sum(), rel=1e-5
  )


def test_masked_training_asks_for_what_was_drawn_and_nothing_else(rng):
  batch = make_batch(np.random.default_rng(1).integers(0, 20, (8, 40)))
  objective = objectives.MaskedObjective(mask_rate=0.3)
  drawn, _ = objective.draw(batch, rng)
  oracle = Oracle()
  scores = objective.train_scores(oracle, drawn, None)
  corrupt_rng, _ = jax.random.split(rng)
  shown, chosen = objectives.corrupt(corrupt_rng, batch, 0.3)
  np.testing.assert_array_equal(oracle.seen, shown)
  np.testing.assert_array_equal(scores.weights, chosen)


@pytest.mark.parametrize(
  'numbers, words',
  [((1.0, 0.0), 'label_smoothing must be within'), ((0.0, -1.0), 'z_loss')],
)
def test_a_loss_that_is_none_is_refused(numbers, words):
  with pytest.raises(ValueError, match=words):
    objectives.CausalObjective().regularized(*numbers)


def test_what_predicts_no_tokens_refuses_label_smoothing():
  objective = objectives.Objective()
  assert objective.regularized(0.0, 0.0) is objective
  with pytest.raises(ValueError, match='label_smoothing=0.1 .* set both to 0'):
    objective.regularized(0.1, 0.0)


def test_a_mask_rate_outside_0_1_is_refused():
  with pytest.raises(ValueError, match='got 1.5'):
    objectives.masked_objective(1.5)
