"""Weights in one safetensors file, the format that other frameworks read.

Names are the path names of the parameters, such as
'layers/0/attention/query/kernel'. The header carries text: `step`, `config`
(the run's gin configuration), `weights` ('params' or 'ema_params') and
`metadata` (what the checkpoint says of data and versions, JSON).
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
from typing import Any

from protein_lm import checkpoint
from protein_lm import checkpoint_files as files

SUFFIX = '.safetensors'
WEIGHTS = ('params', 'ema_params')


class WeightsFileError(ValueError):
  """A file that holds no weights, or not what it claims."""


def export(
  work_dir: str | os.PathLike,
  path: str | os.PathLike,
  step: int | str = 'latest',
  weights: str = 'params',
  overwrite: bool = False,
) -> tuple[int, int]:
  """Writes the weights of a verified checkpoint into a file of their own.

  Args:
    work_dir: folder of the run.
    path: the file to write; it exists completely or not at all.
    step: a step, 'latest' or 'best'.
    weights: 'params', or 'ema_params', their moving average.
    overwrite: replace what is there.

  Returns:
    (step, number of parameters).

  Raises:
    checkpoint.CheckpointError: there is no good checkpoint.
    WeightsFileError: the checkpoint has no such weights.
    FileExistsError: the file exists, and overwrite is False.
  """
  if weights not in WEIGHTS:
    raise ValueError(f'weights must be one of {WEIGHTS}, got {weights!r}.')
  step = checkpoint.choose(work_dir, step)
  arrays = checkpoint.read_arrays(work_dir, step, f'{weights}/')
  if not arrays:
    raise WeightsFileError(
      f'the checkpoint of step {step} in {work_dir} has no {weights}'
      + ('; export params.' if weights != 'params' else '.')
    )
  metadata = {
    'format': 'protein_lm',
    'step': str(step),
    'weights': weights,
    'config': checkpoint.config(work_dir, step),
    'metadata': json.dumps(checkpoint.manifest(work_dir, step)['metadata']),
  }
  write(path, arrays, metadata, overwrite)
  return step, sum(array.size for array in arrays.values())


def write(
  path: str | os.PathLike,
  arrays: dict[str, Any],
  metadata: dict[str, str],
  overwrite: bool = False,
) -> None:
  """Writes numpy arrays by name, and texts, synced to disk.

  Raises:
    FileExistsError: the file exists, and overwrite is False.
    OSError: it cannot be written; nothing is left behind.
  """
  import numpy as np
  from safetensors.numpy import save_file

  path = pathlib.Path(path)
  if not overwrite and path.exists():
    raise FileExistsError(f'{path} exists; choose another name or overwrite it')
  arrays = {k: np.asarray(v, order='C') for k, v in sorted(arrays.items())}
  # Beside its place, under a name that nobody can have prepared.
  with tempfile.TemporaryDirectory(
    prefix=f'.{path.name}-', dir=path.parent
  ) as folder:
    partial = pathlib.Path(folder, path.name)
    with told(path, OSError):
      save_file(arrays, partial, metadata=metadata)
    files.sync_and_hash(partial)
    if overwrite:
      os.replace(partial, path)
    else:
      os.link(partial, path)  # fails if another wrote it meanwhile
  files.sync_directory(path.parent)


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the numpy arrays of a file by name, and the texts of its header.

  Nothing in the file is executed; the configuration is text, not to be trusted.

  Raises:
    WeightsFileError: it is cut short, is of another format, or its header
      claims lengths, places or types that it cannot have.
    OSError: it cannot be read.

  Example:
    arrays, metadata = weights_file.read('model.safetensors')
  """
  from safetensors import safe_open

  with open(path, 'rb') as file:  # the system's own words, if it cannot be
    if not os.fstat(file.fileno()).st_size:
      raise WeightsFileError(f'{path} is empty.')
  with (
    told(path, WeightsFileError),
    safe_open(path, framework='numpy') as file,
  ):
    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return arrays, dict(file.metadata() or {})


@contextlib.contextmanager
def told(path: str | os.PathLike, kind: type[Exception]):
  """Names the file in what safetensors raises, a class for everything."""
  try:
    yield
  except Exception as error:
    raise kind(
      f'{path} is no good safetensors file: {files.reason(error)}'
      if kind is WeightsFileError
      else f'cannot write {path}: {files.reason(error)}'
    ) from error
