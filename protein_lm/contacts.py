"""Which residues of a protein depend on each other: the categorical Jacobian.

Every residue is put in place of every other amino acid, and the logits of all
residues are seen to change. Zhang et al. 2024, "Protein language models learn
evolutionary statistics of interacting sequence motifs" (PNAS), read contacts
from it. Works with any model and attention, for it asks for logits alone.

Axes: L residues, A amino acids in place, C amino acids' logits, B batch,
T tokens of a row.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from protein_lm import likelihoods, residue_log_probs, scoring, variants, vocab
from protein_lm import train_step as steps

NUM_AMINO_ACIDS = len(vocab.STANDARD_RESIDUES)
MAX_RESIDUES = 2048  # whose Jacobian takes 6.7 GB


def contacts(
  loaded,
  sequence: str,
  *,
  batch_size: int | None = None,
  progress: Callable[[Sequence], Iterable] = iter,
) -> np.ndarray:
  """How strongly each two residues depend on each other.

  The categorical Jacobian, centred and symmetrised, its Frobenius norm over the
  20 x 20 amino acids, and that with the average product correction. Costs 20 L
  passes.

  Args:
    loaded: a LoadedModel, causal or masked.
    sequence: L letters of residues.
    batch_size: rows of a pass; by default as many tokens as in training.
    progress: iterates over the batches it is given, such as tqdm.

  Returns:
    [L, L] float32, symmetric, 0 on the diagonal; higher for likelier contacts.

  Raises:
    ValueError: see `categorical_jacobian`.

  Example:
    contacts_LL = contacts(protein_lm.load('runs/quickstart'), 'MKTAYIAKQR')
  """
  jacobian_LALC = categorical_jacobian(
    loaded, sequence, batch_size=batch_size, progress=progress
  )
  return contacts_from_jacobian(jacobian_LALC, loaded.model.causal)


def categorical_jacobian(
  loaded,
  sequence: str,
  *,
  batch_size: int | None = None,
  progress: Callable[[Sequence], Iterable] = iter,
) -> np.ndarray:
  """How the logits of all residues change with each residue.

  The sequence is read whole, unmasked. A causal model's residues do not depend
  on later ones, and have 0 there.

  Args:
    loaded: a LoadedModel, causal or masked.
    sequence: L letters of residues.
    batch_size: rows of a pass; by default as many tokens as in training.
    progress: iterates over the batches it is given, such as tqdm.

  Returns:
    [L, 20, L, 20] float32: entry (i, a, j, c) is the logit of amino acid c at
    residue j with a at residue i, less that with the sequence as it is; amino
    acids by letter (vocab.STANDARD_RESIDUES). 1600 L^2 bytes.

  Raises:
    ValueError: an empty sequence, a letter that is no residue, more than
      MAX_RESIDUES, or more tokens than a learned position table has.
    FloatingPointError: the model gives NaN.
  """
  variants.check_sequence(sequence)
  L = len(sequence)
  if L > MAX_RESIDUES:
    raise ValueError(
      f'the categorical Jacobian of {L:,} residues takes {1.6e-6 * L**2:.1f} '
      f'GB and {20 * L:,} passes; cut out a domain of at most {MAX_RESIDUES:,}.'
    )
  loaded = scoring.ready(loaded)
  shape = scoring.shape_of(loaded, batch_size)
  tokens_T = residue_log_probs.with_ends(sequence)
  row_len = residue_log_probs.whole_row_len(loaded.model, len(tokens_T))
  wanted = [None, *((i, a) for i in range(L) for a in range(NUM_AMINO_ACIDS))]
  rows = shape.rows(row_len, len(wanted))
  # A causal model's output at a token speaks of the next one.
  first = 0 if loaded.model.causal else 1
  reference_LC = None
  found = np.empty((L * NUM_AMINO_ACIDS, L, NUM_AMINO_ACIDS), np.float32)
  start = 0
  for mutations in progress([*residue_log_probs.batched(wanted, rows)]):
    tokens_BT = residue_log_probs.pad_rows([tokens_T] * rows, rows, row_len)
    for b, mutation in enumerate(mutations):
      if mutation is not None:
        tokens_BT[b, 1 + mutation[0]] = mutation[1]
    logits_BTC = _logits(loaded.graphdef, loaded.weights, tokens_BT)
    logits_BLC = np.asarray(logits_BTC)[: len(mutations), first : first + L]
    if reference_LC is None:
      reference_LC, logits_BLC = logits_BLC[0], logits_BLC[1:]
    end = start + len(logits_BLC)
    found[start:end] = logits_BLC - reference_LC
    start = end
  likelihoods.check_finite(found)
  return found.reshape(L, NUM_AMINO_ACIDS, L, NUM_AMINO_ACIDS)


def contacts_from_jacobian(
  jacobian_LALC: np.ndarray, is_causal: bool = False
) -> np.ndarray:
  """Contacts from a categorical Jacobian; see `contacts`.

  Args:
    jacobian_LALC: of `categorical_jacobian`; it is overwritten.
    is_causal: half of it is 0 then, and it is centred over amino acids alone,
      not over residues.

  Returns:
    [L, L] float32.
  """
  for axis in (1, 3) if is_causal else (0, 1, 2, 3):
    jacobian_LALC -= jacobian_LALC.mean(axis, keepdims=True)
  L = len(jacobian_LALC)
  norm_LL = np.zeros((L, L))
  for i in range(L):  # by row: a symmetrised copy would be as large again
    both_ALC = jacobian_LALC[i] + jacobian_LALC[:, :, i].transpose(2, 0, 1)
    norm_LL[i] = np.sqrt(np.square(both_ALC).sum((0, 2))) / 2
  np.fill_diagonal(norm_LL, 0)
  contacts_LL = average_product_correction(norm_LL)
  np.fill_diagonal(contacts_LL, 0)
  return contacts_LL.astype(np.float32)


def average_product_correction(x_LL: np.ndarray) -> np.ndarray:
  """x_ij - sum_j x_ij sum_i x_ij / sum_ij x_ij (Dunn et al. 2008, eq. 3).

  Takes out what each residue shares with all others; rows then sum to 0.
  """
  total = x_LL.sum()
  if total == 0:
    return x_LL.copy()
  return x_LL - x_LL.sum(1, keepdims=True) * x_LL.sum(0, keepdims=True) / total


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, weights, tokens_BT):
  """Logits of the amino acids."""
  model = steps.merge_model(graphdef, weights)
  return model(tokens_BT)[..., :NUM_AMINO_ACIDS]
