"""Which tokens of a protein attend to which, layer by layer, head by head.

Of exact attention the softmax weights, of fast attention the matrix that its
features imply, phi(q) phi(k)^T with rows normalised. The model never forms it;
here the attention is given unit vectors as values, so that it comes out.

Axes: N layers, H heads, L queries, S keys, both tokens of a row; Q residues.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from protein_lm import residue_log_probs, scoring, variants, vocab
from protein_lm import train_step as steps
from protein_lm.exact_attention import ExactAttention


def attention_maps(
  loaded, sequence: str, *, layers: tuple[int, ...] | None = None
) -> np.ndarray:
  """The attention weights of a protein, in one pass however long it is.

  Args:
    loaded: a LoadedModel.
    sequence: Q letters of residues.
    layers: numbers from 0, negative ones from the end; None for all.

  Returns:
    [N, H, Q + 2, Q + 2] float32 over BOS, the residues and EOS, as the model
    reads them (`labels`): row l says what token l looks at, and sums to 1.
    Residues alone are maps[..., 1:-1, 1:-1], whose rows sum to less. Features
    that are not positive (trigonometric ones) imply weights below 0 too.

  Raises:
    ValueError: an empty sequence, a letter that is no residue, a layer that
      does not exist, or more tokens than a learned position table has.

  Example:
    maps_NHLS = attention_maps(protein_lm.load('runs/quickstart'), 'MKTAYIAK')
  """
  variants.check_sequence(sequence)
  loaded = scoring.ready(loaded)
  chosen = _choose(layers, loaded.model.num_layers)
  tokens_T = residue_log_probs.with_ends(sequence)
  num_tokens = len(tokens_T)
  row_len = residue_log_probs.whole_row_len(loaded.model, num_tokens)
  tokens_BL = residue_log_probs.pad_rows([tokens_T], 1, row_len)
  maps_NHLS = _maps(loaded.graphdef, chosen, loaded.weights, tokens_BL)
  return np.array(maps_NHLS[:, :, :num_tokens, :num_tokens])


def labels(sequence: str) -> list[str]:
  """What stands at the rows and columns of a map: '<', the residues, '>'."""
  return list(vocab.decode(residue_log_probs.with_ends(sequence)))


def _choose(layers, num_layers):
  if layers is None:
    return tuple(range(num_layers))
  for layer in layers:
    if not -num_layers <= layer < num_layers:
      raise ValueError(
        f'there is no layer {layer}: the {num_layers} layers are 0 to '
        f'{num_layers - 1}, or -{num_layers} to -1.'
      )
  return tuple(layer % num_layers for layer in layers)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _maps(graphdef, layers, weights, tokens_BL):
  """[N, H, L, L] of the layers asked for, of one row."""
  model = steps.merge_model(graphdef, weights)
  found = {}
  fns = model.attention_fns
  model.scan_layers, model.remat = False, 'none'
  model.attention_fns = tuple(
    _probe_of(fns[n % len(fns)], functools.partial(found.__setitem__, n))
    for n in range(model.num_layers)
  )
  model.hidden(tokens_BL)
  return jnp.stack([found[layer] for layer in layers])


def _probe_of(fn, keep):
  """An attention that is fn, and hands its weights to keep."""
  unit_fn = fn
  if isinstance(fn, ExactAttention):  # others want values as wide as keys
    unit_fn = dataclasses.replace(fn, implementation='plain')

  class Probe:
    needs_stats = getattr(fn, 'needs_stats', False)

    def __call__(self, query, key, value, **kwargs):
      unit_LS = jnp.eye(key.shape[1], dtype=jnp.float32)
      unit_BLHS = jnp.broadcast_to(
        unit_LS[:, None], (*key.shape[:3], key.shape[1])
      )
      weights_BLHS = unit_fn(query, key, unit_BLHS, **kwargs)
      weights_BLHS /= weights_BLHS.sum(axis=-1, keepdims=True)
      keep(weights_BLHS[0].swapaxes(0, 1))
      return fn(query, key, value, **kwargs)

  probe = Probe()
  if hasattr(fn, 'projection_rng'):
    probe.projection_rng = fn.projection_rng
  return probe
