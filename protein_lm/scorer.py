"""Scores proteins with a loaded model: on its devices, in batches of one shape.

Axes: T residues of all proteins, B rows of a batch, L tokens of a row.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from protein_lm import cores, loading, per_sequence, sharding, vocab
from protein_lm import mesh as mesh_lib
from protein_lm import proteins as proteins_lib
from protein_lm import scores as scores_lib
from protein_lm.data import EvalBatches
from protein_lm.proteins import Proteins
from protein_lm.scores import Scores

# Tokens of a batch. On a CPU few for each device, which stay in its caches
# (scripts/BENCHMARKS.md, section 9).
_TOKENS_ON_CPU, _TOKENS = 2**11, 2**15
DEFAULT_MAX_LEN = 512  # of data.open_data
NUM_MASKS = 5  # of a masked model: mean and spread over them


class Scorer:
  """A loaded model, ready to score: calibrated, on a mesh, compiled once.

  Attributes:
    loaded: LoadedModel, with statistics if its attention needs them.
    batch_size: rows of a batch; fewer where the proteins fill fewer.
    max_len: tokens of a row; longer proteins are read in windows.
    mesh: jax.sharding.Mesh of several devices, or None.
  """

  def __init__(
    self,
    loaded,
    *,
    batch_size: int | None = None,
    num_devices: int | None = None,
    data=None,
  ):
    """Takes a model of residues.

    Args:
      loaded: LoadedModel.
      batch_size: rows of a batch; by default 2,048 tokens of them a device on a
        CPU, 32,768 in all elsewhere.
      num_devices: over which the rows are cut. By default all accelerators of
        this process, or the cores of a CPU (cores.py).
      data: of loaded.open_data(), if it is open already; only read for
        statistics of the attention.

    Raises:
      ValueError: the model is of labels, or there are fewer devices.
    """
    check_objective(loaded)
    arguments = loaded.data_arguments
    self.loaded = loading.calibrated(loaded, data)
    self.max_len = arguments.get('max_len') or DEFAULT_MAX_LEN
    self.mesh = _make_mesh(num_devices)
    if batch_size is None:
      num_tokens = _TOKENS
      if jax.default_backend() == 'cpu':
        num_tokens = _TOKENS_ON_CPU * (self.mesh.size if self.mesh else 1)
      batch_size = max(1, num_tokens // self.max_len)
    if batch_size < 1:
      raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
    self.batch_size = batch_size
    self._score_step = _score_step(loaded.graphdef, loaded.objective, self.mesh)

  @property
  def is_masked(self) -> bool:
    """Whether residues are scored where they are masked."""
    return self.loaded.model.objective == 'masked'

  @property
  def masks(self) -> range:
    """The numbers of the masks that a split is scored under."""
    return range(NUM_MASKS if self.is_masked else 1)

  def batches(self, proteins: Proteins) -> EvalBatches:
    """All batches of some proteins, of as many rows as they fill, at most."""
    batches = EvalBatches(proteins, 1, self.max_len)
    num_rows = min(self.batch_size, 1 << max(len(batches) - 1, 0).bit_length())
    if self.mesh is not None:  # a multiple of the devices
      num_rows = -(-num_rows // self.mesh.size) * self.mesh.size
    return EvalBatches(proteins, num_rows, self.max_len)

  def seconds_per_batch(self, proteins: Proteins) -> float:
    """Scores the first batch twice, and says how long the second time took."""
    (first, *_) = self.batches(proteins)[:1]
    mask_BL = (
      np.zeros(first.batch.tokens.shape, bool) if self.is_masked else None
    )
    with self._on_mesh():
      for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(
          self._score_step(self.loaded.weights, first.batch, mask_BL)
        )
    return time.perf_counter() - start

  def _on_mesh(self):
    return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()

  def score(
    self,
    proteins: Proteins,
    *,
    mask_T: np.ndarray | None = None,
    k: int = 0,
    after_batch: Callable[[int], None] = lambda num_tokens: None,
  ) -> Scores:
    """Scores each residue once.

    Args:
      proteins: a split.
      mask_T: of a masked model, what it must not see; by default the k-th
        evaluation mask.
      k: number of that mask.
      after_batch: called with the number of tokens of each batch.

    Returns:
      Scores.
    """
    if self.is_masked and mask_T is None:
      mask_T = scores_lib.masked_residues(proteins, k)
    with self._on_mesh():
      return scores_lib.score_split(
        self._score_step,
        self.loaded.weights,
        self.batches(proteins),
        proteins,
        mask_T=mask_T,
        after_batch=after_batch,
      )


def score_proteins(
  loaded, proteins: Proteins, *, batch_size: int | None = None, k: int = 0
) -> Scores:
  """Scores proteins with a loaded model, each residue once.

  Args:
    loaded: LoadedModel of a FlaxLM or FlaxBERT; statistics that its attention
      lacks are measured on training batches.
    proteins: a split, or `proteins.from_sequences` of anything.
    batch_size: rows of a batch; by default what suits the device.
    k: number of the mask of a masked model.

  Returns:
    Scores.

  Raises:
    ValueError: the model is of labels.

  Example:
    loaded = protein_lm.load('runs/quickstart')
    proteins = loaded.open_data().proteins('test')
    scores = evaluation.score_proteins(loaded, proteins)
    print(evaluation.summarize(scores, proteins)['residue_perplexity'])
  """
  return Scorer(loaded, batch_size=batch_size).score(proteins, k=k)


def perplexity_of(
  loaded,
  sequences: Sequence[str] | Mapping[str, str],
  *,
  batch_size: int | None = None,
) -> list[dict[str, Any]]:
  """Perplexity of sequences, one by one.

  Args:
    loaded: LoadedModel of a FlaxLM or FlaxBERT.
    sequences: upper-case letters; a list, or id -> sequence. Masks of a masked
      model are keyed by the id, in a list by the sequence itself, so that a
      sequence is scored alike alone and among others.
    batch_size: rows of a batch; by default what suits the device.

  Returns:
    A dict for each sequence, in their order, as `per_sequence.rows` has them;
    the ids of a list are '1', '2' and so on. For a masked model over five
    masks.

  Raises:
    ValueError: there is no sequence, one is empty, or a letter is no residue.

  Example:
    loaded = protein_lm.load('runs/quickstart')
    (row,) = evaluation.perplexity_of(loaded, ['MKTAYIAKQRQISFVKSHFSRQ'])
    print(row['residue_perplexity'])
  """
  if isinstance(sequences, str):
    raise ValueError('give a list of sequences, not one string.')
  if isinstance(sequences, Mapping):
    named = dict(sequences)
    keys = list(named)
  else:
    keys, named = list(sequences), {x: x for x in sequences}
  proteins = _proteins_of(named)
  scorer = Scorer(loaded, batch_size=batch_size)
  scores = [scorer.score(proteins, k=k) for k in scorer.masks]
  rows = dict(zip(named, per_sequence.rows(scores, proteins), strict=True))
  if isinstance(sequences, Mapping):
    return [rows[key] for key in keys]
  return [rows[key] | {'id': str(i)} for i, key in enumerate(keys, start=1)]


def _proteins_of(named):
  """Proteins of id -> sequence; errors name the sequence."""
  if not named:
    raise ValueError('there is no sequence to score.')
  for number, (id_, sequence) in enumerate(named.items(), start=1):
    name = f'sequence {number}' + (f' ({id_})' if id_ != sequence else '')
    if not sequence:
      raise ValueError(f'{name} is empty.')
    try:
      vocab.encode(sequence)
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from error
  return proteins_lib.from_sequences(named)


def check_objective(loaded) -> None:
  """Refuses a model of labels.

  Raises:
    ValueError: says where its metrics and predictions are.
  """
  if loaded.model.objective not in ('causal', 'masked'):
    raise ValueError(
      f'{loaded.work_dir} holds a {type(loaded.model).__name__}, of labels '
      'and not of residues: its metrics are in metrics.jsonl, and '
      'python -m protein_lm.predict writes its predictions.'
    )


@functools.lru_cache(maxsize=16)  # so that a second call compiles nothing
def _score_step(graphdef, objective, mesh):
  from protein_lm import train_step

  score_step = train_step.make_score_step(graphdef, objective)
  return sharding.make_score_step(mesh, score_step) if mesh else score_step


def _make_mesh(num_devices):
  devices = jax.local_devices()
  if num_devices is None:
    on_cpu = devices[0].platform == 'cpu'
    num_devices = cores.num_devices() if on_cpu else len(devices)
  if not 1 <= num_devices <= len(devices):
    raise ValueError(
      f'num_devices={num_devices}, and there are {len(devices)} '
      f'({devices[0].device_kind}).'
    )
  if num_devices == 1:
    return None
  return Mesh(
    np.array(devices[:num_devices]).reshape(num_devices, 1, 1, 1),
    mesh_lib.AXES,
    axis_types=(AxisType.Auto,) * len(mesh_lib.AXES),
  )
