"""Other draws change the matrices of fast attention, and nothing else."""

import numpy as np
import pytest

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import projection_draws as draws
from protein_lm.exact_attention import exact_attention
from protein_lm.proteins import from_sequences
from protein_lm.scorer import Scorer


def test_only_random_features_are_drawn():
  softmax = make_fast_softmax_attention()
  assert draws.has_projection((exact_attention(), softmax))
  assert not draws.has_projection(
    (exact_attention(), make_fast_generalized_attention())
  )
  assert draws.has_projection(
    (make_fast_generalized_attention(features_type='iid'),)
  )


def test_a_draw_is_the_seed_of_the_factory(make_loaded):
  loaded = make_loaded(
    attention_fn=(make_fast_softmax_attention(seed=3), exact_attention()),
    num_layers=2,
  )
  first, second = draws.redraw(loaded, 2).model.attention_fns
  assert first == make_fast_softmax_attention(seed=5)
  assert second == exact_attention()
  assert draws.redraw(loaded, 0).graphdef == loaded.graphdef


def test_draws_differ_and_the_own_one_does_not(make_loaded):
  loaded, proteins = make_loaded(), from_sequences({'a': 'ACDEFGHIKLMNPQRS'})
  own, same, other = (
    Scorer(x).score(proteins).nll
    for x in (loaded, draws.redraw(loaded, 0), draws.redraw(loaded, 1))
  )
  np.testing.assert_array_equal(own, same)
  assert np.abs(own - other).max() > 1e-4


def test_sample_is_of_whole_proteins_up_to_a_size():
  proteins = from_sequences({f'P{i}': 'ACDEF' for i in range(20)})
  assert len(draws.sample(proteins, 33)) == 6
  assert len(draws.sample(proteins, 2)) == 1
  assert draws.sample(proteins) == list(range(20))


@pytest.mark.parametrize('redraw, is_fixed', [(True, False), (False, True)])
def test_a_fixed_projection_is_known(redraw, is_fixed):
  fn = make_fast_softmax_attention(redraw_features=redraw)
  assert draws.is_fixed((fn,)) == is_fixed
