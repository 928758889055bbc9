"""From a prepared data set to batches, for training and for evaluation.

A protein is the tokens BOS, its residues, EOS. A training row holds whole
proteins side by side (layout 'packed') or one protein (layout 'padded'); of a
protein longer than a row, a window drawn anew in each epoch, which has BOS or
EOS only where it reaches that end. The batch of a step is a function of seed
and step alone. Evaluation covers every residue of a split exactly once.

Axes: B rows of a batch, L tokens of a row, P proteins, T all tokens, W windows.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import gin
import numpy as np

from protein_lm import packing, prepare, vocab
from protein_lm.proteins import Proteins, load_proteins, with_ends

__all__ = ['Batch', 'Data', 'EvalBatch', 'Proteins', 'open_data']

LAYOUTS = ('packed', 'padded')
MIN_LEN = 8
_NUM_THREADS = 2  # more slow grain down on a small machine
_NUM_PREFETCHED = 16  # batches

# Tokens that count as targets: residues save B X Z, and EOS.
_COUNTED = np.zeros(vocab.SIZE, np.float32)
_COUNTED[: len(vocab.RESIDUES)] = 1
_COUNTED[list(vocab.UNCOUNTED_IDS)] = 0
_COUNTED[vocab.EOS_ID] = 1


class Batch(NamedTuple):
  """What a model trains on; all [B, L].

  Attributes:
    tokens: int32, PAD where empty.
    segment_ids: int32, 1, 2 ... for the proteins of a row, 0 where empty.
    positions: int32, from 0 in each segment.
    weights: float32, 1 where a token counts as a target (residues save B X Z,
      and EOS), else 0. A causal model cannot predict a segment's first token.
  """

  tokens: np.ndarray
  segment_ids: np.ndarray
  positions: np.ndarray
  weights: np.ndarray


class EvalBatch(NamedTuple):
  """A batch that knows where its tokens come from.

  Attributes:
    batch: its weights are 1 only on tokens to be scored here.
    protein_BL: int32, index into Proteins, -1 where empty.
    residue_BL: int32, index of the residue in its protein; the protein's
      length for EOS, -1 for BOS and where empty.
  """

  batch: Batch
  protein_BL: np.ndarray
  residue_BL: np.ndarray


def _empty_batch(num_rows: int, max_len: int) -> Batch:
  tokens_BL = np.full((num_rows, max_len), vocab.PAD_ID, np.int32)
  zeros = functools.partial(np.zeros, (num_rows, max_len))
  return Batch(tokens_BL, zeros(np.int32), zeros(np.int32), zeros(np.float32))


class EvalBatches(Sequence):
  """All tokens of a split, each to be scored once, in batches of one shape.

  A protein longer than max_len is read in windows that start every max_len / 2
  tokens; each scores only what the ones before it did not.
  """

  def __init__(self, proteins: Proteins, batch_size: int, max_len: int):
    self._batch_size, self._max_len = batch_size, max_len
    self._tokens_T, self._starts = with_ends(proteins)
    lengths_P = np.diff(self._starts)
    stride = max_len // 2
    windows_P = 1 + -(-np.maximum(lengths_P - max_len, 0) // stride)
    self._protein_W = np.repeat(np.arange(len(proteins)), windows_P)
    number_W = np.arange(len(self._protein_W)) - np.repeat(
      np.cumsum(windows_P) - windows_P, windows_P
    )
    self._first_W = number_W * stride
    self._length_W = np.minimum(
      lengths_P[self._protein_W] - self._first_W, max_len
    )
    # Tokens at the start of a window that the one before it has scored.
    self._seen_W = np.where(number_W > 0, max_len - stride, 0)
    self._by_rank = np.argsort(self._length_W, kind='stable')
    self._plan = packing.plan_rows(self._length_W, max_len)

  def __len__(self) -> int:
    return -(-self._plan.num_rows // self._batch_size)

  def __getitem__(self, index):
    index = range(len(self))[index]
    if isinstance(index, range):  # of a slice
      return [self[i] for i in index]
    batch = _empty_batch(self._batch_size, self._max_len)
    protein_BL = np.full(batch.tokens.shape, -1, np.int32)
    residue_BL = np.full(batch.tokens.shape, -1, np.int32)
    first_row = index * self._batch_size
    num_rows = min(self._batch_size, self._plan.num_rows - first_row)
    for b in range(num_rows):
      start = 0
      for segment, rank in enumerate(self._plan.row(first_row + b), 1):
        window = self._by_rank[rank]
        protein, first = self._protein_W[window], self._first_W[window]
        end = start + self._length_W[window]
        where = slice(start, end)
        token = np.arange(first, first + end - start)
        batch.tokens[b, where] = self._tokens_T[self._starts[protein] + token]
        batch.segment_ids[b, where] = segment
        batch.positions[b, where] = token - first
        batch.weights[b, start + self._seen_W[window] : end] = 1
        protein_BL[b, where] = protein
        residue_BL[b, where] = token - 1
        start = end
    np.multiply(batch.weights, _COUNTED[batch.tokens], out=batch.weights)
    return EvalBatch(batch, protein_BL, residue_BL)


@dataclasses.dataclass(frozen=True)
class Data:
  """A prepared data set with the shape of its batches; see `open_data`."""

  builder: object
  max_len: int
  batch_size: int
  layout: str

  @property
  def name(self) -> str:
    """The data set with its config and version."""
    return self.builder.info.full_name

  @property
  def splits(self) -> dict[str, tuple[int, int]]:
    """(proteins, residues) of each split."""
    return {
      split: (content['num_proteins'], content['num_residues'])
      for split, content in self.builder.info.metadata['content'].items()
    }

  @functools.cached_property
  def fingerprint(self) -> str:
    """The sha256 of what is in which split, whatever the file's name."""
    identity = {
      'name': self.builder.name,
      'version': str(self.builder.version),
      'content': self.builder.info.metadata['content'],
    }
    return hashlib.sha256(
      json.dumps(identity, sort_keys=True).encode()
    ).hexdigest()

  @functools.cached_property
  def _proteins(self) -> dict[str, Proteins]:
    return {}

  def proteins(self, split: str) -> Proteins:
    """The proteins of a split; read once, then kept."""
    if split not in self._proteins:
      self._proteins[split] = load_proteins(self.builder, split)
    return self._proteins[split]

  @functools.cached_property
  def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
    return with_ends(self.proteins('train'))

  @functools.cached_property
  def epochs(self) -> packing.Epochs:
    """Which proteins are in which training row."""
    _, starts = self._tokens
    padded = self.layout == 'padded'
    return packing.Epochs(np.diff(starts), self.max_len, one_per_row=padded)

  @property
  def steps_per_epoch(self) -> float:
    """Steps in which every training protein is seen once."""
    return self.epochs.plan.num_rows / self.batch_size

  @functools.cached_property
  def tokens_per_epoch(self) -> int:
    """Tokens of an epoch that a causal model is scored on.

    All residues save B X Z, and EOS, of a protein that fits a row, and
    max_len - 1 tokens of a longer one (a few less where it has B X Z).
    """
    tokens_T, starts = self._tokens
    counted_P = np.add.reduceat(_COUNTED[tokens_T], starts[:-1])
    cropped_P = np.diff(starts) > self.max_len
    return int(np.where(cropped_P, self.max_len - 1, counted_P).sum())

  def train_batch(self, seed: int, step: int) -> Batch:
    """The batch of a step: rows step * batch_size and the following ones."""
    tokens_T, starts = self._tokens
    batch = _empty_batch(self.batch_size, self.max_len)
    place_L = np.arange(self.max_len)
    for b in range(self.batch_size):
      start = 0
      row = self.epochs.row(seed, step * self.batch_size + b)
      for segment, window in enumerate(row, 1):
        end = start + window.length
        first = starts[window.example] + window.first
        batch.tokens[b, start:end] = tokens_T[first : first + window.length]
        batch.segment_ids[b, start:end] = segment
        batch.positions[b, start:end] = place_L[: window.length]
        start = end
    batch.weights[:] = _COUNTED[batch.tokens]
    return batch

  def train_batches(self, seed: int, start_step: int = 0) -> Iterator[Batch]:
    """Batches from a step on, without end, made in the background."""
    import grain

    _ = self.epochs  # read and planned here, not in each thread
    steps = grain.MapDataset.range(start_step, 2**62)
    batches = steps.map(lambda step: self.train_batch(seed, int(step)))
    options = grain.ReadOptions(
      num_threads=_NUM_THREADS, prefetch_buffer_size=_NUM_PREFETCHED
    )
    yield from batches.to_iter_dataset(options)

  def eval_batches(
    self,
    proteins: Proteins,
    batch_size: int | None = None,
    max_len: int | None = None,
  ) -> EvalBatches:
    """All batches of a split; always packed, the last one padded with rows."""
    batch_size = self.batch_size if batch_size is None else batch_size
    max_len = self.max_len if max_len is None else max_len
    _check_shape(batch_size, max_len)
    return EvalBatches(proteins, batch_size, max_len)


def _check_shape(batch_size: int, max_len: int) -> None:
  for name, value, least in (
    ('batch_size', batch_size, 1),
    ('max_len', max_len, MIN_LEN),
  ):
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
      raise ValueError(
        f'data.{name} must be a whole number, at least {least}, got {value!r}.'
      )


@gin.configurable('data', denylist=['work_dir'])
def open_data(
  work_dir: str | os.PathLike,
  source: str = 'human_swissprot',
  max_len: int = 512,
  batch_size: int = 32,
  layout: str = 'packed',
  data_dir: str | None = None,
) -> Data:
  """Opens a data set, and prepares it on first use.

  Args:
    work_dir: the run's folder; a FASTA file's prepared copy lives in its
      `data`, readable by its owner only.
    source: the name of a data set, or the path of a FASTA file.
    max_len: tokens of a row.
    batch_size: rows of a batch, over all devices.
    layout: 'packed' (several proteins a row) or 'padded' (one).
    data_dir: where prepared data lives instead.

  Raises:
    ValueError: one sentence on the argument, the file or the prepared copy
      that is wrong.
  """
  _check_shape(batch_size, max_len)
  if layout not in LAYOUTS:
    raise ValueError(
      f'data.layout must be {" or ".join(map(repr, LAYOUTS))}, got {layout!r}.'
    )
  if not isinstance(source, str):
    raise ValueError(
      f'data.source must be the name of a data set or a path, got {source!r}.'
    )
  if data_dir is None and prepare.is_file_source(source):
    data_dir = pathlib.Path(work_dir) / 'data'
    prepare.make_private(data_dir)
  return Data(prepare.prepare(source, data_dir), max_len, batch_size, layout)
