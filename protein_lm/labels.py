"""Labels of proteins or of their residues, from a table of id and label.

Numbers (regression) or names of classes (classification). A label of each
residue is a string of one letter a residue, '.' for none, or numbers parted by
';', nothing between two for none. In arrays a class is its index and NaN is no
label.

Axes: P proteins, T all their residues, B rows, L tokens of a row.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from protein_lm import id_table

NO_LABEL = '.'


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
  """Labels of some proteins, by number.

  Attributes:
    values: float32, [P], or [T] where residues have them; NaN for none.
    offsets: [P + 1], protein p has values[offsets[p]:offsets[p + 1]]; None
      where proteins have one each.
  """

  values: np.ndarray
  offsets: np.ndarray | None = None

  @property
  def is_per_residue(self) -> bool:
    """Whether residues, not proteins, have labels."""
    return self.offsets is not None

  @property
  def num_labels(self) -> int:
    """How many there are."""
    return int(np.count_nonzero(~np.isnan(self.values)))


class LabelTable:
  """A table of labels, read and checked; asked for those of a split.

  Attributes:
    path: of the file.
    per: 'protein' or 'residue'.
    classes: names of the classes, or None for numbers.
  """

  def __init__(
    self, path, per: str = 'protein', classes: Sequence[str] | None = None
  ):
    """Reads the table.

    Args:
      path: with the header id,label.
      per: 'protein' or 'residue'.
      classes: names of the classes, in the order of the model's outputs; of
        one letter each where residues have labels. None: labels are numbers.

    Raises:
      ValueError: one sentence with file:line on what is no label.
    """
    self.path, self.per = path, per
    self.classes = tuple(classes) if classes else None
    self._per_residue = per == 'residue'
    self._index = None
    if classes is not None:
      _check_classes(self.classes or (), self._per_residue)
      self._index = {name: i for i, name in enumerate(self.classes)}
    self._rows = id_table.read(path, 'label')
    self._labels = {id_: self._parse(row) for id_, row in self._rows.items()}

  def of(self, ids: Sequence[str], lengths) -> Labels:
    """The Labels of proteins.

    Args:
      ids: [P] of the proteins; of a mixture also '<data set>/<id>'.
      lengths: [P] residues of each.

    Raises:
      ValueError: residues and their labels differ in number.
    """
    found = [self._labels.get(self._known(id_)) for id_ in ids]
    if not self._per_residue:
      values = [math.nan if x is None else x[0] for x in found]
      return Labels(np.array(values, np.float32))
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    values_T = np.full(offsets[-1], np.nan, np.float32)
    for p, (id_, labels) in enumerate(zip(ids, found, strict=True)):
      if labels is None:
        continue
      if len(labels) != lengths[p]:
        raise ValueError(
          f'{self._rows[self._known(id_)].where} has {len(labels)} labels and '
          f'{id_} has {lengths[p]} residues; write {NO_LABEL!r} (or nothing '
          "between two ';') where there is none."
        )
      values_T[offsets[p] : offsets[p + 1]] = labels
    return Labels(values_T, offsets)

  def count(self, ids: Sequence[str]) -> int:
    """How many of these proteins have a row."""
    return sum(self._known(id_) in self._labels for id_ in ids)

  def _known(self, id_):
    return id_ if id_ in self._labels else id_.rpartition('/')[2]

  def _parse(self, row) -> np.ndarray:
    if not self._per_residue:
      return np.array([self._one(row.value, row)], np.float32)
    parts = row.value if self.classes else row.value.split(';')
    return np.array([self._one(part.strip(), row) for part in parts])

  def _one(self, text, row) -> float:
    if text in ('', NO_LABEL):
      return math.nan
    if self._index:
      if text not in self._index:
        raise ValueError(
          f'{row.where} has the label {text[:20]!r}; data.label_classes are '
          f'{", ".join(self.classes)}.'
        )
      return float(self._index[text])
    try:
      value = float(text)
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      raise ValueError(
        f'{row.where} has the label {text[:20]!r}, not a number; for names '
        'bind data.label_classes.'
      )
    return value


def _check_classes(classes, per_residue):
  if len(classes) < 2 or len(set(classes)) != len(classes):
    raise ValueError(
      f'data.label_classes must be two names at least, all different, got '
      f'{classes!r}.'
    )
  for name in classes:
    if name in ('', NO_LABEL) or (per_residue and len(name) != 1):
      what = 'one letter for residues' if per_residue else 'a name'
      raise ValueError(
        f'data.label_classes must each be {what}, not {NO_LABEL!r}, got '
        f'{name!r}.'
      )


def scale_of(labels: Sequence[Labels]) -> tuple[float, float]:
  """(mean, standard deviation) of numbers; a deviation of 0 becomes 1."""
  values = np.concatenate([x.values for x in labels]).astype(np.float64)
  values = values[~np.isnan(values)]
  return float(values.mean()), float(values.std()) or 1.0
