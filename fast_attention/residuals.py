"""The name under which an attention's results are kept for the backward pass.

A rematerialised layer (jax.checkpoint) may keep what bears it, so that no
attention is computed twice:

    jax.checkpoint_policies.save_only_these_names(residuals.NAME)
"""

import jax
from jax.ad_checkpoint import checkpoint_name

NAME = 'attention_result'


def named(tree):
  """The arrays of a tree, under the name."""
  return jax.tree.map(lambda x: checkpoint_name(x, NAME), tree)
