"""The arrays of a checkpoint, by path name such as 'params/...', through Orbax.

An array is stored whole, whatever devices and processes held its parts, and
comes back in any other parts. Orbax is imported late: it takes 0.3 s.
"""

from __future__ import annotations

import contextlib
import functools
import logging as python_logging
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging

from protein_lm import checkpoint_files as files
from protein_lm.checkpoint_files import CheckpointError, MismatchError

STATISTICS = 'attention_stats/'


def by_name(tree: Any) -> dict[str, Any]:
  """Returns the leaves under path names, without those of no elements.

  Orbax refuses empty arrays, and there is nothing in them to store.

  Raises:
    TypeError: a leaf is no array of numbers.
  """
  import jax

  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  named = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
  for name, leaf in named.items():
    if not hasattr(leaf, 'dtype') or jax.dtypes.issubdtype(
      leaf.dtype, jax.dtypes.prng_key
    ):
      raise TypeError(
        f'{name} is {type(leaf).__name__}, and only arrays of numbers can be '
        'saved (for a PRNG key, its jax.random.key_data).'
      )
  if len(named) != len(leaves):
    raise ValueError('two leaves of the state have the same path name.')
  return {name: leaf for name, leaf in named.items() if math.prod(leaf.shape)}


def start_writing(directory: pathlib.Path, arrays: dict[str, Any]) -> Any:
  """Copies arrays off their devices and begins to write them.

  Every process calls it, each writes the parts it holds. On return the arrays
  may be donated.

  Returns:
    An Orbax checkpointer to wait for with `finish_writing`.
  """
  _ignore_closed_loops()
  with quiet_orbax() as ocp:
    # Floats compress by a tenth, for as much time as the writing takes.
    checkpointer = ocp.AsyncCheckpointer(
      ocp.PyTreeCheckpointHandler(use_compression=False)
    )
    checkpointer.save(
      directory.absolute() / files.STATE, args=ocp.args.PyTreeSave(arrays)
    )
    return checkpointer


@functools.cache
def _ignore_closed_loops() -> None:
  """Keeps back what late writes of a save that failed have to say.

  Orbax closes its event loop at the first error; tensorstore's other threads
  then report to nobody.
  """
  show = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    error = unraisable.exc_value
    if type(error) is RuntimeError and str(error) == 'Event loop is closed':
      return
    show(unraisable)

  sys.unraisablehook = hook


def finish_writing(checkpointer: Any) -> None:
  """Waits until every process has written its parts; raises what Orbax met."""
  try:
    checkpointer.wait_until_finished()
  finally:
    checkpointer.close()


def stored(directory: pathlib.Path) -> dict[str, Any]:
  """Returns name -> jax.ShapeDtypeStruct of what a checkpoint holds.

  Raises:
    CheckpointError: the description is damaged, or claims what cannot be.
  """
  import jax

  with _reading(directory), quiet_orbax() as ocp:
    tree = (
      ocp.PyTreeCheckpointer()
      .metadata(str(directory / files.STATE))
      .item_metadata.tree
    )
    found = {}
    for name, entry in tree.items():
      shape = tuple(entry.shape)
      # What a chunk claims is allocated before it is read.
      chunk = entry.storage.chunk_shape if entry.storage else None
      if any(c > max(n, 1) for c, n in zip(chunk or (), shape, strict=False)):
        raise CheckpointError(
          f'{directory}: {name} of shape {shape} claims chunks of {chunk}.'
        )
      found[name] = jax.ShapeDtypeStruct(shape, entry.dtype)
    return found


def read(
  directory: pathlib.Path, shapes: dict[str, Any], prefix: str
) -> dict[str, Any]:
  """Returns the numpy arrays whose names begin with a prefix, without it.

  Args:
    directory: of a checkpoint that verifies.
    shapes: what `stored` gave for it.
    prefix: such as 'params/'; '' for all.
  """
  import numpy as np

  wanted = {k: v for k, v in shapes.items() if k.startswith(prefix)}
  _check_size(directory, wanted)
  with _reading(directory), quiet_orbax() as ocp:
    arguments = dict.fromkeys(wanted, ocp.RestoreArgs(restore_type=np.ndarray))
    arrays = _restore(ocp, directory, arguments)
  return {k.removeprefix(prefix): np.asarray(v) for k, v in arrays.items()}


def load(directory: pathlib.Path, abstract: Any, prefix: str) -> Any:
  """Restores the leaves of `abstract`, stored as prefix + their path name.

  Args:
    directory: of a checkpoint that verifies.
    abstract: pytree of arrays or jax.ShapeDtypeStruct; a leaf with a sharding
      is restored to it, another one to the default device.
    prefix: '' for a whole state, else such as 'params/'.

  Raises:
    MismatchError: shapes, dtypes or names differ.
    CheckpointError: it cannot be read.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  wanted = {f'{prefix}{k}': v for k, v in by_name(abstract).items()}
  # An attention may be swapped for one that needs statistics, and back.
  optional = {k for k in wanted if k.startswith(STATISTICS) and not prefix}
  # Shapes first: a wrong architecture must not cost the whole read.
  there = {
    k: v
    for k, v in stored(directory).items()
    if k.startswith(prefix)
    and (k in wanted or prefix or not k.startswith(STATISTICS))
  }
  if missing := optional - there.keys():
    logging.warning(
      'The checkpoint %s has no attention statistics: they start anew.',
      directory,
    )
    wanted = {k: v for k, v in wanted.items() if k not in missing}
  _check_architecture(directory, wanted, there)
  _check_size(directory, there)
  with _reading(directory), quiet_orbax() as ocp:
    arguments = {
      name: ocp.ArrayRestoreArgs(
        sharding=_sharding_of(leaf), global_shape=leaf.shape, dtype=leaf.dtype
      )
      if _sharding_of(leaf) is not None
      else ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
      for name, leaf in wanted.items()
    }
    arrays = _restore(ocp, directory, arguments)

  def leaf_of(path: Any, leaf: Any) -> jax.Array:
    name = prefix + jax.tree_util.keystr(path, simple=True, separator='/')
    if name not in arrays:  # empty, or not stored
      zeros = jnp.zeros(leaf.shape, leaf.dtype)
      sharding = _sharding_of(leaf)
      return zeros if sharding is None else jax.device_put(zeros, sharding)
    # A copy: what is donated to a step must not be memory of numpy's.
    value = arrays[name]
    return jnp.array(value) if isinstance(value, np.ndarray) else value

  return jax.tree_util.tree_map_with_path(leaf_of, abstract)


def _sharding_of(leaf: Any) -> Any:
  """Where a leaf is to lie; None for the default device.

  Under jax.set_mesh, jax.eval_shape names a mesh without devices.
  """
  import jax

  sharding = getattr(leaf, 'sharding', None)
  mesh = getattr(sharding, 'mesh', None)
  return None if isinstance(mesh, jax.sharding.AbstractMesh) else sharding


def _restore(
  ocp: Any, directory: pathlib.Path, arguments: dict[str, Any]
) -> dict[str, Any]:
  if not arguments:
    return {}
  return ocp.PyTreeCheckpointer().restore(
    str(directory / files.STATE),
    args=ocp.args.PyTreeRestore(
      item=dict.fromkeys(arguments, 0),
      restore_args=arguments,
      partial_restore=True,
    ),
  )


@contextlib.contextmanager
def _reading(directory: pathlib.Path) -> Iterator[None]:
  """Makes a CheckpointError of anything: orbax has no class of its own."""
  try:
    yield
  except CheckpointError:
    raise
  except Exception as error:
    raise CheckpointError(
      f'cannot read {directory}: {files.reason(error)}'
    ) from error


def _check_size(directory: pathlib.Path, arrays: dict[str, Any]) -> None:
  """Refuses what a hostile description claims, before it is allocated."""
  import jax

  num_bytes = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in arrays.values()
  )
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  if num_bytes > memory * jax.process_count():
    raise CheckpointError(
      f'{directory} claims {num_bytes / 1e9:,.0f} GB of arrays, and this '
      f'machine has {memory / 1e9:,.0f} GB of memory: restore it on more '
      'processes, if it is what you expect.'
    )


def _check_architecture(
  directory: pathlib.Path, wanted: dict[str, Any], there: dict[str, Any]
) -> None:
  """Raises MismatchError with the first difference and how many more."""
  differences = []
  for name in sorted(wanted.keys() | there.keys()):
    if name not in there:
      differences.append(f'{name} is not in the checkpoint')
    elif name not in wanted:
      differences.append(f'{name} is in the checkpoint only')
    else:
      shapes = tuple(there[name].shape), tuple(wanted[name].shape)
      dtypes = str(there[name].dtype), str(wanted[name].dtype)
      for then, now in (shapes, dtypes):
        if then != now:
          differences.append(
            f'{name} is {then} in the checkpoint and {now} in the model'
          )
  if differences:
    more = len(differences) - 1
    also = f' ({more} more such differences)' if more else ''
    hint = ''
    if all(x.endswith('/bias is in the checkpoint only') for x in differences):
      hint = '; if it is older than FlaxModel.use_bias, bind that to True'
    raise MismatchError(
      f'{directory} is of another architecture: {differences[0]}{also}{hint}.'
    )


@contextlib.contextmanager
def quiet_orbax() -> Iterator[Any]:
  """Yields orbax.checkpoint without its log and warnings; main thread only."""
  import warnings

  with quiet_log(), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import orbax.checkpoint as ocp

    yield ocp


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
  """Keeps back Orbax's log: a traceback for each error that it also raises."""

  def is_ours(record: python_logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  logger = logging.get_absl_logger()
  logger.addFilter(is_ours)
  try:
    yield
  finally:
    logger.removeFilter(is_ours)
