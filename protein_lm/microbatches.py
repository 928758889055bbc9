"""A batch in parts, one after the other: the memory of a part is enough.

Axes: B rows of a batch, n microbatches.
"""

import jax
import jax.numpy as jnp

from protein_lm.block import StepRng, microbatch_rng


def summed(fn, batch, rng, n):
  """The sum of fn over n parts of a batch, in a loop on the device.

  Args:
    fn: (batch, rng) -> tree of sums over the rows of its batch.
    batch: tree of arrays [B, ...].
    rng: key of the step. Dropout is drawn anew in each part; the random
      features are those of the step in all of them.
    n: number of parts; 1 calls fn as it is.

  Returns:
    What fn(batch, rng) gives, but for dropout and rounding.

  Raises:
    ValueError: while tracing, if n does not divide B, or a part of B / n rows
      cannot be spread evenly over the devices that share the batch.
  """
  if n == 1:
    return fn(batch, rng)
  parts = split(batch, n)

  def add(total, inputs):
    i, part = inputs
    one = fn(part, StepRng(rng, microbatch_rng(rng, i)))
    return jax.tree.map(jnp.add, total, one), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(fn, jax.tree.map(lambda x: x[0], parts), rng),
  )
  return jax.lax.scan(add, zeros, (jnp.arange(n), parts))[0]


def split(batch, n):
  """Every [B, ...] of a tree as [n, B / n, ...]; part i has rows i, i + n ...

  So each part has rows of every device, and none has to move.
  """
  num_rows = jax.tree.leaves(batch)[0].shape[0]
  if num_rows % n:
    raise ValueError(
      f'make_train_step.num_microbatches={n} must divide the {num_rows} rows '
      'of a batch (data.batch_size).'
    )
  mesh = jax.sharding.get_abstract_mesh()
  num_shares = mesh.shape.get('data', 1) * mesh.shape.get('fsdp', 1)
  if num_rows // n % num_shares:
    raise ValueError(
      f'make_train_step.num_microbatches={n} leaves {num_rows // n} rows of '
      f'{num_rows} for the {num_shares} devices that share a batch (mesh.data '
      'x mesh.fsdp): raise data.batch_size or lower num_microbatches.'
    )
  return jax.tree.map(
    lambda x: x.reshape(num_rows // n, n, *x.shape[1:]).swapaxes(0, 1), batch
  )
