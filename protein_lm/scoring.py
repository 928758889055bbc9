"""How probable sequences and variants are to a trained model.

Causal models have likelihoods: log p(x) = sum_t log p(x_t | x_<t). Masked ones
have pseudo-likelihoods: sum_t log p(x_t | all others), each residue masked in a
pass of its own. The letters B, X and Z count in neither. All in nats.

The effect of a variant, higher for fitter, by strategy:

    likelihood           log p(variant) - log p(wild type), EOS included
    pseudo-likelihood    the same of a masked model; a pass for each residue of
                         each variant
    masked-marginal      sum over the substituted places of log p(mutant) -
                         log p(wild), that place masked in the wild type; a
                         pass for each place (Meier et al. 2021)
    wild-type-marginal   the same from one pass of the wild type unmasked; by a
                         causal model from what stands on the left alone

Axes: L residues of a protein, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from protein_lm import (
  data_arguments,
  likelihoods,
  loading,
  residue_log_probs,
  vocab,
)
from protein_lm import variants as variants_lib
from protein_lm.residue_log_probs import Place, Shape
from protein_lm.variants import Variant

STRATEGIES = {
  'causal': ('likelihood', 'wild-type-marginal'),
  'masked': ('masked-marginal', 'wild-type-marginal', 'pseudo-likelihood'),
}
MARGINALS = ('masked-marginal', 'wild-type-marginal')


def score_sequences(
  loaded,
  sequences: list[str] | dict[str, str],
  *,
  batch_size: int | None = None,
  max_len: int | None = None,
  progress: Callable[[Sequence], Iterable] = iter,
) -> list[dict]:
  """The log-likelihood of each sequence, or its pseudo-log-likelihood.

  Args:
    loaded: a LoadedModel, causal or masked.
    sequences: letters of residues, by id or alone (ids are then '1', '2', ...).
    batch_size: rows of a pass; by default as many tokens as in training.
    max_len: tokens of a window, of which longer sequences take several
      (windows.py); by default that of training.
    progress: iterates over the batches it is given, such as tqdm.

  Returns:
    A dict a sequence, in order: id, length, num_scored (all residues but
    B X Z); of a causal model log_likelihood (residues), eos_log_likelihood,
    mean_log_likelihood (a residue), perplexity; of a masked one
    pseudo_log_likelihood, mean_pseudo_log_likelihood, pseudo_perplexity.

  Raises:
    ValueError: a letter that is no residue, an empty sequence, or a model of
      labels.
    FloatingPointError: the model gives NaN.

  Example:
    rows = score_sequences(protein_lm.load('runs/quickstart'), ['MKTAYIAK'])
    rows[0]['log_likelihood']
  """
  if isinstance(sequences, dict):
    ids, sequences = list(sequences), list(sequences.values())
  else:
    sequences = list(sequences)
    ids = [str(number) for number in range(1, len(sequences) + 1)]
  for id_, sequence in zip(ids, sequences, strict=True):
    try:
      variants_lib.check_sequence(sequence)
    except ValueError as error:
      raise ValueError(f'sequence {id_}: {error}') from error
  loaded = ready(loaded)
  shape = shape_of(loaded, batch_size, max_len)
  is_masked = loaded.model.objective == 'masked'
  name = 'pseudo_log_likelihood' if is_masked else 'log_likelihood'
  rows = []
  for total, eos, id_, sequence in zip(
    *likelihoods.log_likelihoods(loaded, sequences, shape, progress),
    ids,
    sequences,
    strict=True,
  ):
    num_scored = sum(x not in vocab.UNCOUNTED_RESIDUES for x in sequence)
    mean = total / num_scored if num_scored else math.nan
    row = {'id': id_, 'length': len(sequence), 'num_scored': num_scored}
    row[name] = float(total)
    if not is_masked:
      row['eos_log_likelihood'] = float(eos)
    row[f'mean_{name}'] = float(mean)
    row['pseudo_perplexity' if is_masked else 'perplexity'] = float(
      np.exp(-mean)
    )
    rows.append(row)
  return rows


def score_variants(
  loaded,
  wild_type: str,
  variants: list[str],
  *,
  strategy: str = 'auto',
  offset: int = 0,
  batch_size: int | None = None,
  max_len: int | None = None,
  progress: Callable[[Sequence], Iterable] = iter,
) -> tuple[np.ndarray, str]:
  """The effect of each variant of a protein, higher for fitter.

  Args:
    loaded: a LoadedModel, causal or masked.
    wild_type: its sequence.
    variants: mutations such as 'A42G' or 'A42G:K50R', 'WT', or whole sequences
      (of any length, for the strategies that compare likelihoods).
    strategy: one of those above; 'auto' is masked-marginal for a masked model,
      likelihood for a causal one.
    offset: what is taken from each position to count residues from 1: 23 if
      the first residue is called 24.
    batch_size: rows of a pass; by default as many tokens as in training.
    max_len: tokens of a window, for longer proteins; by default that of
      training.
    progress: iterates over the batches it is given, such as tqdm.

  Returns:
    (scores [variants] float64, nats; the strategy's name).

  Raises:
    ValueError: a variant that does not fit the wild type, or a strategy that
      does not fit the model or the variants.
    FloatingPointError: the model gives NaN.

  Example:
    scores, strategy = score_variants(loaded, 'MKTAY', ['K2R', 'T3A:Y5F'])

  Source: Meier et al. 2021, "Language models enable zero-shot prediction of
  the effects of mutations on protein function".
  """
  strategy = choose_strategy(strategy, loaded)
  variants_lib.check_sequence(wild_type)
  read = []
  for text in variants:
    variant = variants_lib.read(text, wild_type, offset)
    if variant.substitutions is None and strategy in MARGINALS:
      raise ValueError(f'{text[:40]!r} {indels_refused(strategy, loaded)}')
    read.append(variant)
  shape = shape_of(loaded, batch_size, max_len)
  scores = score_read_variants(
    ready(loaded), wild_type, read, strategy, shape, progress
  )
  return scores, strategy


def score_read_variants(
  loaded,
  wild_type: str | None,
  variants: list[Variant],
  strategy: str,
  shape: Shape,
  progress: Callable[[Sequence], Iterable] = iter,
) -> np.ndarray:
  """Scores variants that were read; see score_variants.

  Args:
    loaded: a LoadedModel that is `ready`.
    wild_type: its sequence; None to have log-likelihoods instead of ratios.
    variants: of it.
    strategy: what `choose_strategy` gave.
    shape: limits of a pass.
    progress: iterates over batches.

  Returns:
    [variants] float64, nats.
  """
  if strategy not in MARGINALS:
    sequences = [variant.of(wild_type) for variant in variants]
    distinct = list(dict.fromkeys([*filter(None, [wild_type]), *sequences]))
    totals, ends = likelihoods.log_likelihoods(
      loaded, distinct, shape, progress
    )
    found = dict(zip(distinct, totals + ends, strict=True))
    reference = found[wild_type] if wild_type else 0.0
    return np.array([found[sequence] - reference for sequence in sequences])
  if strategy == 'wild-type-marginal':
    log_probs_LV = residue_log_probs.log_probs_of_residues(
      loaded, wild_type, shape
    )
  else:
    log_probs_LV = _masked_log_probs(
      loaded, wild_type, variants, shape, progress
    )
  likelihoods.check_finite(log_probs_LV)
  log_probs_LV = log_probs_LV.astype(np.float64)
  index_of = vocab.RESIDUES.index
  return np.array(
    [
      sum(
        log_probs_LV[index, index_of(mutant)]
        - log_probs_LV[index, index_of(wild)]
        for index, wild, mutant in variant.substitutions
      )
      for variant in variants
    ],
    np.float64,
  )


def choose_strategy(strategy: str, loaded) -> str:
  """The name of the strategy to use; '_' is read as '-'.

  Raises:
    ValueError: the model has no such strategy.
  """
  model = loaded.model
  if model.objective not in STRATEGIES:
    raise ValueError(
      f'{loaded.work_dir} holds a {type(model).__name__}, of labels and not of '
      'residues: python -m protein_lm.predict writes its predictions.'
    )
  allowed = STRATEGIES[model.objective]
  if strategy == 'auto':
    return allowed[0]
  strategy = strategy.replace('_', '-').removeprefix('full-')
  if strategy not in allowed:
    raise ValueError(
      f'strategy {strategy!r} is none of {type(model).__name__}, a '
      f'{model.objective} model: choose from auto, {", ".join(allowed)}.'
    )
  return strategy


def indels_refused(strategy: str, loaded) -> str:
  """Why a variant of another length has no score, and the way out."""
  way_out = STRATEGIES[loaded.model.objective]
  way_out = next(name for name in way_out if name not in MARGINALS)
  return (
    f'differs from the wild type by more than substitutions, which {strategy} '
    f'compares place by place; use --strategy={way_out}'
    f'{" or a causal model" * (not loaded.model.causal)}'
  )


def num_passes(variants, strategy: str, wild_type: str | None) -> int:
  """Sequences that a model reads to score variants, to tell the cost."""
  if strategy == 'wild-type-marginal':
    return 1
  if strategy == 'masked-marginal':
    return len({i for v in variants for i, _, _ in v.substitutions})
  sequences = {variant.of(wild_type) for variant in variants}
  sequences |= {wild_type} if wild_type else set()
  if strategy == 'pseudo-likelihood':
    return sum(map(len, sequences))
  return len(sequences)


def shape_of(loaded, batch_size=None, max_len=None) -> Shape:
  """The limits of a pass: as in training, or as asked for.

  Raises:
    ValueError: batch_size or max_len is too small.
  """
  if batch_size is not None:
    data_arguments.check_whole('batch_size', batch_size, 1)
  of_training = loaded.data_arguments.get('max_len', 512)
  rows = loaded.data_arguments.get('batch_size', 32)
  max_len = of_training if max_len is None else max_len
  data_arguments.check_whole('max_len', max_len, data_arguments.MIN_LEN)
  return Shape(max_len, rows * of_training, batch_size)


def ready(loaded):
  """With statistics of training batches, if its attention asks for them."""
  choose_strategy('auto', loaded)
  return loading.calibrated(loaded)


def _masked_log_probs(loaded, wild_type, variants, shape, progress):
  """[residues, V], of the substituted places alone."""
  residues = {i for v in variants for i, _, _ in v.substitutions}
  places = [Place(wild_type, residue) for residue in sorted(residues)]
  found = np.zeros((len(wild_type), loaded.model.vocab_size), np.float32)
  for numbers, log_probs_BV in residue_log_probs.log_probs_of_places(
    loaded, places, shape, progress
  ):
    found[[places[n].residue for n in numbers]] = log_probs_BV
  return found
