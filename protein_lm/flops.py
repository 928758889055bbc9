"""Operations of a training step, and how many a device can do in a second.

An operation is a multiplication or an addition: a product of two matrices
`[a, b]` and `[b, c]` is 2abc. Counted is what a training step has to compute,
forward and backward: products of matrices, over tokens that are not padding.
Norms, softmax, the optimizer and what remat computes again are not, so that
`mfu`, operations a second over those of the device, compares runs.

Axes: H heads, K head width, M features, C chunk of a sweep.
"""

import functools
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fast_attention import FastAttention, estimator, tables

# Dense operations a second, in 1e12, of bfloat16, and of float32 as JAX
# multiplies by default (TensorFloat-32 where there is any, bfloat16 on TPU).
# The first name that a device's kind contains counts. Sources: the vendors'
# data sheets, without sparsity; TPU v2 and v3 by core, as JAX counts them.
_PEAKS = (
  ('gb200', 2500, 1250),
  ('b200', 2250, 1125),
  ('h200', 989, 494),
  ('h100 pcie', 756, 378),
  ('h100 nvl', 835, 417),
  ('h100', 989, 494),
  ('gh200', 989, 494),
  ('a100', 312, 156),
  ('a30', 165, 82),
  ('a40', 150, 75),
  ('a10g', 70, 35),
  ('a10', 125, 62),
  ('l40s', 362, 183),
  ('l40', 181, 90),
  ('l4', 121, 60),
  ('rtx a6000', 155, 77),
  ('rtx 6000 ada', 364, 182),
  ('rtx 4090', 165, 82),
  ('rtx 3090', 71, 36),
  ('v100', 15.7, 15.7),  # its tensor cores know neither type
  ('t4', 8.1, 8.1),
  ('tpu v2', 23, 23),
  ('tpu v3', 61, 61),
  ('tpu v4', 275, 275),
  ('tpu v5 lite', 197, 197),
  ('tpu v5e', 197, 197),
  ('tpu v5', 459, 459),
  ('tpu v6', 918, 918),
)

_GEMM_SIZE = {'cpu': 2048}
_DEFAULT_GEMM_SIZE = 8192
_multiply = jax.jit(lambda a, b: a @ b)


def of_step(model, num_unpadded: float, sum_positions: float) -> float:
  """Operations of a training step, forward and backward.

  Six a weight and token (two forward, four backward), and attention:

    exact                 14 K (7 K if causal) a head, query and key
    fast, causal          14 M(K+1) + 8 MK + 2C(4M + 3K + 3) a head and token
    fast, bidirectional   12 M(K+1) + 8 MK a head and token

  `8 MK` is the projection, which 'deterministic' features do not have. Of a
  fast attention this is the form in chunks, whatever `implementation` runs;
  an attention_fn that is not of fast_attention counts as exact.

  Args:
    model: a FlaxModel; its parameters may be abstract.
    num_unpadded: tokens that are not padding.
    sum_positions: sum of their positions, counted within segments: of a
      segment of n tokens n(n - 1)/2, so that 2 sum_positions + num_unpadded is
      the sum of n^2, the pairs of query and key.

  Returns:
    Operations, over all devices; for several steps if both sums are.
  """
  sum_squares = 2 * sum_positions + num_unpadded
  total = 6 * num_matmul_weights(model) * num_unpadded
  for layer in range(model.num_layers):
    fn = model.attention_fns[layer % len(model.attention_fns)]
    per_token, per_pair = attention(
      fn, model.causal, model.qkv_dim // model.num_heads
    )
    total += model.num_heads * (
      per_token * num_unpadded + per_pair * sum_squares
    )
  return float(total)


def attention(attention_fn, causal: bool, head_dim: int) -> tuple[float, float]:
  """Operations of one head, forward and backward; see of_step.

  Args:
    attention_fn: of a model.
    causal: what the model is; an attention that is not cannot be its own.
    head_dim: K.

  Returns:
    (a token, a pair of query and key).
  """
  K = head_dim
  if not isinstance(attention_fn, FastAttention):
    return 0.0, 7.0 * K if causal else 14.0 * K
  rows, M = 0, K
  if attention_fn.features_type != 'deterministic':
    rows = M = estimator.num_rows(
      attention_fn.features_type, attention_fn.nb_features
    )
  if attention_fn.features_type == 'trigonometric':
    M = 2 * rows
  if not causal:
    return 12.0 * M * (K + 1) + 8.0 * rows * K, 0.0
  C = tables.sweep_chunk()
  inside = 2.0 * C * (4 * M + 3 * K + 3)
  return 14.0 * M * (K + 1) + 8.0 * rows * K + inside, 0.0


def num_matmul_weights(model) -> int:
  """Weights that every token is multiplied with.

  All kernels, those of low-rank adapters too; an embedding if it is the output
  layer as well (looking tokens up multiplies nothing).
  """
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = path[-1].key
    is_output = name == 'embedding' and model.tie_embeddings
    if name == 'kernel' or name.startswith('lora_') or is_output:
      total += leaf.size
  return total


def peak(device_kind: str | None = None, dtype: str = 'float32') -> float:
  """Operations a second of one device.

  From a table of accelerators, without sparsity. A device that is not in it,
  such as a CPU, is measured: the best rate of a product of two float32
  matrices (2048 x 2048 on CPU), shared among the devices that a process
  simulates on it. Measured once in a process; it compiles a program.

  Args:
    device_kind: as JAX names it; default that of the first device.
    dtype: of the model's computation, 'float32' or 'bfloat16'.

  Raises:
    ValueError: if a device that is neither known nor here is asked for.
  """
  device = jax.devices()[0]
  if device_kind is None:
    device_kind = device.device_kind
  name = ' '.join(device_kind.lower().replace('-', ' ').split())
  for known, bfloat16, float32 in _PEAKS:
    if known in name.replace('geforce ', ''):
      return 1e12 * (bfloat16 if dtype == 'bfloat16' else float32)
  if device_kind != device.device_kind:
    raise ValueError(
      f'the speed of {device_kind!r} is not known: add it to flops._PEAKS.'
    )
  if device.platform == 'cpu':
    return gemm_rate() / jax.local_device_count()
  return _measured(device_kind, dtype)


@functools.cache
def _measured(device_kind, dtype):
  rate = gemm_rate(dtype)
  print(
    f'the speed of {device_kind!r} is not in the table, so mfu is the share of '
    f'a measured matrix product, {rate / 1e12:.1f} TFLOP/s in {dtype}.',
    flush=True,
  )
  return rate


@functools.cache
def gemm_rate(dtype: str = 'float32') -> float:
  """Operations a second of a product of matrices here, measured once.

  The best of a few: what else the machine does only takes away.
  """
  return max(gemm_rates(dtype))


def gemm_rates(dtype: str = 'float32', repeats: int = 5) -> list[float]:
  """Operations a second of single products of square matrices, now."""
  size = _GEMM_SIZE.get(jax.default_backend(), _DEFAULT_GEMM_SIZE)
  rates = []
  # By one device, whatever mesh is set: of a CPU it has all cores.
  with jax.set_mesh(Mesh(np.array(jax.local_devices()[:1]), ('one',))):
    matrix = jax.device_put(np.ones((size, size), dtype))
    jax.block_until_ready(_multiply(matrix, matrix))
    for _ in range(repeats):
      start = time.perf_counter()
      jax.block_until_ready(_multiply(matrix, matrix))
      rates.append(2 * size**3 / (time.perf_counter() - start))
  return rates
