"""The two factories, configurable by gin."""

import gin
import jax

from fast_attention import estimator, features, kernels
from fast_attention.attention import FastAttention


@gin.configurable(module='fast_attention')
def make_fast_softmax_attention(
  qkv_dim: int | None = None,
  renormalize_attention: bool = True,
  numerical_stabilizer: float = 1e-12,
  nb_features: int = 256,
  ortho_features: bool = True,
  ortho_scaling: float = 0.0,
  redraw_features: bool = True,
  unidirectional: bool | None = None,
  nonnegative_features: bool = True,
  lax_scan_unroll: int | None = None,
  features_type: str | None = None,
  seed: int = 0,
  implementation: str = 'auto',
) -> FastAttention:
  """Softmax attention, estimated with random features (FAVOR+).

  phi(q).phi(k) has the expectation exp(q.k / sqrt(K)), with the relative
  variance (exp(|x + y|^2) - 1) / M for positive features of iid rows, where
  x = K^-1/4 q and y = K^-1/4 k.

  Args:
    qkv_dim: width of one head. Best left unset: a value that differs from the
      query's width is an error.
    renormalize_attention: whether rows sum to one. If not, the output is the
      unnormalised estimate of sum_s exp(q.k_s / sqrt(K)) v_s.
    numerical_stabilizer: added to key features, whose largest is 1. The
      denominator is at least this, so rows sum to one at every norm. 0 is
      exactly unbiased, and good to a standard deviation of q and k of about 5.
    nb_features: rows M of the random matrix. Trigonometric features are 2 M.
    ortho_features: whether rows are orthogonal in blocks of K: less variance.
    ortho_scaling: norms of orthogonal rows: 0 as of Gaussian vectors
      (unbiased), 1 all sqrt(K).
    redraw_features: whether training draws the matrices anew at each step, see
      `FastAttention.projection_rng`. Evaluation and decoding never do.
    unidirectional: True is causal, False bidirectional, None follows the call
      (`is_causal`), that is, the model.
    nonnegative_features: True is positive features, False trigonometric ones,
      whose denominators may vanish: only for small norms.
    lax_scan_unroll: steps per turn of the loop (chunks, or tokens with
      implementation 'scan'); None picks by platform.
    features_type: 'positive', 'trigonometric', or one of less variance:
      'hyperbolic' (rows W and -W: 2 M features); 'favor_plus_plus', 'aderf' and
      'hyperbolic_aderf', which need statistics of queries and keys (`stats`);
      any of the positive ones with 'centred_' before it, which takes means off
      first (`stats` too). See `lower_variance`. None is what
      nonnegative_features says.
    seed: of the fixed random matrices. In a stack of Flax modules give each
      its own: Flax tells an attention nothing of its layer.
    implementation: 'auto', 'chunked', 'scan' (one token per step) or
      'reference' (quadratic).

  Returns:
    A FastAttention.

  Raises:
    ValueError: an unknown or contradictory value.

  Example:

    attention = make_fast_softmax_attention(nb_features=128)
    out = attention(query, key, value, is_causal=True)

  Source: Choromanski et al., Rethinking Attention with Performers, 2021
  (arXiv:2009.14794), Lemma 1 and Theorem 2.
  """
  implied = 'positive' if nonnegative_features else 'trigonometric'
  if features_type is None:
    features_type = implied
  if features_type not in estimator.SOFTMAX_TYPES:
    raise ValueError(
      'features_type of make_fast_softmax_attention must be one of '
      f'{", ".join(estimator.SOFTMAX_TYPES)}, got {features_type!r}.'
    )
  if nonnegative_features == (features_type == 'trigonometric'):
    raise ValueError(
      f'features_type={features_type!r} contradicts '
      f'nonnegative_features={nonnegative_features}: set '
      f'nonnegative_features={not nonnegative_features}, or leave '
      'features_type unset.'
    )
  return FastAttention(
    features_type=features_type,
    qkv_dim=qkv_dim,
    nb_features=nb_features,
    ortho_features=ortho_features,
    ortho_scaling=ortho_scaling,
    renormalize_attention=renormalize_attention,
    numerical_stabilizer=numerical_stabilizer,
    redraw_features=redraw_features,
    unidirectional=unidirectional,
    lax_scan_unroll=lax_scan_unroll,
    seed=seed,
    implementation=implementation,
  )


@gin.configurable(module='fast_attention')
def make_fast_generalized_attention(
  qkv_dim: int | None = None,
  renormalize_attention: bool = True,
  numerical_stabilizer: float = 0.0,
  nb_features: int = 256,
  features_type: str = 'deterministic',
  kernel_fn: str | kernels.KernelFn = jax.nn.relu,
  kernel_epsilon: float = 1e-3,
  redraw_features: bool = False,
  unidirectional: bool | None = None,
  lax_scan_unroll: int | None = None,
  seed: int = 0,
  implementation: str = 'auto',
) -> FastAttention:
  """Attention whose score is defined by a kernel: phi(q).phi(k).

  phi(x) = kernel_fn(W x) + kernel_epsilon. This is another attention, not an
  estimate of softmax attention: a model has to be trained or tuned with it.

  Args:
    qkv_dim: width of one head. Best left unset: a value that differs from the
      query's width is an error.
    renormalize_attention: whether rows sum to one.
    numerical_stabilizer: added to key features.
    nb_features: rows M of the random matrix; unused by 'deterministic'.
    features_type: 'deterministic' (W = 1, M = K), 'iid' or 'ortho'.
    kernel_fn: a name, a gin reference or any elementwise function. Named:
      relu; jsigmoid, jrequ, jexp, jshiftedelu, all nonnegative; jcos, jsin,
      jtanh, jgelu, jidentity, signed: their denominators may vanish, and such
      rows are zeros.
    kernel_epsilon: added to features: keeps denominators positive.
    redraw_features: as in make_fast_softmax_attention.
    unidirectional: as in make_fast_softmax_attention.
    lax_scan_unroll: as in make_fast_softmax_attention.
    seed: as in make_fast_softmax_attention.
    implementation: as in make_fast_softmax_attention.

  Returns:
    A FastAttention.

  Raises:
    ValueError: an unknown value.

  Example:

    attention = make_fast_generalized_attention(kernel_fn='jrequ')
    out = attention(query, key, value)

  Source: Choromanski et al., Rethinking Attention with Performers, 2021
  (arXiv:2009.14794), section 2.2 and appendix D.
  """
  if features_type not in features.GENERALIZED_TYPES:
    raise ValueError(
      'features_type of make_fast_generalized_attention must be one of '
      f'{", ".join(features.GENERALIZED_TYPES)}, got {features_type!r}.'
    )
  return FastAttention(
    features_type=features_type,
    qkv_dim=qkv_dim,
    nb_features=nb_features,
    ortho_features=features_type == 'ortho',
    renormalize_attention=renormalize_attention,
    numerical_stabilizer=numerical_stabilizer,
    redraw_features=redraw_features,
    unidirectional=unidirectional,
    kernel_fn=kernels.find_kernel(kernel_fn),
    kernel_epsilon=kernel_epsilon,
    lax_scan_unroll=lax_scan_unroll,
    seed=seed,
    implementation=implementation,
  )
