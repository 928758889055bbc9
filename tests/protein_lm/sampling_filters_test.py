"""Filters beside plain numpy, one sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import sampling_filters as filters_lib


def random_log_p(rng, shape=(5, 21)):
  return jax.nn.log_softmax(2 * jax.random.normal(rng, shape))


def kept_by_numpy(p_A, top_k, top_p, min_p):
  """The definition: sort, cut, add up."""
  chosen = sorted(range(len(p_A)), key=lambda a: -p_A[a])[:top_k]
  total, nucleus = sum(p_A[a] for a in chosen), []
  for a in chosen:
    if sum(p_A[b] for b in nucleus) / total < top_p:
      nucleus.append(a)
  return {a for a in nucleus if p_A[a] >= min_p * max(p_A)}


@pytest.mark.parametrize(
  'top_k, top_p, min_p',
  [(None, None, None), (3, None, None), (None, 0.7, None), (None, None, 0.2)]
  + [(9, 0.8, 0.05), (1, 1.0, 0.0), (50, 1e-6, 1.0)],
)
def test_filters_keep_what_their_definition_says(rng, top_k, top_p, min_p):
  log_p_BA = random_log_p(rng)
  kept_BA = filters_lib.kept(
    log_p_BA, filters_lib.make_filters(1.0, top_k, top_p, min_p)
  )
  for p_A, kept_A in zip(np.exp(log_p_BA), np.asarray(kept_BA), strict=True):
    expected = kept_by_numpy(p_A.astype(float), top_k, top_p or 1, min_p or 0)
    assert set(np.flatnonzero(kept_A)) == expected


def test_top_k_of_equals_takes_the_first():
  kept_BA = filters_lib.kept(
    jnp.zeros((1, 5)), filters_lib.make_filters(top_k=2)
  )
  assert kept_BA.tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(rng, temperature):
  log_p_A = random_log_p(rng, (6,))
  number = 20_000
  drawn_B = filters_lib.choose(
    jnp.tile(log_p_A, (number, 1)),
    filters_lib.make_filters(temperature),
    jax.random.split(rng, number),
    3,
  )
  share_A = np.bincount(drawn_B, minlength=6) / number
  expected_A = np.exp(log_p_A / temperature)
  np.testing.assert_allclose(share_A, expected_A / expected_A.sum(), atol=0.015)


def test_temperature_0_takes_the_largest(rng):
  log_p_BA = random_log_p(rng)
  filters = filters_lib.make_filters(temperature=0)
  drawn_B = filters_lib.choose(log_p_BA, filters, jax.random.split(rng, 5), 0)
  assert drawn_B.tolist() == log_p_BA.argmax(1).tolist()


def test_what_is_impossible_is_never_drawn(rng):
  log_p_BA = jnp.tile(jnp.array([-1e4, -jnp.inf, -1e4]), (500, 1))
  filters = filters_lib.make_filters(temperature=1000.0)
  drawn_B = filters_lib.choose(log_p_BA, filters, jax.random.split(rng, 500), 0)
  assert set(drawn_B.tolist()) == {0, 2}


def test_penalty_divides_and_leaves_eos_alone(rng):
  log_p_BA = random_log_p(rng, (1, 5))
  penalised_BA = filters_lib.penalised(
    log_p_BA, jnp.array([[-1, 2, 2, 0]]), 1.5
  )
  p_R = np.exp(np.asarray(log_p_BA[0, :4], np.float64))
  mass = p_R.sum()
  p_R[[0, 2]] /= [1.5, 1.5**2]
  expected_R = mass * p_R / p_R.sum()
  np.testing.assert_allclose(np.exp(penalised_BA[0, :4]), expected_R, rtol=1e-5)
  assert penalised_BA[0, 4] == log_p_BA[0, 4]


@pytest.mark.parametrize('penalty', [1e-3, 1.0, 1e3])
def test_penalty_of_all_residues_stays_finite(rng, penalty):
  log_p_BA = random_log_p(rng, (2, 5))
  last_BW = jnp.tile(jnp.arange(4), (2, 1))
  assert jnp.isfinite(filters_lib.penalised(log_p_BA, last_BW, penalty)).all()


@pytest.mark.parametrize(
  'name, value',
  [('temperature', -1.0), ('temperature', float('nan')), ('top_k', 0)]
  + [('temperature', 1e-9), ('top_k', 2.5), ('top_p', 0.0), ('top_p', 1.1)]
  + [('min_p', -0.1), ('min_p', 2), ('repetition_penalty', 0.0)],
)
def test_a_number_out_of_range_is_named(name, value):
  with pytest.raises(ValueError, match=f'{name} must be .*, got {value}'):
    filters_lib.make_filters(**{name: value})
