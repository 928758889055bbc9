"""Files and folders that exist completely, or not at all."""

import contextlib
import os
import pathlib
import tempfile


@contextlib.contextmanager
def written(path: os.PathLike | str):
  """A path beside it, for a file that takes its place when complete.

  Args:
    path: of the file; what is there is replaced at the end.

  Yields:
    The path to write.

  Example:
    with written('scores.csv') as partial:
      partial.write_text(text)
  """
  path = pathlib.Path(path)
  with tempfile.TemporaryDirectory(
    prefix=f'.{path.name}-', dir=path.parent
  ) as folder:
    partial = pathlib.Path(folder, path.name)
    yield partial
    os.replace(partial, path)


@contextlib.contextmanager
def opened(path: os.PathLike | str, newline: str | None = ''):
  """A text file, open for writing, that takes its place when complete."""
  with (
    written(path) as partial,
    partial.open('w', newline=newline, encoding='utf-8') as file,
  ):
    yield file


@contextlib.contextmanager
def written_folder(path: os.PathLike | str):
  """A folder whose files take their places when all are complete."""
  path = pathlib.Path(path)
  with tempfile.TemporaryDirectory(
    prefix=f'.{path.name}-', dir=path.parent
  ) as folder:
    partial = pathlib.Path(folder, path.name)
    partial.mkdir()
    yield partial
    path.mkdir(exist_ok=True)
    for file in partial.iterdir():
      os.replace(file, path / file.name)
