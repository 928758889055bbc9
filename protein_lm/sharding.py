"""Where arrays lie on the mesh: the rules, by name.

Axes: B batch, L length, H heads, K head width, D model width (emb_dim), F MLP
width, V vocabulary, N layers. Those of the mesh are in mesh.py.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

P = PartitionSpec

# Rows over data and fsdp, tokens of a row over sequence.
BATCH = P(('data', 'fsdp'), 'sequence')

# Path of a leaf within the parameters -> the mesh axis of each of its axes.
# The moments and averages of a parameter lie as it does.
RULES = (
  (r'embed/embedding', P()),  # V D, V is small
  (r'position_table', P('fsdp')),  # L D
  (r'blocks/(query|key|value)/kernel', P(None, 'fsdp', 'tensor')),  # N D H K
  (r'blocks/(query|key|value)/bias', P(None, 'tensor')),  # N H K
  (r'blocks/out/kernel', P(None, 'tensor', None, 'fsdp')),  # N H K D
  (r'blocks/out/bias', P()),  # N D
  (r'blocks/mlp_(in|gate)/kernel', P(None, 'fsdp', 'tensor')),  # N D F
  (r'blocks/mlp_(in|gate)/bias', P(None, 'tensor')),  # N F
  (r'blocks/mlp_out/kernel', P(None, 'tensor', 'fsdp')),  # N F D
  (r'blocks/mlp_out/bias', P()),  # N D
  (r'blocks/\w+_norm/(scale|bias)', P()),  # N D, N K
  (r'final_norm/(scale|bias)', P()),  # D
  (r'embed_norm/(scale|bias)', P()),  # D
  (r'output/(linear/)?kernel', P()),  # D V
  (r'output/(linear/)?bias', P()),  # V
  (r'output/dense/kernel', P('fsdp')),  # D D
  (r'output/(dense|norm)/(scale|bias)', P()),  # D
)
_RULES = tuple((re.compile(rf'(^|/){path}$'), spec) for path, spec in RULES)

# Leaves without a rule are cut from so many numbers on; below, it costs more
# to gather one than to hold it.
_LARGE = 2**16


def rule(path: str) -> PartitionSpec | None:
  """The PartitionSpec of a leaf that RULES name, else None."""
  for pattern, spec in _RULES:
    if pattern.search(path):
      return spec
  return None


def batch_sharding(mesh) -> NamedSharding:
  """Of [B, L]."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, P())


def state_shardings(mesh, abstract_state):
  """The NamedSharding of every leaf of a TrainState, or of parameters.

  A leaf without a rule (factored moments, other modules) is cut over fsdp
  along its longest axis that divides if it is large, else whole on every
  device. So is an axis that its rule cuts and that does not divide; where that
  makes a large leaf whole, a line says so.

  Args:
    mesh: of make_mesh.
    abstract_state: pytree of arrays or jax.ShapeDtypeStruct.

  Returns:
    The same pytree of NamedSharding.
  """
  uncut = []

  def place(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = rule(name)
    if spec is None or len(spec) > leaf.ndim:
      spec = _default(mesh, name, leaf.shape)
    fitting = _fit(mesh, spec, leaf.shape)
    if fitting != spec and leaf.size >= _LARGE and name.startswith('params/'):
      uncut.append(f'{name} {tuple(leaf.shape)}')
    return NamedSharding(mesh, fitting)

  shardings = jax.tree_util.tree_map_with_path(place, abstract_state)
  if uncut and jax.process_index() == 0:
    print(
      f'warning: mesh: {len(uncut)} parameters have an axis that cannot be cut '
      f'for {dict(mesh.shape)}, the first is {uncut[0]}; such an axis stays '
      'whole on every device.',
      flush=True,
    )
  return shardings


def with_shardings(abstract_state, shardings):
  """The abstract state to restore to, of jax.ShapeDtypeStruct."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    abstract_state,
    shardings,
  )


def constrain(x):
  """Makes [B, L, ...] lie as batches do, in a function under jit.

  As it is outside of a mesh, and where its rows cannot be cut (the rows of
  scoring are as many as are asked for).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size == 1 or 'fsdp' not in mesh.axis_names:
    return x
  if _fit(mesh, BATCH, x.shape) != BATCH:
    return x
  return jax.lax.with_sharding_constraint(x, BATCH)


def put(mesh, arrays):
  """Arrays [B, L] that every process has, as global arrays on the mesh."""
  sharding = batch_sharding(mesh)

  def place(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

  return jax.tree.map(place, arrays)


def make_score_step(mesh, score_step):
  """`score_step` with its rows spread over the mesh, results everywhere.

  Args:
    mesh: of make_mesh.
    score_step: jitted, see train_step.make_score_step.

  Returns:
    A function of (weights, batch, mask_BL=None) to TokenScores, whole on every
    device, so that every process can read them. All processes must call it,
    with the same batch.
  """
  score = jax.jit(score_step, out_shardings=replicated(mesh))

  def run(weights, batch, mask_BL=None):
    return score(weights, *put(mesh, (batch, mask_BL)))

  return run


def _default(mesh, name, shape):
  """Over fsdp along the longest axis that divides, never along the layers."""
  if math.prod(shape) < _LARGE:
    return P()
  first = 1 if '/blocks/' in f'/{name}' else 0
  axes = [i for i in range(first, len(shape)) if not shape[i] % _parts(mesh)]
  if not axes:
    return P()
  longest = max(axes, key=lambda i: shape[i])
  return P(*[None] * longest, 'fsdp')


def _parts(mesh, names='fsdp'):
  names = names if isinstance(names, tuple) else (names,)
  return math.prod(mesh.shape[name] for name in names)


def _fit(mesh, spec, shape):
  """The spec without the axes of the mesh that do not divide the shape's."""
  return P(
    *(
      names if names is None or shape[i] % _parts(mesh, names) == 0 else None
      for i, names in enumerate(spec)
    )
  )
