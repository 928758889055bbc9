"""How far fast attention takes a model from exact attention, in words.

Axes: B batch, L length, V vocabulary, N layers, H heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from protein_lm import vocab
from protein_lm.exact_attention import exact_attention
from protein_lm.kernel_error import kernel_errors

# Human proteins that need no data: UniProt P69905, P01308, P61626 (CC BY 4.0).
PROTEINS = {
  'hemoglobin subunit alpha': (
    'MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHFDLSHGSAQVKGHG'
    'KKVADALTNAVAHVDDMPNALSALSDLHAHKLRVDPVNFKLLSHCLLVTLAAHLPAEFTP'
    'AVHASLDKFLASVSTVLTSKYR'
  ),
  'insulin': (
    'MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAED'
    'LQVGQVELGGGPGAGSLQPLALEGSLQKRGIVEQCCTSICSLYQLENYCN'
  ),
  'lysozyme C': (
    'MKALIVLGLVLLSVTVQGKVFERCELARTLKRLGMDGYRGISLANWMCLAKWESGYNTRA'
    'TNYNAGDRSTDYGIFQINSRYWCNDGKTPGAVNACHLSCSALLQDNIADAVACAKRVVRD'
    'PQGIRAWVAWRNRCQNRDVRQYVQGCGV'
  ),
}


def report(model, attention_fn=None) -> str:
  """A table of each layer's kernel error, and what comes of it in the logits.

  Args:
    model: FlaxLM or FlaxBERT with fast attention, and with its statistics if
      that needs them.
    attention_fn: measure this fast attention instead, on queries and keys of
      the model as it is.

  Returns:
    Lines of text. The error of a layer is the L1 distance, 0 to 2, of rows of
    attention to those of softmax attention, a mean over heads and residues of
    PROTEINS; beside it stands that of equal weights, the error of an attention
    that looks at nothing.

  Example:
    print(kernel_report.report(loaded.model, make_fast_softmax_attention()))
  """
  tokens_BL = tokens(model.max_len)

  @jax.jit
  def measure(model):
    errors = kernel_errors(model, tokens_BL, attention_fn=attention_fn)
    exact = with_attention(model, exact_attention())
    fast = with_attention(model, attention_fn) if attention_fn else model
    return errors, jnp.abs(fast(tokens_BL) - exact(tokens_BL))

  (error_NH, uniform_NH), distance_BLV = measure(model)
  lines = ['  layer  kernel error  of equal weights']
  for n, (error, uniform) in enumerate(
    zip(error_NH.mean(1), uniform_NH.mean(1), strict=True), 1
  ):
    lines.append(f'  {n:5d}  {error:12.3f}  {uniform:16.3f}')
  distance_TV = np.asarray(distance_BLV)[tokens_BL != vocab.PAD_ID]
  lines.append(
    f'  logits differ by {distance_TV.mean():.3g} on average and '
    f'{distance_TV.max():.3g} at most'
  )
  return '\n'.join(lines)


def with_attention(model, attention_fn):
  """The same model with another attention in every layer."""
  other = nnx.merge(*nnx.split(model))
  other.attention_fns = (attention_fn,)
  return other


def tokens(max_len: int | None = None):
  """PROTEINS as [B, L] int32, padded, those that are longer cut."""
  rows = [
    [vocab.BOS_ID, *vocab.encode(sequence), vocab.EOS_ID][:max_len]
    for sequence in PROTEINS.values()
  ]
  length = max(map(len, rows))
  return np.array(
    [row + [vocab.PAD_ID] * (length - len(row)) for row in rows], np.int32
  )
