"""What checkpoints cost a run: python scripts/bench_checkpoint.py

A loop of steps that keep the device busy is run with and without saves, by
turns, and told is how long the loop waited for saves (`blocked`), how long one
save takes alone, in seconds and in seconds of a processor, and how much longer
the loop took in all, since the writing shares the processors with training.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from protein_lm import checkpoint

_NUM_LEAVES = 60


def make_state(num_params):
  """Parameters and two moments, float32, in leaves of one size."""
  size = num_params // _NUM_LEAVES

  def leaves(seed):
    return {
      str(i): jax.random.normal(jax.random.key(seed + i), (size,))
      for i in range(_NUM_LEAVES)
    }

  return {'params': leaves(0), 'mu': leaves(100), 'nu': leaves(200)}


@jax.jit
def _work(x):
  return jax.lax.fori_loop(0, 8, lambda _, x: jnp.tanh(x @ x), x)


def make_step():
  """A step of GEMMs that changes every leaf of a donated state."""

  def step(state, x):
    return jax.tree.map(lambda leaf: leaf * 0.999, state), _work(x)

  return jax.jit(step, donate_argnums=0)


def run(step, num_params, num_steps, every, work_dir):
  """(seconds of a loop, blocked, a save alone, its processor seconds).

  The last three are 0.0 without a work_dir.
  """
  state, x = jax.block_until_ready((make_state(num_params), jnp.eye(1024) / 32))
  state, x = jax.block_until_ready(step(state, x))
  if work_dir is None:
    start = time.perf_counter()
    for _ in range(num_steps):
      state, x = jax.block_until_ready(step(state, x))
    return time.perf_counter() - start, 0.0, 0.0, 0.0
  start = time.perf_counter()
  with checkpoint.Saver(work_dir, keep=2) as saver:
    for i in range(1, num_steps + 1):
      state, x = jax.block_until_ready(step(state, x))
      saver.check()
      if i % every == 0:
        saver.save(i, state, config='', metadata={})
    saver.wait()
    seconds = time.perf_counter() - start
    blocked = saver.blocked_seconds
    start, processor = time.perf_counter(), time.process_time()
    saver.save(num_steps + 1, state, config='', metadata={})
    saver.wait()
    alone = time.perf_counter() - start, time.process_time() - processor
    return seconds, blocked, *alone


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--params', type=int, default=3_300_000)
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--every', type=int, default=100, help='steps a save')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--dir', default=None, help='of the disk to measure')
  args = parser.parse_args()
  step, rows = make_step(), []
  for _ in range(args.repeats):
    plain = run(step, args.params, args.steps, args.every, None)[0]
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
      work_dir = pathlib.Path(folder, 'run')
      rows.append(
        (plain, *run(step, args.params, args.steps, args.every, work_dir))
      )
  plain, saving, blocked, alone, processor = map(
    statistics.median, zip(*rows, strict=True)
  )
  print(
    f'{jax.devices()[0].device_kind}: state of {12 * args.params / 1e6:,.0f} '
    f'MB, {args.steps} steps of {1000 * plain / args.steps:.0f} ms, '
    f'{args.steps // args.every} saves\n'
    f'  without saves   {plain:.2f} s\n'
    f'  with saves      {saving:.2f} s ({saving / plain - 1:+.1%})\n'
    f'  blocked         {blocked:.2f} s ({blocked / saving:.1%}), the last '
    'save waited for\n'
    f'  a save alone    {alone:.2f} s, {processor:.2f} s of a processor'
  )


if __name__ == '__main__':
  main()
