"""What batches carry beside proteins: weights and labels of one source.

Axes: P proteins, B rows, L tokens of a row, S pieces, T tokens of all pieces.
"""

import dataclasses

import numpy as np

from protein_lm import labels as labels_lib
from protein_lm import proteins, sequence_weights
from protein_lm.labels import Labels
from protein_lm.layouts import NUM_ENDS, Pieces


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
  """Of the proteins of a store, by number.

  Attributes:
    weights: [P] float32, or None for 1.
    labels: Labels, standardised if numbers, or None.
    lengths: [P] residues.
  """

  lengths: np.ndarray
  weights: np.ndarray | None = None
  labels: Labels | None = None

  def write(self, batch, pieces: Pieces, start_S) -> None:
    """Writes labels, if any, and multiplies weights, where pieces lie.

    The label of a protein stands at the last token of each of its pieces, that
    of a residue at this. Where there are labels, only what has one counts.

    Args:
      batch: Batch, or LabelledBatch, of tokens and weights as they are without
        annotations.
      pieces: in the rows of the batch.
      start_S: place of each piece in its row.
    """
    row_S, protein_S, first_S, length_S, backward_S = pieces
    piece_T = np.repeat(np.arange(len(row_S)), length_S)
    within_T = np.arange(len(piece_T)) - np.repeat(
      np.cumsum(length_S) - length_S, length_S
    )
    where_T = row_S[piece_T], start_S[piece_T] + within_T
    if self.labels is not None:
      if self.labels.is_per_residue:
        tokens_S = np.asarray(self.lengths[protein_S], np.int64) + NUM_ENDS
        token_T = first_S[piece_T] + within_T
        token_T = np.where(
          backward_S[piece_T], tokens_S[piece_T] - 1 - token_T, token_T
        )
        is_residue_T = (token_T > 0) & (token_T < tokens_S[piece_T] - 1)
        begin_T = self.labels.offsets[protein_S][piece_T]
        place_T = np.where(is_residue_T, begin_T + token_T - 1, 0)
        label_T = np.where(is_residue_T, self.labels.values[place_T], np.nan)
        batch.labels[where_T] = label_T
        batch.weights[where_T] *= ~np.isnan(label_T)
      else:
        last_S = row_S, start_S + length_S - 1
        label_S = self.labels.values[protein_S]
        batch.labels[last_S] = label_S
        batch.weights[where_T] = 0
        batch.weights[last_S] = ~np.isnan(label_S)
    if self.weights is not None:
      batch.weights[where_T] *= self.weights[protein_S][piece_T]


class Training:
  """The annotations of the training proteins of all sources.

  Attributes:
    of_sources: Annotations of each source.
    label_scale: (mean, standard deviation) by which labels that are numbers are
      standardised; None without such.
  """

  def __init__(self, builders, stores, weights_path, label_table):
    """Reads the ids of all training proteins, and what is said of them.

    Args:
      builders: of the data sets.
      stores: of their train splits.
      weights_path: see sequence_weights.read; None for none.
      label_table: labels.LabelTable, or None.

    Raises:
      ValueError: for what the files say wrong, or not at all.
    """
    ids = [proteins.read_ids(builder, 'train') for builder in builders]
    lengths = [np.asarray(store.lengths) for store in stores]
    weights = labels = [None] * len(stores)
    self.label_scale = None
    if weights_path is not None:
      weights = sequence_weights.read(weights_path, ids, lengths)
    if label_table is not None:
      labels = [
        label_table.of(its, n) for its, n in zip(ids, lengths, strict=True)
      ]
      _tell_labels(label_table, ids, labels)
      if label_table.classes is None:
        self.label_scale = labels_lib.scale_of(labels)
        labels = [_standardised(x, *self.label_scale) for x in labels]
    self.of_sources = [
      Annotations(*x) for x in zip(lengths, weights, labels, strict=True)
    ]


def _tell_labels(table, ids, labels):
  num_labels = sum(x.num_labels for x in labels)
  total = sum(map(len, ids))
  if not num_labels:
    raise ValueError(
      f'{table.path} has no label of the {total:,} proteins of train, such as '
      f'{ids[0][0]!r}; its ids must be those of the data.'
    )
  labelled = sum(map(table.count, ids))
  print(
    f'{table.path}: {labelled:,} of {total:,} proteins of train have a row, '
    f'{num_labels:,} labels in all.',
    flush=True,
  )


def _standardised(labels, mean, std):
  values = ((labels.values - mean) / std).astype(np.float32)
  return dataclasses.replace(labels, values=values)
