"""Embeds proteins: python -m protein_lm.embed --work_dir=D --fasta=F --out=O

Writes, for every record of F in its order, vectors of --include at
--repr_layers of the model in D; O ends in .npz, .h5 or .parquet
(embedding_file.py says what it holds). The file is read in parts and memory is
bounded. Stopped, by Ctrl-C or anything else, the same command goes on where it
was, and the result is the same.
"""

import contextlib
import hashlib
import os
import pathlib
import sys
import time

from absl import flags

from protein_lm import cli
from protein_lm.interrupt import Interrupt

# Residues that are planned at once: the more, the fuller are the batches.
_RESIDUES_AHEAD = 2**21


def embed_file(
  work_dir,
  fasta,
  out,
  *,
  repr_layers=(-1,),
  include=('mean',),
  step='latest',
  gin_bindings=(),
  batch_size=None,
  max_len=None,
  dtype='float32',
  overwrite=False,
):
  """Embeds the proteins of a FASTA file into a file.

  Args:
    work_dir: the folder of a run.
    fasta: path of a file, plain or gzip.
    out: path of the file to write, .npz, .h5 or .parquet; it exists completely
      or not at all. What is not finished lies in a hidden folder beside it.
    repr_layers: as of embedding.embed; so are the next.
    include: kinds of vectors.
    step: a step, 'latest' or 'best'.
    gin_bindings: bindings on top of the run's, such as another attention.
    batch_size: rows of data.max_len tokens that are computed at once.
    max_len: tokens, beyond which a protein is read in windows.
    dtype: of the numbers in the file, 'float32' or 'float16'.
    overwrite: replace what is there, and what was begun with other arguments.

  Returns:
    (number of proteins, of residues, residues computed now, seconds).

  Raises:
    FileExistsError: out exists, and overwrite is False.
    ValueError: an argument is wrong, or the file cannot be read.

  Example:
    embed_file('runs/quickstart', 'my.fasta', 'my.npz')
    vectors = np.load('my.npz')['mean_-1']
  """
  from protein_lm import embedder as embedder_lib
  from protein_lm import (
    embedding_arrays,
    embedding_file,
    embedding_job,
    loading,
  )
  from protein_lm.fasta_stream import FastaStream

  out = pathlib.Path(out)
  embedding_file.check_path(out)
  embedder_lib.check_include(include)
  if dtype not in embedding_arrays.DTYPES:
    raise ValueError(f'dtype must be float32 or float16, got {dtype!r}.')
  if out.exists() and not overwrite:
    raise FileExistsError(f'{out} exists; choose another name or --overwrite')
  stream = FastaStream(fasta)
  print(f'{fasta}: {stream.tally.summary()}', flush=True)
  loaded = loading.load(work_dir, step, gin_bindings)
  embedder = embedder_lib.Embedder.of(
    loaded,
    repr_layers=repr_layers,
    include=include,
    batch_size=batch_size,
    max_len=max_len,
    dtype=dtype,
  )
  manifest = {
    'model': _digest(loaded.config, embedder.weights),
    'step': loaded.step,
    'fasta': stream.digest,
    'repr_layers': embedder.repr_layers,
    'include': embedder.include,
    'batch_size': embedder.batch_size,
    'max_len': embedder.max_len,
    'dtype': dtype,
  }
  start = time.perf_counter()
  with embedding_job.open_job(out, manifest, overwrite) as job:
    computed = _compute(job, embedder, stream)
    seconds = time.perf_counter() - start
    path = job.folder / f'whole{out.suffix}'
    _write(job, embedder, stream, path)
    job.finish(path, out)
  return stream.num_proteins, stream.num_residues, computed, seconds


def _digest(config, weights):
  """Stands for all that the model computes with."""
  import jax
  import numpy as np

  digest = hashlib.sha256(config.encode())
  for array in jax.tree.leaves(weights):
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()


def _parts(embedder, stream):
  """Yields ids, sequences and batches of one part of the file after another."""
  ids, sequences, size = [], [], 0
  for id_, residues in stream:
    ids.append(id_)
    sequences.append(residues)
    size += len(residues)
    if size >= _RESIDUES_AHEAD:
      yield ids, sequences, embedder.plan(sequences)
      ids, sequences, size = [], [], 0
  if ids:
    yield ids, sequences, embedder.plan(sequences)


def _compute(job, embedder, stream):
  """Adds to the job what is not done; returns the residues computed."""
  computed, num_done, found = 0, job.num_done, 0
  with _bar(stream) as bar, Interrupt() as interrupt:
    for ids, sequences, batches in _parts(embedder, stream):
      done, todo = batches[:num_done], batches[num_done:]
      num_done -= len(done)
      found += _num_residues(done)
      bar.update(_num_residues(done))
      if found and todo and not computed:
        bar.write(f'going on after {found:,} residues', file=sys.stdout)
      with contextlib.closing(embedder.run(todo, ids, sequences)) as outputs:
        for batch, arrays in zip(todo, outputs, strict=True):
          job.append(arrays)
          computed += _num_residues([batch])
          bar.update(_num_residues([batch]))
          if interrupt.requested:
            bar.write(
              f'stopped after {found + computed:,} of {stream.num_residues:,} '
              'residues; the same command goes on from there',
              file=sys.stderr,
            )
            raise KeyboardInterrupt
  return computed


def _num_residues(batches):
  return sum(p.piece.num_residues for batch in batches for p in batch.places)


def _write(job, embedder, stream, path):
  """Writes the output from what the job holds."""
  from protein_lm import embedding_file
  from protein_lm.embedding_arrays import combine, is_per_residue, to_dtype

  def layout(batch):
    rows = {False: len(batch.places), True: _num_residues([batch])}
    for name in embedder.names:
      per_residue = is_per_residue(name)
      dtype = embedder.dtype if per_residue else 'float32'
      yield name, ((rows[per_residue], embedder.emb_dim), dtype)

  def layouts():
    for _, _, batches in _parts(embedder, stream):
      yield from (dict(layout(batch)) for batch in batches)

  records = job.read(layouts())
  with embedding_file.writer(
    path, path.suffix, embedder, stream.num_proteins, stream.num_residues
  ) as write:
    for ids, sequences, batches in _parts(embedder, stream):
      outputs = [next(records) for _ in batches]
      for id_, residues, arrays in zip(
        ids, sequences, combine(len(ids), batches, outputs), strict=True
      ):
        arrays = {k: to_dtype(x, embedder.dtype) for k, x in arrays.items()}
        write(id_, len(residues), arrays)


def _bar(stream):
  from tqdm import tqdm

  return tqdm(
    total=stream.num_residues,
    unit='residue',
    unit_scale=True,
    leave=False,
    disable=not sys.stderr.isatty(),
  )


def _main(argv):
  del argv
  from protein_lm import compilation

  args = flags.FLAGS
  compilation.enable_cache()
  out = os.path.expanduser(args.out)
  proteins, residues, computed, seconds = embed_file(
    os.path.abspath(os.path.expanduser(args.work_dir)),
    os.path.expanduser(args.fasta),
    out,
    repr_layers=_layers(args.repr_layers),
    include=args.include,
    step=cli.parse_step(args.step),
    gin_bindings=args.gin_bindings,
    batch_size=args.batch_size,
    max_len=args.max_len,
    dtype=args.dtype,
    overwrite=args.overwrite,
  )
  print(
    f'embedded {proteins:,} proteins, {residues:,} residues'
    + f' ({computed:,} of them now)' * (computed < residues)
    + f' in {seconds:.1f} s, {computed / seconds:,.0f} residues/s'
  )
  print(f'wrote {out}')


def _layers(texts):
  try:
    return tuple(int(text) for text in texts)
  except ValueError:
    raise ValueError(
      f'--repr_layers are whole numbers parted by commas, got '
      f'{",".join(texts)!r}.'
    ) from None


def main():
  """Defines the flags and runs; the console script protein-lm-embed."""
  cli.define_model_flags()
  flags.DEFINE_string('fasta', None, 'Proteins to embed.', required=True)
  flags.DEFINE_string(
    'out', None, 'File to write: .npz, .h5 or .parquet.', required=True
  )
  flags.DEFINE_list(
    'repr_layers', ['-1'], 'Layers, 0 the input, -1 the last, such as 0,3,-1.'
  )
  flags.DEFINE_list(
    'include',
    ['mean'],
    'Some of mean, max, last, per_tok and, for masked models, bos.',
  )
  flags.DEFINE_integer(
    'batch_size',
    None,
    'Rows of data.max_len tokens that are computed at once.',
  )
  flags.DEFINE_integer(
    'max_len', None, 'Tokens, beyond which a protein is read in windows.'
  )
  flags.DEFINE_string('dtype', 'float32', 'float32 or float16.')
  flags.DEFINE_bool('overwrite', False, 'Replace a file that exists.')
  cli.run(_main)


if __name__ == '__main__':
  main()
