"""Verified checkpoints: orbax holds the arrays, a manifest proves the files.

    work_dir/trainer.lock              host and pid of the one trainer
    work_dir/checkpoints/<step>/       present only when complete
      state/                           arrays by path name, 'params/...' (orbax)
      config.gin                       operative gin config
      manifest.json                    step, metric, metadata; sha256 and size
                                       of every other file, and of itself

A checkpoint is written beside its place, synced to disk, and renamed: a kill
or a full disk leaves the older checkpoints as they were. Names in a
checkpoint directory that start with a dot are unfinished work; `clean` ends it.
"""

from __future__ import annotations

import contextlib
import logging as python_logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from absl import logging

from protein_lm import checkpoint_files as files
from protein_lm.checkpoint_files import CheckpointError
from protein_lm.work_dir_lock import lock

__all__ = [
  'CheckpointError',
  'MismatchError',
  'NotFoundError',
  'choose',
  'clean',
  'config',
  'lock',
  'manifest',
  'restore',
  'restore_params',
  'retain',
  'save',
  'steps',
  'verify',
]

# Prefixes of unfinished work in work_dir/checkpoints: being written, being
# replaced by a newer save of the same step, being deleted.
_STATISTICS = 'attention_stats/'
_WRITING, _REPLACED, _DELETING = '.writing-', '.replaced-', '.deleting-'


class NotFoundError(CheckpointError):
  """There is no complete checkpoint (of this step)."""


class MismatchError(CheckpointError):
  """A good checkpoint of another architecture than the one asked for."""


# Writing.


def save(
  work_dir: str | os.PathLike,
  step: int,
  state: Any,
  *,
  config: str,
  metadata: dict[str, Any],
  metric: float | None = None,
) -> str:
  """Writes a checkpoint; it exists completely or not at all.

  Args:
    work_dir: the run's directory; made if absent.
    step: training steps taken, >= 0. A checkpoint of the same step is replaced.
    state: pytree of arrays. PRNG keys go in as their key_data, or not at all.
    config: the operative gin config, kept beside the weights.
    metadata: JSON values, such as the data's fingerprint and versions.
    metric: validation loss in nats per token, lower is better; None if unknown.

  Returns:
    The path of the checkpoint.

  Raises:
    CheckpointError: the disk is full or not writable. Nothing is left behind
      and the older checkpoints are untouched.
  """
  import jax

  step = int(step)
  if step < 0:
    raise ValueError(f'step must be at least 0, got {step}.')
  arrays = _by_name(state)
  if jax.process_count() > 1:
    raise NotImplementedError('saving from several processes')
  root = _root(work_dir)
  writing, final = root / f'{_WRITING}{step}', root / str(step)
  try:
    _make_dirs(root)
    _remove(writing)
    writing.mkdir()
    with _quiet_orbax() as ocp:
      ocp.PyTreeCheckpointer().save(
        str(writing.resolve() / files.STATE), arrays
      )
    (writing / files.CONFIG).write_text(config, encoding='utf-8')
    files.write_manifest(writing, step, _finite(metric), metadata)
    if final.exists():
      replaced = root / f'{_REPLACED}{step}'
      _remove(replaced)
      final.rename(replaced)
    writing.rename(final)
    files.sync_directory(root)
    _remove(root / f'{_REPLACED}{step}')
  # Orbax reports a full disk as ValueError, OSError or XlaRuntimeError.
  except Exception as error:
    _undo(root, step)
    if isinstance(error, TypeError):  # not JSON, not an array: a caller's fault
      raise
    raise CheckpointError(
      f'cannot save step {step} in {root}: {files.reason(error)}'
    ) from error
  except BaseException:
    _undo(root, step)
    raise
  return str(final)


def retain(
  work_dir: str | os.PathLike, keep: int, best: bool = True
) -> list[int]:
  """Deletes all but the newest `keep` checkpoints and the best one.

  Nothing is deleted unless the newest checkpoint verifies.

  Args:
    work_dir: the run's directory.
    keep: how many of the newest to keep, >= 1.
    best: keep the one of lowest metric too.

  Returns:
    The deleted steps.
  """
  if keep < 1:
    raise ValueError(f'keep must be at least 1, got {keep}.')
  present = steps(work_dir)
  old = present[:-keep]
  if best:
    best_steps = _ranked(work_dir)[:1]
    old = [step for step in old if step not in best_steps]
  if not old:
    return []
  try:
    verify(work_dir, present[-1])
  except CheckpointError as error:
    logging.warning('Keeping every old checkpoint: %s', error)
    return []
  root = _root(work_dir)
  for step in old:
    # The rename makes it vanish in one stroke; a kill leaves no half of it.
    deleting = root / f'{_DELETING}{step}'
    _remove(deleting)
    (root / str(step)).rename(deleting)
    _remove(deleting)
  return old


def clean(work_dir: str | os.PathLike) -> None:
  """Removes what a killed save or deletion left; call it under `lock`."""
  root = _root(work_dir)
  for path in sorted(root.glob('.*-*')):
    kind, _, step = path.name.partition('-')
    if f'{kind}-' not in (_WRITING, _REPLACED, _DELETING):
      continue
    # Killed between the two renames of a replacement: the old one comes back.
    if f'{kind}-' == _REPLACED and not (root / step).exists():
      path.rename(root / step)
    else:
      _remove(path)


# Reading.


def steps(work_dir: str | os.PathLike) -> list[int]:
  """Returns the steps of the complete checkpoints, ascending."""
  root = _root(work_dir)
  if not root.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in root.iterdir()
    if path.name.isdecimal()
    and path.name == str(int(path.name))
    and (path / files.MANIFEST).is_file()
  )


def manifest(work_dir: str | os.PathLike, step: int) -> dict[str, Any]:
  """Returns a checkpoint's manifest, checked against its own hash.

  Raises:
    NotFoundError: there is no such checkpoint.
    CheckpointError: the manifest is damaged or names files outside.
  """
  directory = _root(work_dir) / str(int(step))
  if not (directory / files.MANIFEST).is_file():
    raise NotFoundError(
      f'no checkpoint of step {step} in {directory.parent}; there are '
      f'{steps(work_dir) or "none"}.'
    )
  return files.read_manifest(directory, int(step))


def config(work_dir: str | os.PathLike, step: int) -> str:
  """Returns the gin config saved with a checkpoint, checked by its hash."""
  entry = manifest(work_dir, step)['files'][files.CONFIG]
  path = _root(work_dir) / str(int(step)) / files.CONFIG
  files.check_file(path, entry)
  return path.read_text(encoding='utf-8')


def verify(work_dir: str | os.PathLike, step: int) -> None:
  """Compares every file of a checkpoint with its manifest.

  Raises:
    NotFoundError: there is no such checkpoint.
    CheckpointError: a file is missing or differs; the message names it.
  """
  directory = _root(work_dir) / str(int(step))
  for name, entry in manifest(work_dir, step)['files'].items():
    files.check_file(directory / name, entry)


def restore(
  work_dir: str | os.PathLike, abstract_state: Any, step: int | str = 'latest'
) -> tuple[Any, dict[str, Any]]:
  """Reads a verified checkpoint.

  Args:
    work_dir: the run's directory.
    abstract_state: pytree of arrays or jax.ShapeDtypeStruct, with the shapes,
      dtypes and (where the struct has one) the sharding to restore to.
    step: 'latest', 'best' (lowest metric) or a step. The first two fall back
      to the next good checkpoint, with a warning that names both.

  Returns:
    The state, in the structure of abstract_state, and the manifest. Statistics
    of an attention (`attention_stats`) are zeros, with a warning, if the run
    had another attention until then.

  Raises:
    NotFoundError: there is no checkpoint.
    MismatchError: the shapes, dtypes or names differ.
    CheckpointError: there are checkpoints, and none is good.
  """
  step = choose(work_dir, step)
  return _load(work_dir, step, abstract_state, ''), manifest(work_dir, step)


def restore_params(
  work_dir: str | os.PathLike,
  abstract_params: Any,
  step: int | str = 'latest',
  field: str = 'params',
) -> tuple[Any, dict[str, Any]]:
  """Like restore, for one field of the state, such as `params`."""
  step = choose(work_dir, step)
  params = _load(work_dir, step, abstract_params, f'{field}/')
  return params, manifest(work_dir, step)


def has_attention_stats(work_dir: str | os.PathLike, step: int) -> bool:
  """Whether a checkpoint holds statistics of an attention."""
  directory = _root(work_dir).resolve() / str(step)
  with _quiet_orbax() as ocp:
    stored = ocp.PyTreeCheckpointer().metadata(str(directory / files.STATE))
  return any(k.startswith(_STATISTICS) for k in stored.item_metadata.tree)


# Choosing.


def choose(work_dir: str | os.PathLike, step: int | str = 'latest') -> int:
  """Returns the step to use, whose checkpoint verifies; see `restore`."""
  if step not in ('latest', 'best'):
    if isinstance(step, str) and not step.isdecimal():
      raise ValueError(f"step must be 'latest', 'best' or int, got {step!r}.")
    verify(work_dir, int(step))
    return int(step)
  candidates = steps(work_dir)[::-1]
  if not candidates:
    raise NotFoundError(f'no checkpoint in {_root(work_dir)}.')
  failures: list[str] = []
  if step == 'best':
    candidates, everything = _ranked(work_dir), candidates
    if not candidates:
      raise NotFoundError(
        f"no checkpoint in {_root(work_dir)} has a metric, so none is 'best'; "
        f"use 'latest' or one of {everything}."
      )
  for candidate in candidates:
    try:
      verify(work_dir, candidate)
    except CheckpointError as error:
      failures.append(f'step {candidate}: {error}')
      continue
    for failure in failures:
      logging.warning(
        'Damaged checkpoint at %s. Using step %d instead.', failure, candidate
      )
    return candidate
  raise CheckpointError(
    f'no good checkpoint in {_root(work_dir)}: {"; ".join(failures)}'
  )


def _ranked(work_dir: str | os.PathLike) -> list[int]:
  """Returns the steps that have a metric, best first, newer before older."""
  metrics = {}
  for step in steps(work_dir)[::-1]:
    with contextlib.suppress(CheckpointError):
      metrics[step] = manifest(work_dir, step)['metric']
  metrics = {k: v for k, v in metrics.items() if v is not None}
  return sorted(metrics, key=metrics.__getitem__)


# Arrays.


def _by_name(tree: Any) -> dict[str, Any]:
  """Returns the leaves under path names, without those of no elements.

  Orbax refuses empty arrays, and there is nothing in them to store.
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


def _load(
  work_dir: str | os.PathLike, step: int, abstract: Any, prefix: str
) -> Any:
  """Restores the leaves of `abstract`, stored as prefix + their path name."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  wanted = {f'{prefix}{k}': v for k, v in _by_name(abstract).items()}
  # An attention may be swapped for one that needs statistics, and back.
  optional = {k for k in wanted if k.startswith(_STATISTICS) and not prefix}
  directory = _root(work_dir).resolve() / str(step)
  try:
    with _quiet_orbax() as ocp:
      checkpointer = ocp.PyTreeCheckpointer()
      # Shapes first: a wrong architecture must not cost the whole read.
      stored = checkpointer.metadata(
        str(directory / files.STATE)
      ).item_metadata.tree
      stored = {
        k: v
        for k, v in stored.items()
        if k.startswith(prefix)
        and (k in wanted or prefix or not k.startswith(_STATISTICS))
      }
      if missing := optional - stored.keys():
        logging.warning(
          'The checkpoint %s has no attention statistics: they start anew.',
          directory,
        )
        wanted = {k: v for k, v in wanted.items() if k not in missing}
      _check_architecture(directory, wanted, stored)
      arguments = {
        name: ocp.ArrayRestoreArgs(
          sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        )
        if getattr(leaf, 'sharding', None) is not None
        else ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        for name, leaf in wanted.items()
      }
      arrays = {}
      if wanted:
        arrays = checkpointer.restore(
          str(directory / files.STATE),
          args=ocp.args.PyTreeRestore(
            item=dict.fromkeys(wanted, 0),
            restore_args=arguments,
            partial_restore=True,
          ),
        )
  except MismatchError:
    raise
  except Exception as error:  # orbax has no common class of errors
    raise CheckpointError(
      f'cannot read {directory}: {files.reason(error)}'
    ) from error

  def leaf_of(path: Any, leaf: Any) -> jax.Array:
    name = prefix + jax.tree_util.keystr(path, simple=True, separator='/')
    if name not in arrays:
      return jnp.zeros(leaf.shape, leaf.dtype)  # empty, or not stored
    # A copy: what is donated to a step must not be memory of numpy's.
    value = arrays[name]
    return jnp.array(value) if isinstance(value, np.ndarray) else value

  return jax.tree_util.tree_map_with_path(leaf_of, abstract)


def _check_architecture(
  directory: pathlib.Path, wanted: dict[str, Any], stored: dict[str, Any]
) -> None:
  """Raises MismatchError with the first difference and how many more."""
  differences = []
  for name in sorted(wanted.keys() | stored.keys()):
    if name not in stored:
      differences.append(f'{name} is not in the checkpoint')
    elif name not in wanted:
      differences.append(f'{name} is in the checkpoint only')
    else:
      shapes = tuple(stored[name].shape), tuple(wanted[name].shape)
      dtypes = str(stored[name].dtype), str(wanted[name].dtype)
      for there, here in (shapes, dtypes):
        if there != here:
          differences.append(
            f'{name} is {there} in the checkpoint and {here} in the model'
          )
  if differences:
    more = len(differences) - 1
    also = f' ({more} more such differences)' if more else ''
    raise MismatchError(
      f'{directory} is of another architecture: {differences[0]}{also}.'
    )


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[Any]:
  """Yields orbax.checkpoint, imported late (0.3 s) and without its log.

  It logs a traceback per thread of each error that it also raises.
  """
  import warnings

  def is_ours(record: python_logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  logger = logging.get_absl_logger()
  logger.addFilter(is_ours)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      import orbax.checkpoint as ocp

      yield ocp
  finally:
    logger.removeFilter(is_ours)


# Directories.


def _root(work_dir: str | os.PathLike) -> pathlib.Path:
  return pathlib.Path(work_dir) / 'checkpoints'


def _make_dirs(root: pathlib.Path) -> None:
  if not root.is_dir():
    root.mkdir(parents=True)
    files.sync_directory(root.parent)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _undo(root: pathlib.Path, step: int) -> None:
  """Takes back an unfinished save; must not hide the error that led here."""
  with contextlib.suppress(OSError):
    _remove(root / f'{_WRITING}{step}')
    replaced = root / f'{_REPLACED}{step}'
    if replaced.exists() and not (root / str(step)).exists():
      replaced.rename(root / str(step))


def _finite(metric: float | None) -> float | None:
  """Returns metric as JSON can hold it: a NaN is never the best."""
  if metric is None or not math.isfinite(metric):
    return None
  return float(metric)
