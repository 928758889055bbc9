"""A run ends when its validation loss has not fallen for long enough."""

import json
import math

import pytest

from protein_lm.early_stop import Best, EarlyStop


def feed(rule, losses, best=Best()):  # noqa: B008
  """What is known after these losses, at steps 10, 20 ..."""
  for i, loss in enumerate(losses):
    best = rule.update(best, 10 * (i + 1), loss)
  return best


def test_by_default_a_run_never_ends_early():
  rule = EarlyStop()
  assert not rule.is_due(feed(rule, [1.0] * 99))


def test_patience_ends():
  rule = EarlyStop(patience_evals=2)
  assert not rule.is_due(feed(rule, [3.0, 2.0, 2.5]))
  assert rule.is_due(feed(rule, [3.0, 2.0, 2.5, 2.0]))


def test_progress_renews_patience():
  rule = EarlyStop(patience_evals=2)
  assert not rule.is_due(feed(rule, [3.0, 3.5, 2.9, 3.0]))


def test_small_steps_add_up_to_progress():
  rule = EarlyStop(patience_evals=9, min_delta=0.15)
  assert feed(rule, [3.0, 2.9]).num_evals_since == 1
  assert feed(rule, [3.0, 2.9, 2.8]).num_evals_since == 0


def test_the_best_is_the_lowest_whatever_counts_as_progress():
  best = feed(EarlyStop(patience_evals=9, min_delta=1.0), [3.0, 2.9, 2.95])
  assert (best.loss, best.step) == (2.9, 20)


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_progress(loss):
  rule = EarlyStop(patience_evals=2)
  assert rule.is_due(feed(rule, [loss, loss]))
  assert feed(rule, [3.0, loss]).loss == 3.0


def test_it_goes_on_from_metadata_bit_for_bit():
  rule = EarlyStop(patience_evals=3)
  losses = [3.0, 0.1 + 0.2, 1.0, 1 / 3]
  half = Best(*json.loads(json.dumps(list(feed(rule, losses[:2])))))
  rest = losses[2:]
  for i, loss in enumerate(rest):
    half = rule.update(half, 10 * (i + 3), loss)
  assert half == feed(rule, losses)


@pytest.mark.parametrize(
  'arguments',
  [{'patience_evals': 0}, {'min_delta': -1}, {'min_delta': math.nan}],
)
def test_numbers_that_make_no_rule_are_refused(arguments):
  (name,) = arguments
  with pytest.raises(ValueError, match=f'EarlyStop.{name} must be'):
    EarlyStop(**arguments)
