"""Positions restart with segments; rotations know only differences."""

import jax
import jax.numpy as jnp
import numpy as np

from protein_lm import positions


def test_positions_restart_with_each_run_of_equal_ids():
  segment_ids_BL = jnp.array([[1, 1, 2, 2, 2, 0], [3, 1, 1, 3, 3, 0]])
  found = positions.positions_in_segments(segment_ids_BL)
  np.testing.assert_array_equal(found, [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 0]])


def test_sinusoid_starts_at_sine_0_and_cosine_1():
  table = positions.sinusoid(jnp.arange(3), 4)
  np.testing.assert_allclose(table[0], [0, 0, 1, 1])
  np.testing.assert_allclose(table[2, 0], np.sin(2.0), rtol=1e-6)


def test_rotary_frequencies_can_be_rounded_to_half_precision():
  exact = positions.rotary_frequencies(8)
  rounded = positions.rotary_frequencies(8, 'float16')
  assert rounded.dtype == np.float32
  np.testing.assert_array_equal(rounded, np.float16(exact))
  assert np.any(rounded != exact)


def test_rotary_products_depend_on_the_difference_alone(rng):
  q_rng, k_rng = jax.random.split(rng)
  query = jax.random.normal(q_rng, (1, 1, 1, 8))
  key = jax.random.normal(k_rng, (1, 1, 1, 8))

  def product(q_position, k_position):
    q, k = (
      positions.rotate(x, positions.rotation(jnp.array([[position]]), 8))
      for x, position in ((query, q_position), (key, k_position))
    )
    return jnp.sum(q * k)

  np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)
  assert abs(product(7, 3) - product(7, 4)) > 1e-3
