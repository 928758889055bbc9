"""Numbers chosen by measurement, by platform: scripts/BENCHMARKS.md.

A sweep is quadratic within a chunk, so short chunks cost fewer operations and
long ones give larger products. A pool has no such trade: its chunks bound the
memory of the features.
"""

import jax

_SWEEP_CHUNK = {'cpu': 64}
_POOL_CHUNK = {'cpu': 512}
_DEFAULT_CHUNK = 256

# On CPU a product of one chunk runs on one core, and independent operations of
# a loop's body run side by side once more than eight of them wait: heads go in
# streams, and two chunks in a turn of the loop. Small work gains nothing, nor
# do devices that share the cores.
_STREAMS, _UNROLL = 4, 2
_LEAST_WORK = 2**23  # multiplications of one product, all heads
_LEAST_CHUNKS = 16  # to unroll: it takes 2 s more to compile


def sweep_chunk() -> int:
  """Longest chunk of a sweep."""
  return _SWEEP_CHUNK.get(jax.default_backend(), _DEFAULT_CHUNK)


def pool_chunk() -> int:
  """Longest chunk of a pool."""
  return _POOL_CHUNK.get(jax.default_backend(), _DEFAULT_CHUNK)


def concurrency(work: int, num_chunks: int) -> tuple[int, int]:
  """Streams of heads, and chunks per turn of the loop, of a sweep.

  Args:
    work: multiplications of the features of one chunk, all heads and rows.
    num_chunks: of the sweep.
  """
  if jax.default_backend() != 'cpu' or work < _LEAST_WORK:
    return 1, 1
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    return 1, 1
  return _STREAMS, _UNROLL if num_chunks >= _LEAST_CHUNKS else 1
