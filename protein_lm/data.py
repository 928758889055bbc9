"""From prepared data sets to batches, for training and for evaluation.

A protein is the tokens BOS, its residues, EOS. A training row holds whole
proteins side by side (layout 'packed'), one protein ('padded', in buckets of
like length if wanted), or a stretch of all proteins one after another
('concatenated'). Where a protein is longer than a row, the first two show a
window of it, drawn anew in each epoch, which has BOS or EOS only where it
reaches that end. The batch of a step is a function of seed and step alone.
Evaluation covers every residue of a split exactly once.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import gin

from protein_lm import annotations as annotations_lib
from protein_lm import config, layouts, mixture, prepare
from protein_lm import data_arguments as arguments
from protein_lm import labels as labels_lib
from protein_lm import proteins as proteins_lib
from protein_lm.batches import Batch, BucketBatches, RowBatches
from protein_lm.prefetch import Prefetch
from protein_lm.proteins import Proteins
from protein_lm.windows import EvalBatch, EvalBatches

__all__ = [
  'Batch',
  'Data',
  'EvalBatch',
  'EvalBatches',
  'Proteins',
  'SETTING_DEFAULTS',
  'open_data',
]

_LAYOUTS = {
  'packed': layouts.Packed,
  'padded': layouts.Padded,
  'concatenated': layouts.Concatenated,
}

# What checkpoints that say nothing of a setting were made with. 'data.order'
# counts the ways in which rows were ever ordered.
SETTING_DEFAULTS = {
  'data.weights': None,
  'data.buckets': None,
  'data.directions': 'forward',
  'data.attend_across_proteins': False,
  'data.sequence_weights': None,
  'data.labels': None,
  'data.order': 1,
}
_ORDER = 2


@dataclasses.dataclass(frozen=True)
class Data:
  """Prepared data sets with the shape of their batches; see `open_data`."""

  builders: tuple
  max_len: int
  batch_size: int
  layout: str = 'packed'
  buckets: tuple[int, ...] | None = None
  directions: str = 'forward'
  attend_across_proteins: bool = False
  weights: tuple[float, ...] | None = None
  num_workers: int = 0
  sequence_weights: str | None = None
  label_table: labels_lib.LabelTable | None = None

  @property
  def builder(self):
    """The TFDS builder of the first data set."""
    return self.builders[0]

  @property
  def name(self) -> str:
    """The data sets with config and version."""
    return ' + '.join(builder.info.full_name for builder in self.builders)

  @property
  def splits(self) -> dict[str, tuple[int, int]]:
    """(proteins, residues) of each split."""
    total = {}
    for builder in self.builders:
      for split, content in builder.info.metadata['content'].items():
        proteins, residues = total.get(split, (0, 0))
        total[split] = (
          proteins + content['num_proteins'],
          residues + content['num_residues'],
        )
    return total

  @functools.cached_property
  def fingerprint(self) -> str:
    """The sha256 of what is in which split, whatever the file's name."""
    prints = [_fingerprint(builder) for builder in self.builders]
    if len(prints) == 1:
      return prints[0]
    return hashlib.sha256(' '.join(prints).encode()).hexdigest()

  @property
  def settings(self) -> dict[str, Any]:
    """What changes batches beside the data and the seed, fit for JSON."""
    return {
      'data.batch_size': self.batch_size,
      'data.max_len': self.max_len,
      'data.layout': self.layout,
      'data.weights': self.weights and list(self.weights),
      'data.buckets': self.buckets and list(self.buckets),
      'data.directions': self.directions,
      'data.attend_across_proteins': self.attend_across_proteins,
      'data.sequence_weights': _digest(self.sequence_weights),
      'data.labels': self.label_table and _digest(self.label_table.path),
      'data.order': _ORDER,
    }

  @functools.cached_property
  def _stores(self) -> list:
    return [proteins_lib.open_store(b, 'train') for b in self.builders]

  @functools.cached_property
  def _annotations(self) -> annotations_lib.Training | None:
    if self.sequence_weights is None and self.label_table is None:
      return None
    return annotations_lib.Training(
      self.builders, self._stores, self.sequence_weights, self.label_table
    )

  @property
  def label_facts(self) -> dict[str, Any] | None:
    """What turns a model's outputs into labels, fit for JSON; None without.

    'per' is protein or residue; 'classes' their names, or 'mean' and 'std' of
    the training labels, by which numbers are standardised.
    """
    if self.label_table is None:
      return None
    table = self.label_table
    facts = {'per': table.per}
    if table.classes:
      return facts | {'classes': list(table.classes)}
    mean, std = self._annotations.label_scale
    return facts | {'mean': mean, 'std': std}

  def labels(self, split: str) -> labels_lib.Labels:
    """The labels of the proteins of a split, as the table has them."""
    proteins = self.proteins(split)
    return self.label_table.of(proteins.ids, proteins.lengths)

  @functools.cached_property
  def _proteins(self) -> dict[str, Proteins]:
    return {}

  def proteins(self, split: str) -> Proteins:
    """The proteins of a split; read once, then kept.

    Of several data sets, one after another; ids that occur twice begin with
    the data set's name.
    """
    if split not in self._proteins:
      self._proteins[split] = self._load(split)
    return self._proteins[split]

  def _load(self, split: str) -> Proteins:
    if len(self.builders) == 1:
      return proteins_lib.load_proteins(self.builder, split)
    parts = {
      builder.info.full_name.rpartition('/')[0]: proteins_lib.load_proteins(
        builder, split
      )
      for builder in self.builders
      if split in builder.info.metadata['content'] or split not in self.splits
    }
    return mixture.join_proteins(parts)

  @functools.cached_property
  def batches(self) -> RowBatches | BucketBatches:
    """Makes the training batch of any step; can be sent to a process."""
    both = self.directions == 'both'
    stores, annotations = self._stores, None
    if self._annotations:
      annotations = self._annotations.of_sources
    if self.buckets:
      return BucketBatches(
        layouts.Bucketed(stores[0], self.buckets, self.batch_size, both),
        annotations and annotations[0],
      )
    layout = _LAYOUTS[self.layout]
    return RowBatches(
      [layout(store, self.max_len, both) for store in stores],
      self.batch_size,
      self.attend_across_proteins,
      self.weights,
      annotations,
    )

  @property
  def steps_per_epoch(self) -> float:
    """Steps in which every training protein is seen once.

    Of several data sets, in which as many rows are read as all of them have.
    """
    return self.batches.num_steps

  @property
  def tokens_per_epoch(self) -> int:
    """Tokens of an epoch that a causal model is scored on, if none is B X Z.

    Each row's proteins save the first token of each: all residues and EOS of a
    protein that fits a row, max_len - 1 tokens of a longer one.
    """
    return self.batches.num_counted

  def train_batch(
    self, seed: int, step: int, rows: slice | Sequence[int] | None = None
  ) -> Batch:
    """The batch of a step, or these rows of it."""
    return self.batches.make(seed, step, slice(None) if rows is None else rows)

  def train_batches(
    self,
    seed: int,
    start_step: int = 0,
    sharding=None,
    num_workers: int | None = None,
  ) -> Prefetch:
    """Batches from a step on, without end, made in the background.

    Args:
      seed: of the run.
      start_step: step of the first batch.
      sharding: a jax.sharding.Sharding of [B, L], to get global jax arrays
        that are on the devices ahead of time; numpy arrays without.
      num_workers: processes that make batches, 0 for a thread; by default
        data.num_workers.

    Returns:
      An iterator; close it when done.
    """
    if num_workers is None:
      num_workers = self.num_workers
    return Prefetch(self.batches, seed, start_step, sharding, num_workers)

  def eval_batches(
    self,
    proteins: Proteins,
    batch_size: int | None = None,
    max_len: int | None = None,
  ) -> EvalBatches:
    """All batches of a split; always packed and read forward.

    The last batch is padded with rows.
    """
    batch_size = self.batch_size if batch_size is None else batch_size
    max_len = self.max_len if max_len is None else max_len
    arguments.check_whole('batch_size', batch_size, 1)
    arguments.check_whole('max_len', max_len, arguments.MIN_LEN)
    return EvalBatches(proteins, batch_size, max_len)


def _digest(path) -> str | None:
  if path is None:
    return None
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _fingerprint(builder) -> str:
  identity = {
    'name': builder.name,
    'version': str(builder.version),
    'content': builder.info.metadata['content'],
  }
  return hashlib.sha256(
    json.dumps(identity, sort_keys=True).encode()
  ).hexdigest()


@gin.configurable('data', denylist=['work_dir', 'trusted'])
def open_data(
  work_dir: str | os.PathLike,
  source: str | tuple[str, ...] = 'human_swissprot',
  max_len: int = 512,
  batch_size: int = 32,
  layout: str = 'packed',
  data_dir: str | None = None,
  weights: tuple[float, ...] | None = None,
  buckets: tuple[int, ...] | None = None,
  directions: str = 'forward',
  attend_across_proteins: bool = False,
  num_workers: int = 0,
  sequence_weights: str | None = None,
  labels: str | None = None,
  labels_per: str = 'protein',
  label_classes: tuple[str, ...] | None = None,
  trusted: bool | None = None,
) -> Data:
  """Opens a data set, or several as a mixture; prepares it on first use.

  Args:
    work_dir: the run's folder; a FASTA file's prepared copy lives in its
      `data`, readable by its owner only.
    source: the name of a data set, or the path of a FASTA file; or a tuple of
      them, whose rows are mixed.
    max_len: tokens of a row.
    batch_size: rows of a batch, over all devices.
    layout: 'packed' (several whole proteins a row), 'padded' (one), or
      'concatenated' (all proteins one after another, cut anywhere).
    data_dir: where prepared data lives instead.
    weights: of each source, its share of the rows, to any scale and rounded to
      1/1000; by default as many as it has.
    buckets: with 'padded', lengths such as (128, 256, 512), the last one
      max_len: the rows of a batch are of one bucket and as long as this, and
      there are max_len // length times more of them.
    directions: 'forward', or 'both': half of the proteins, others in each
      epoch, are read from C to N, EOS first and BOS last.
    attend_across_proteins: with 'concatenated', makes a row one segment, so
      that attention goes from one protein to the next.
    num_workers: processes that make batches; 0 makes them in a thread.
    sequence_weights: a table id,weight: the training loss of each protein is
      multiplied by its weight (sequence_weights.py).
    labels: a table id,label, for FlaxRegressor and FlaxClassifier (labels.py);
      proteins without a label are read and count nothing.
    labels_per: 'protein' or 'residue'.
    label_classes: names of the classes; None if labels are numbers.
    trusted: whether the user stands behind data_dir; by default, whether it is
      not from a configuration found in a folder (config.vouches_for). What is
      prepared in another one is read, and nothing is prepared outside work_dir
      and TFDS's default folder.

  Raises:
    ValueError: one sentence on the argument, the file or the prepared copy
      that is wrong.
  """
  arguments.check_whole('max_len', max_len, arguments.MIN_LEN)
  arguments.check_whole('batch_size', batch_size, 1)
  arguments.check_whole('num_workers', num_workers, 0)
  arguments.check_choice('directions', directions, arguments.DIRECTIONS)
  arguments.check_layout(layout, max_len, buckets, attend_across_proteins)
  arguments.check_annotations(
    sequence_weights, labels, labels_per, label_classes, layout
  )
  label_table = None
  if labels is not None:
    label_table = labels_lib.LabelTable(labels, labels_per, label_classes)
  sources = arguments.as_sources(source, buckets)
  arguments.check_weights(weights, len(sources))
  if trusted is None:
    trusted = config.vouches_for('data.data_dir')
  builders = tuple(
    _open_source(name, work_dir, data_dir, trusted) for name in sources
  )
  if len(builders) > 1:
    mixture.check_builders(builders)
  return Data(
    builders=builders,
    max_len=max_len,
    batch_size=batch_size,
    layout=layout,
    buckets=buckets and tuple(buckets),
    directions=directions,
    attend_across_proteins=attend_across_proteins,
    weights=weights and tuple(weights),
    num_workers=num_workers,
    sequence_weights=sequence_weights,
    label_table=label_table,
  )


def _open_source(source: str, work_dir, data_dir, trusted):
  if data_dir is None and prepare.is_file_source(source):
    data_dir = pathlib.Path(work_dir) / 'data'
    if trusted or not data_dir.is_symlink():
      prepare.make_private(data_dir)
  data_dir = pathlib.Path(data_dir or prepare.default_data_dir()).expanduser()
  may_write = trusted or any(
    data_dir.resolve().is_relative_to(pathlib.Path(folder).resolve())
    for folder in (work_dir, prepare.default_data_dir())
  )
  return prepare.prepare(source, data_dir, may_write=may_write)
