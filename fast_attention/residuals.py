"""The name of what an attention computes and its backward pass needs.

A rematerialised layer (jax.checkpoint) may keep what bears it, so that no
attention is computed and no projection drawn twice:

    jax.checkpoint_policies.save_only_these_names(residuals.NAME)
"""

import jax
from jax.ad_checkpoint import checkpoint_name

NAME = 'attention_result'


def named(tree):
  """The arrays of a tree, under the name."""
  return jax.tree.map(lambda x: checkpoint_name(x, NAME), tree)
