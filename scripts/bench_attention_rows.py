"""What the rows of bench_attention.py run, and how they are timed.

In JAX: softmax and relu, the two factories, in chunks; *_scan_N, one token per
step, with lax_scan_unroll=N; exact, jax.nn.dot_product_attention.

In PyTorch, on the CPU, after `pip install -e '.[peers]'`: torch_sdpa,
scaled_dot_product_attention; performer_pytorch, FastAttention of that package.
That one wants a CUDA extension for causal attention. Without it, as here, it
falls back on running sums that make a state at every token: slow, and large
when a backward pass keeps them.

    python scripts/bench_attention_rows.py CASE

prints the memory of one run in PyTorch; CASE is a Case in JSON.

Axes: B batch, L length, H heads, D width of a head.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from bench_attention_case import PEERS, Case

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)

JAX_KINDS = (
  'softmax',
  'relu',
  'softmax_scan_1',
  'softmax_scan_16',
  'relu_scan_1',
  'relu_scan_16',
  'exact',
)
KINDS = (*JAX_KINDS, *PEERS)
SLOW_SECONDS = 10  # a run that takes longer is not repeated
_FAST_SECONDS = 1  # a run that takes less is warmed up in each turn
_PAUSE_SECONDS = 0.05  # threads of one library spin a while before they sleep


def timed(call: Callable[[], object]) -> float:
  """Seconds until everything that the call returns is there."""
  time.sleep(_PAUSE_SECONDS)
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def in_turn(
  calls: Mapping[object, Callable[[], object]], repeats: int
) -> dict[object, list[float]]:
  """Seconds of each call: all are run once in turn, `repeats` times.

  The first turn is not counted, except for calls too slow to be repeated. What
  ran before leaves caches and memory to a call: a fast one runs twice in its
  turn, and the second time counts.
  """
  first = {name: timed(call) for name, call in calls.items()}
  seconds = {name: [s] for name, s in first.items() if s > SLOW_SECONDS}
  repeated = [name for name in calls if name not in seconds]
  for _ in range(repeats):
    for name in repeated:
      if first[name] < _FAST_SECONDS:
        timed(calls[name])
      seconds.setdefault(name, []).append(timed(calls[name]))
  return seconds


class Gemm:
  """The rate of a float32 matrix product, the measure of the machine."""

  def __init__(self, size: int = 2048):
    matrix = jnp.ones((size, size), jnp.float32)
    program = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    self._call = functools.partial(program, matrix, matrix)
    self._gflop = 2 * size**3 / 1e9
    self.rates = []
    timed(self._call)

  def measure(self) -> None:
    self.rates += [self._gflop / timed(self._call) for _ in range(3)]

  @property
  def gflops(self) -> float:
    return statistics.median(self.rates)


def why_unavailable(kind: str) -> str:
  """Why there can be no such rows, and the way out; '' if there can."""
  if kind not in PEERS:
    return ''
  if jax.default_backend() != 'cpu':
    return f'no {kind}: PyTorch is measured on the CPU, beside JAX on the CPU'
  names = ['torch'] if kind == 'torch_sdpa' else ['torch', 'performer_pytorch']
  missing = [name for name in names if not importlib.util.find_spec(name)]
  if not missing:
    return ''
  return f"no {kind}, without {missing[0]}: pip install -e '.[peers]'"


def make_arrays(case: Case) -> list[jax.Array]:
  """query, key, value and the gradient of the output, `[B, L, H, D]`."""
  rng = np.random.default_rng(0)
  shape = (case.batch_size, case.length, case.num_heads, case.qkv_dim)
  return [
    jnp.asarray(rng.standard_normal(shape, np.float32), case.dtype)
    for _ in range(4)
  ]


def make_attention(kind: str, nb_features: int):
  """The FastAttention of a row such as 'softmax' or 'relu_scan_16'."""
  name, _, unroll = kind.partition('_scan_')
  how = {'nb_features': nb_features}
  if unroll:
    how |= {'implementation': 'scan', 'lax_scan_unroll': int(unroll)}
  if name == 'softmax':
    return make_fast_softmax_attention(**how)
  return make_fast_generalized_attention(
    kernel_fn='relu', features_type='ortho', **how
  )


def compile_jax(
  case: Case, arrays: Sequence[jax.Array]
) -> tuple[Callable[[], object], int | None]:
  """A call that runs the case on the arrays, and its temporary bytes."""
  if case.kind == 'exact':
    attention = jax.nn.dot_product_attention
  else:
    attention = make_attention(case.kind, case.nb_features)
  attend = functools.partial(attention, is_causal=case.causal)

  def forward(query_BLHD, key_BLHD, value_BLHD, out_grad_BLHD):
    del out_grad_BLHD
    return attend(query_BLHD, key_BLHD, value_BLHD)

  def forward_backward(query_BLHD, key_BLHD, value_BLHD, out_grad_BLHD):
    out_BLHD, vjp = jax.vjp(attend, query_BLHD, key_BLHD, value_BLHD)
    return out_BLHD, vjp(out_grad_BLHD)

  run = forward_backward if case.has_backward else forward
  program = jax.jit(run).lower(*arrays).compile()
  memory = program.memory_analysis()
  temp_bytes = None if memory is None else memory.temp_size_in_bytes
  return functools.partial(program, *arrays), temp_bytes


# PyTorch, imported when it is needed.


def make_torch(case: Case) -> Callable[[], object]:
  """A call that runs the case in PyTorch."""
  import torch

  torch.set_num_threads(_num_threads())
  attend = _torch_attention(torch, case)
  query_BHLD, key_BHLD, value_BHLD, out_grad_BHLD = (
    torch.randn(
      (case.batch_size, case.num_heads, case.length, case.qkv_dim),
      dtype=getattr(torch, case.dtype),
    )
    for _ in range(4)
  )
  arrays = query_BHLD, key_BHLD, value_BHLD

  def forward():
    with torch.no_grad():
      return attend(*arrays)

  def forward_backward():
    out_BHLD = attend(*arrays)
    return out_BHLD, torch.autograd.grad(out_BHLD, arrays, out_grad_BHLD)

  for array in arrays:
    array.requires_grad_(case.has_backward)
  return forward_backward if case.has_backward else forward


def _num_threads():
  """Cores this process may use, which is what JAX takes."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _torch_attention(torch, case):
  if case.kind == 'torch_sdpa':
    return functools.partial(
      torch.nn.functional.scaled_dot_product_attention, is_causal=case.causal
    )
  # It warns of the names it uses, and prints that it falls back.
  with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter('ignore')
    from performer_pytorch import FastAttention

    return FastAttention(
      dim_heads=case.qkv_dim,
      nb_features=case.nb_features,
      causal=case.causal,
      generalized_attention=case.kind == 'performer_pytorch_relu',
    )


def torch_temp_bytes(case: Case) -> int | None:
  """Memory of one run in a process of its own; None if that failed."""
  command = [sys.executable, __file__, json.dumps(dataclasses.asdict(case))]
  done = subprocess.run(command, capture_output=True, text=True)
  return int(done.stdout) if done.returncode == 0 else None


def _measure_temp_bytes(case: Case) -> int:
  """Peak of resident memory in a run, above that before it, less outputs.

  A short run first loads what is loaded once. The peak is VmHWM, which can be
  reset; ru_maxrss cannot, and starts at that of the parent process.
  """
  make_torch(dataclasses.replace(case, length=128))()
  call = make_torch(case)
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # forgets the peak so far
  before = status_bytes('VmRSS')
  outputs = call()
  peak = status_bytes('VmHWM')
  del outputs
  return max(0, peak - before - case.output_bytes)


def status_bytes(name: str) -> int:
  """A size of this process on Linux, such as VmRSS."""
  with open('/proc/self/status') as file:
    return 1024 * int(re.search(rf'{name}:\s*(\d+)', file.read())[1])


if __name__ == '__main__':
  print(_measure_temp_bytes(Case(**json.loads(sys.argv[1]))))
