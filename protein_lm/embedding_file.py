"""Files of embeddings: .npz, .h5 and .parquet, written a protein at a time.

All hold the same: ids, lengths, and an array for each kind and layer, such as
mean_-1, with a row a protein. Vectors of residues are, in .npz, an array
per_tok_-1/<id> a protein; in .h5 the array per_tok_-1 of all residues, protein
p having its rows offsets[p]:offsets[p + 1]; in .parquet a list a protein.

Axes: P proteins, L residues of one, T residues of all, D model width.
"""

import contextlib
import pathlib
import shutil
import zipfile

import numpy as np

from protein_lm.embedding_arrays import is_per_residue

SUFFIXES = ('.npz', '.h5', '.hdf5', '.parquet')
_ROWS = 4096  # at a time
_ROW_GROUP_BYTES = 2**26


def check_path(path: pathlib.Path) -> None:
  """Refuses a name of another kind of file, and a folder that is not there."""
  if path.suffix not in SUFFIXES:
    raise ValueError(
      f'the name {path.name!r} must end in {", ".join(SUFFIXES[:-1])} or '
      f'{SUFFIXES[-1]}.'
    )
  if not path.parent.is_dir():
    raise ValueError(f'{path.parent} is no folder; make it first.')


def writer(path, suffix, embedder, num_proteins, num_residues):
  """A context whose value takes (id, length, name -> array) of each protein.

  Args:
    path: of the file.
    suffix: one of SUFFIXES.
    embedder: says which arrays there are.
    num_proteins: that will come.
    num_residues: of these.
  """
  if suffix == '.npz':
    return _npz(path, embedder, num_proteins)
  if suffix == '.parquet':
    return _parquet(path, embedder)
  return _hdf5(path, embedder, num_proteins, num_residues)


def _write_array(archive, name, shape, dtype, chunks):
  """Writes an array of an .npz, given as bytes piece by piece."""
  # With the date that a ZipInfo begins with, equal arrays give equal files.
  with archive.open(zipfile.ZipInfo(f'{name}.npy'), 'w', force_zip64=True) as f:
    header = {'descr': np.dtype(dtype).str, 'fortran_order': False}
    np.lib.format.write_array_header_1_0(f, header | {'shape': shape})
    for chunk in chunks:
      f.write(chunk)


@contextlib.contextmanager
def _npz(path, embedder, num_proteins):
  """Residues go into the archive at once, what has a row a protein last."""
  names = [name for name in embedder.names if not is_per_residue(name)]
  with contextlib.ExitStack() as stack:
    folder = path.with_name('rows')
    folder.mkdir(exist_ok=True)
    stack.callback(shutil.rmtree, folder)
    rows = {
      name: stack.enter_context(open(folder / name, 'w+b'))
      for name in ('ids', 'lengths', *names)
    }
    archive = stack.enter_context(zipfile.ZipFile(path, 'w'))
    widest = 1

    def write(id_, length, arrays):
      nonlocal widest
      widest = max(widest, len(id_))
      rows['ids'].write(f'{id_}\n'.encode())
      rows['lengths'].write(np.int64(length).tobytes())
      for name, array in arrays.items():
        if is_per_residue(name):
          _write_array(
            archive, f'{name}/{id_}', array.shape, array.dtype, [array.data]
          )
        else:
          rows[name].write(array.data)

    yield write
    for file in rows.values():
      file.seek(0)
    text = f'<U{widest}'
    _write_array(
      archive, 'ids', (num_proteins,), text, _texts(rows['ids'], text)
    )
    _write_array(
      archive, 'lengths', (num_proteins,), '<i8', _chunks(rows['lengths'])
    )
    for name in names:
      shape = (num_proteins, embedder.emb_dim)
      _write_array(archive, name, shape, embedder.dtype, _chunks(rows[name]))


def _texts(file, dtype):
  while lines := file.readlines(2**20):
    ids = [line.decode().removesuffix('\n') for line in lines]
    yield np.array(ids, dtype).tobytes()


def _chunks(file):
  while chunk := file.read(2**24):
    yield chunk


@contextlib.contextmanager
def _hdf5(path, embedder, num_proteins, num_residues):
  import h5py

  with h5py.File(path, 'w') as file:
    ids = file.create_dataset('ids', num_proteins, h5py.string_dtype())
    lengths = file.create_dataset('lengths', num_proteins, 'i8')
    for name in embedder.names:
      size = num_residues if is_per_residue(name) else num_proteins
      file.create_dataset(name, (size, embedder.emb_dim), embedder.dtype)
    if any(map(is_per_residue, embedder.names)):
      offsets = file.create_dataset('offsets', num_proteins + 1, 'i8')
    p = t = 0
    waiting = []

    def flush():
      nonlocal p
      its_ids, its_lengths, its_arrays = zip(*waiting, strict=True)
      where = slice(p, p + len(waiting))
      ids[where], lengths[where] = list(its_ids), its_lengths
      for name in its_arrays[0]:
        file[name][where] = np.stack([arrays[name] for arrays in its_arrays])
      p = where.stop
      waiting.clear()

    def write(id_, length, arrays):
      nonlocal t
      rows = {}
      for name, array in arrays.items():
        if is_per_residue(name):
          file[name][t : t + length] = array
        else:
          rows[name] = array
      if 'offsets' in file:
        offsets[p + len(waiting) + 1] = t + length
      t += length
      waiting.append((id_, length, rows))
      if len(waiting) == _ROWS:
        flush()

    yield write
    if waiting:
      flush()


@contextlib.contextmanager
def _parquet(path, embedder):
  import pyarrow as pa
  from pyarrow import parquet

  vector = pa.list_(pa.from_numpy_dtype(embedder.dtype), embedder.emb_dim)
  fields = [('id', pa.string()), ('length', pa.int64())]
  for name in embedder.names:
    fields.append((name, pa.list_(vector) if is_per_residue(name) else vector))
  schema = pa.schema(fields)

  def column(name, arrays):
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    vectors = pa.FixedSizeListArray.from_arrays(flat, embedder.emb_dim)
    if not is_per_residue(name):
      return vectors
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, vectors)

  with parquet.ParquetWriter(path, schema) as file:
    waiting, num_bytes = [], 0

    def flush():
      nonlocal num_bytes
      its_ids, its_lengths, its_arrays = zip(*waiting, strict=True)
      columns = [pa.array(its_ids), pa.array(its_lengths, pa.int64())]
      for name in embedder.names:
        columns.append(column(name, [arrays[name] for arrays in its_arrays]))
      file.write_table(pa.Table.from_arrays(columns, schema=schema))
      waiting.clear()
      num_bytes = 0

    def write(id_, length, arrays):
      nonlocal num_bytes
      waiting.append((id_, length, arrays))
      num_bytes += sum(array.nbytes for array in arrays.values())
      if num_bytes >= _ROW_GROUP_BYTES:
        flush()

    yield write
    if waiting:
      flush()


def read(path, name: str) -> tuple[list[str], np.ndarray]:
  """Reads ids and one array with a row a protein.

  Args:
    path: of a file that the command embed wrote.
    name: such as mean_-1.

  Returns:
    ids [P], and [P, D].

  Raises:
    ValueError: it cannot be read, or has no such array.
  """
  path = pathlib.Path(path)
  check_path(path)
  try:
    return _READERS.get(path.suffix, _read_hdf5)(path, name)
  except KeyError as error:
    raise ValueError(f'{path} holds no array {error.args[0]}.') from error
  except Exception as error:
    if isinstance(error, ValueError) and 'holds no array' in str(error):
      raise
    raise ValueError(
      f'{path} cannot be read as a file of embeddings ({error}).'
    ) from error


def _has(path, name, names):
  if name not in names:
    there = sorted(x for x in names if '_' in x and '/' not in x)
    raise ValueError(
      f'{path} holds no array {name!r}; it has {", ".join(there) or "none"}.'
    )


def _read_npz(path, name):
  with np.load(path, allow_pickle=False) as file:
    _has(path, name, file.files)
    return file['ids'].tolist(), file[name]


def _read_hdf5(path, name):
  import h5py

  with h5py.File(path) as file:
    _has(path, name, list(file))
    return file['ids'].asstr()[:].tolist(), file[name][:]


def _read_parquet(path, name):
  from pyarrow import parquet

  _has(path, name, parquet.read_schema(path).names)
  table = parquet.read_table(path, columns=['id', name])
  vectors = table[name].combine_chunks()
  values = vectors.flatten().to_numpy(zero_copy_only=False)
  return table['id'].to_pylist(), values.reshape(len(table), -1)


_READERS = {'.npz': _read_npz, '.parquet': _read_parquet}
