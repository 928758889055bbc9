"""What the definitions are built from."""

import jax.numpy as jnp
import numpy as np

from fast_attention import reference


def test_runs_of_equal_ids_are_numbered_apart():
  segment_ids_BL = jnp.array([[3, 1, 1, 3]])
  np.testing.assert_array_equal(
    reference.run_ids(segment_ids_BL), [[0, 1, 1, 2]]
  )
