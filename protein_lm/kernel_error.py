"""The error of random features in a model, layer by layer.

Axes: B batch, L length, H heads, N layers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from fast_attention import FastAttention
from fast_attention import kernel_error as kernel_error_lib
from protein_lm import vocab


def kernel_errors(model, tokens, *, segment_ids=None, attention_fn=None):
  """Compares each layer's attention with exact attention on its own q and k.

  The model runs as it is (deterministic, its fixed projections), so these are
  the queries and keys that it meets. Quadratic in the length.

  Args:
    model: FlaxLM or FlaxBERT, with its statistics if its attention needs them.
    tokens: [B, L] int token ids.
    segment_ids: as in a call of the model.
    attention_fn: measure this fast attention instead, on the queries and keys
      of the model as it is. One that needs statistics takes the model's.

  Returns:
    fast_attention's KernelError, [N, H] each: mean L1 distance of rows to those
    of softmax attention, and that of equal weights on all visible keys. The
    error of a layer with exact attention is 0.

  Example:
    error_NH, uniform_NH = jax.jit(kernel_errors)(loaded.model, tokens)
  """
  mask_B11L = (tokens != vocab.PAD_ID)[:, None, None, :]
  found = []

  def probe_of(layer):
    """The layer's attention, which also leaves its error in `found`."""
    fn = model.attention_fns[layer % len(model.attention_fns)]
    measured_fn = attention_fn or fn
    is_fast = isinstance(measured_fn, FastAttention)

    class Probe:
      needs_stats = getattr(fn, 'needs_stats', False)

      def __call__(self, query, key, value, **kwargs):
        stats = None
        if is_fast and measured_fn.needs_stats:
          stats = jax.tree.map(
            lambda x: x[layer], model.attention_stats.get_value()
          )
        found.append(
          kernel_error_lib.kernel_error(
            measured_fn if is_fast else None,
            query,
            key,
            is_causal=kwargs['is_causal'],
            mask=mask_B11L,
            segment_ids=kwargs['segment_ids'],
            rng=measured_fn.projection_rng(layer) if is_fast else None,
            stats=stats,
          )
        )
        return fn(query, key, value, **kwargs)

    probe = Probe()
    if hasattr(fn, 'projection_rng'):
      probe.projection_rng = fn.projection_rng
    return probe

  probed = nnx.merge(*nnx.split(model))
  probed.scan_layers, probed.remat = False, 'none'
  probed.attention_fns = tuple(probe_of(n) for n in range(model.num_layers))
  probed.hidden(tokens, segment_ids=segment_ids)
  return jax.tree.map(lambda *x: jnp.stack(x), *found)
