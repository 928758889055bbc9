"""Spikes: what they are, what they are not, and what they leave behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import spikes

RULE = spikes.Rule(loss_factor=3.0, grad_norm_factor=10.0, after_steps=10)


def judged(losses, grad_norms=None, rule=RULE):
  """Which of these steps are spikes, and the SpikeStats at the end."""
  if grad_norms is None:
    grad_norms = np.ones(len(losses))

  def step(stats, numbers):
    spike = spikes.is_spike(rule, stats, *numbers)
    new = spikes.update(stats, *numbers)
    stats = jax.tree.map(lambda n, o: jnp.where(spike, o, n), new, stats)
    return stats, spike

  numbers = (np.float32(losses), np.float32(grad_norms))
  stats, found = jax.lax.scan(step, spikes.init(), numbers)
  return np.flatnonzero(found).tolist(), stats


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_a_hundredfold_loss_is_a_spike_each_time_it_comes(scale):
  losses = np.full(40, scale)
  losses[[20, 21, 30]] *= 100
  assert judged(losses)[0] == [20, 21, 30]


def test_a_hundredfold_gradient_is_a_spike():
  grad_norms = np.ones(40)
  grad_norms[20] = 100
  assert judged(np.ones(40), grad_norms)[0] == [20]


def test_a_hundred_means_are_a_spike_whatever_was_before():
  """Even where a loss fell so far that its deviation is mostly history."""
  losses = np.geomspace(1e4, 1e-4, 200)
  _, stats = judged(losses)
  assert spikes.is_spike(RULE, stats, 100 * stats.loss.mean, 0.0)


def test_falling_losses_and_wobbling_gradients_are_none():
  generator = np.random.default_rng(0)
  losses = 3 * np.exp(-np.arange(500) / 50) + 0.5
  losses *= generator.lognormal(0, 0.2, 500)
  grad_norms = generator.lognormal(0, 0.5, 500)
  assert judged(losses, grad_norms)[0] == []


def test_batches_that_differ_by_more_than_the_factor_are_none():
  losses = np.tile([0.1, 0.1, 0.1, 1.0], 50)  # four times the mean
  assert judged(losses)[0] == []


def test_a_spike_leaves_no_trace():
  losses = np.linspace(3, 2, 40)
  with_spike = np.insert(losses, 30, 1000.0)
  jax.tree.map(
    np.testing.assert_array_equal, judged(losses)[1], judged(with_spike)[1]
  )


def test_nothing_is_judged_before_there_is_anything_to_compare_with():
  losses = np.ones(12)
  losses[9] = 1000
  assert judged(losses)[0] == []


def test_none_watches_nothing():
  losses = np.ones(40)
  losses[20] = 1000
  assert judged(losses, losses, spikes.Rule(None, None, 10))[0] == []


def test_averages_are_exact_at_first():
  losses = np.random.default_rng(0).uniform(1, 2, 50)
  _, stats = judged(losses)
  assert stats.num_steps == 50
  assert float(stats.loss.mean) == pytest.approx(losses.mean())
  assert float(stats.loss.square) == pytest.approx((losses**2).mean())


@pytest.mark.parametrize(
  'rule, words',
  [
    (spikes.Rule(1.0, None, 10), 'spike_loss_factor must be greater than 1'),
    (spikes.Rule(None, None, 0), 'spike_after_steps must be at least 1, got 0'),
  ],
)
def test_rules_that_skip_ordinary_steps_are_refused(rule, words):
  with pytest.raises(ValueError, match=words):
    rule.check()
