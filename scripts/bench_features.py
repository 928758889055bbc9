"""The error of softmax features: python scripts/bench_features.py

Mean L1 distance of rows to those of softmax attention, for each features_type,
on anisotropic q and k: eigenvalues of each covariance geometric from 1 to
`decay` in a random basis, and a part `mean` of the square in the mean. All maps
have 256 features; rows are orthogonal; means over 4 draws of q, k and W.
"""

import jax.numpy as jnp
import numpy as np

from fast_attention import (
  estimator,
  lower_variance,
  make_fast_softmax_attention,
)
from fast_attention.kernel_error import kernel_error

LENGTH, DEPTH, NUM_FEATURES, NUM_DRAWS = 512, 64, 256, 4
SPECTRA = [(1.0, 0.0), (0.01, 0.0), (0.01, 0.25), (0.001, 0.0)]


def draw(std, decay, mean, seed):
  """q and k, `[1, LENGTH, NUM_DRAWS, DEPTH]`: each head is a draw."""
  generator = np.random.default_rng(seed)
  scale_K = np.geomspace(1, decay, DEPTH) ** 0.5
  scale_K *= std * np.sqrt((1 - mean) / np.mean(scale_K**2))
  results = []
  for _ in 'qk':
    gaussian_HKK = generator.normal(size=(NUM_DRAWS, DEPTH, DEPTH))
    basis_HKK = np.linalg.qr(gaussian_HKK)[0]
    x_HLK = generator.normal(size=(NUM_DRAWS, LENGTH, DEPTH)) * scale_K
    mean_H1K = generator.normal(size=(NUM_DRAWS, 1, DEPTH))
    mean_H1K /= np.linalg.norm(mean_H1K, axis=-1, keepdims=True)
    x_HLK = x_HLK @ basis_HKK + std * np.sqrt(mean * DEPTH) * mean_H1K
    results.append(jnp.asarray(x_HLK.swapaxes(0, 1)[None], jnp.float32))
  return results


def measure(features_type, query, key):
  """Errors of the attention and of equal weights."""
  num_rows = NUM_FEATURES // estimator.num_rows(features_type, 1)
  attention = make_fast_softmax_attention(
    nb_features=num_rows, features_type=features_type
  )
  stats = attention.measure_stats(query, key) if attention.needs_stats else None
  error_H, uniform_H = kernel_error(attention, query, key, stats=stats)
  return float(error_H.mean()), float(uniform_H.mean())


def main():
  columns = [(std, *spectrum) for std in (0.5, 1.0) for spectrum in SPECTRA]
  for std, decay, mean in columns:
    print(f'column: std {std}, decay {decay}, mean {mean}')
  inputs = [draw(*column, seed) for seed, column in enumerate(columns)]
  for name in lower_variance.FEATURES_TYPES:
    errors, uniform = zip(*(measure(name, *qk) for qk in inputs), strict=True)
    print(f'{name:26}' + '  '.join(f'{error:.3f}' for error in errors))
  print(f'{"equal weights":26}' + '  '.join(f'{x:.3f}' for x in uniform))


if __name__ == '__main__':
  main()
