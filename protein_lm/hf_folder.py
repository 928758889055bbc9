"""A model in the layout of Hugging Face: config.json beside safetensors.

Whatever is read may be damaged or hostile: nothing in it is executed, and names
of shards stay in their folder. A folder is written whole or not at all.
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

from protein_lm import checkpoint_files as files
from protein_lm import weights_file

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_PICKLES = 'pytorch_model*.bin'
# What an export writes, and may replace.
_WRITTEN = (
  CONFIG,
  WEIGHTS,
  'generation_config.json',
  'special_tokens_map.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.txt',
)
_MAX_JSON_BYTES = 64 * 2**20


class FolderError(ValueError):
  """A folder that holds no model in this layout, or a damaged one."""


class Weights(NamedTuple):
  """The tensors of a folder, not yet read.

  Attributes:
    shapes: name -> shape.
    dtypes: name -> type, such as 'F32'.
    read: gives the numpy array of a name.
  """

  shapes: dict[str, tuple[int, ...]]
  dtypes: dict[str, str]
  read: Callable[[str], Any]


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  """Returns what config.json says.

  Raises:
    FolderError: there is no such folder or file, or it is no JSON object.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FolderError(
      f'there is no folder {str(folder)!r}; name one that holds {CONFIG} and '
      f'{WEIGHTS}, as save_pretrained writes them.'
    )
  if not (folder / CONFIG).is_file():
    raise FolderError(
      f'{folder} has no {CONFIG}, so it is no model in the layout of Hugging '
      'Face; save_pretrained writes one.'
    )
  return _read_json(folder / CONFIG)


def open_weights(folder: str | os.PathLike) -> Weights:
  """Opens the tensors of model.safetensors, whole or in shards.

  Raises:
    FolderError: there are none, or a shard is missing.
    weights_file.WeightsFileError: a file is cut short or damaged.
  """
  folder = pathlib.Path(folder)
  if (folder / WEIGHTS).is_file():
    names_of = {WEIGHTS: None}
  elif (folder / INDEX).is_file():
    names_of = _shards(folder)
  elif any(folder.glob(_PICKLES)):
    raise FolderError(
      f'{folder} has its weights in pytorch_model.bin, a pickle, which runs '
      'code when it is read; load it with transformers and save_pretrained, '
      f'which writes {WEIGHTS}.'
    )
  else:
    raise FolderError(f'{folder} has no {WEIGHTS}, so there are no weights.')
  shapes, dtypes, file_of = {}, {}, {}
  for file_name, names in names_of.items():
    file = _open(folder / file_name)
    present = set(file.keys())
    if missing := sorted(set(names or ()) - present):
      raise FolderError(
        f'{folder / file_name} lacks {missing[0]}, which {INDEX} places there; '
        'copy the folder again.'
      )
    for name in present if names is None else names:
      part = file.get_slice(name)
      shapes[name], dtypes[name] = tuple(part.get_shape()), part.get_dtype()
      file_of[name] = file
  return Weights(shapes, dtypes, lambda name: file_of[name].get_tensor(name))


def check_free(path: str | os.PathLike, overwrite: bool) -> pathlib.Path:
  """Returns the path of a folder that can be written.

  Raises:
    FileExistsError: it exists and is not to be replaced, or holds other things.
    FileNotFoundError: it would lie in a folder that does not exist.
  """
  path = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
  if not path.parent.is_dir():
    raise FileNotFoundError(f'there is no folder {str(path.parent)!r}')
  if not path.exists():
    return path
  if not overwrite:
    raise FileExistsError(f'{path} exists; choose another name or --overwrite')
  if not path.is_dir() or path.is_symlink():
    raise FileExistsError(f'{path} is no folder; choose another name')
  if other := sorted(set(os.listdir(path)) - set(_WRITTEN)):
    raise FileExistsError(
      f'{path} holds {other[0]!r}, which no export writes, so it is not '
      'replaced; choose another name'
    )
  return path


def write(
  path: str | os.PathLike,
  tensors: dict[str, Any],
  texts: dict[str, str | dict[str, Any]],
  overwrite: bool = False,
) -> None:
  """Writes a folder beside its place, then gives it its name.

  Args:
    path: the folder.
    tensors: numpy arrays by name.
    texts: contents of the other files by name; a dict is written as JSON.
    overwrite: replace what an export wrote there.

  Raises:
    FileExistsError: see check_free.
    OSError: it cannot be written; nothing is left behind.
  """
  path = check_free(path, overwrite)
  with tempfile.TemporaryDirectory(
    prefix=f'.{path.name}-', dir=path.parent
  ) as scratch:
    partial = pathlib.Path(scratch, 'new')
    partial.mkdir()
    weights_file.write(partial / WEIGHTS, tensors, {'format': 'pt'})
    for name, text in texts.items():
      if isinstance(text, dict):
        text = json.dumps(text, indent=2, sort_keys=True) + '\n'
      (partial / name).write_text(text, encoding='utf-8')
      files.sync_and_hash(partial / name)
    if path.exists():
      path.rename(pathlib.Path(scratch, 'old'))
    partial.rename(path)
  files.sync_directory(path.parent)


def _open(path):
  from safetensors import safe_open

  with open(path, 'rb') as file:  # the system's own words, if it cannot be
    if not os.fstat(file.fileno()).st_size:
      raise weights_file.WeightsFileError(f'{path} is empty.')
  with weights_file.told(path, weights_file.WeightsFileError):
    return safe_open(path, framework='numpy')


def _shards(folder):
  """File name -> names of its tensors."""
  index = _read_json(folder / INDEX).get('weight_map')
  if not isinstance(index, dict) or not index:
    raise FolderError(f'{folder / INDEX} has no weight_map.')
  shards = {}
  for name, file_name in index.items():
    if not isinstance(file_name, str) or pathlib.Path(file_name).name != (
      file_name
    ):
      raise FolderError(
        f'{folder / INDEX} places {name} in {file_name!r}, which is no name of '
        'a file in its folder.'
      )
    if not (folder / file_name).is_file():
      raise FolderError(
        f'{folder} lacks {file_name}, a shard that {INDEX} names; copy the '
        'folder again.'
      )
    shards.setdefault(file_name, []).append(name)
  return shards


def _read_json(path):
  if path.stat().st_size > _MAX_JSON_BYTES:
    raise FolderError(f'{path} is larger than {_MAX_JSON_BYTES} bytes.')
  try:
    content = json.loads(path.read_bytes().decode('utf-8'))
  except (ValueError, RecursionError) as error:
    raise FolderError(f'{path} is no JSON: {files.reason(error)}') from error
  if not isinstance(content, dict):
    raise FolderError(f'{path} is no JSON object.')
  return content
