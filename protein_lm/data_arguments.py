"""The arguments of `data`: what they may be, and what is said if they are not.

All errors are a ValueError of one sentence that names data.<argument>.
"""

from collections.abc import Iterable

MIN_LEN = 8  # tokens of a row
LAYOUTS = ('packed', 'padded', 'concatenated')
DIRECTIONS = ('forward', 'both')


def check_whole(name: str, value, least: int, most: int = 2**24) -> None:
  """Refuses what is no whole number, too small, or beyond all memory."""
  if not _is_whole(value) or value < least:
    raise ValueError(
      f'data.{name} must be a whole number, at least {least}, got {value!r}.'
    )
  if value > most:
    raise ValueError(f'data.{name} must be at most {most}, got {value!r}.')


def check_choice(name: str, value, choices: Iterable[str]) -> None:
  """Refuses a word that is not one of the choices."""
  choices = list(choices)
  if not isinstance(value, str) or value not in choices:
    *others, last = map(repr, choices)
    raise ValueError(
      f'data.{name} must be {", ".join(others)} or {last}, got {value!r}.'
    )


def check_layout(layout, max_len, buckets, attend_across_proteins) -> None:
  """Refuses a layout that is unknown, or that others do not go with."""
  check_choice('layout', layout, LAYOUTS)
  if not isinstance(attend_across_proteins, bool):
    raise ValueError(
      'data.attend_across_proteins must be True or False, got '
      f'{attend_across_proteins!r}.'
    )
  if attend_across_proteins and layout != 'concatenated':
    raise ValueError(
      'data.attend_across_proteins = True goes with data.layout = '
      f"'concatenated' alone, got {layout!r}; leave one of them out."
    )
  if buckets is not None:
    _check_buckets(buckets, layout, max_len)


def _check_buckets(buckets, layout, max_len) -> None:
  is_list = isinstance(buckets, tuple | list) and len(buckets) > 0
  if not is_list or not all(_is_whole(b) and b >= MIN_LEN for b in buckets):
    raise ValueError(
      f'data.buckets must be a tuple of whole numbers, at least {MIN_LEN}, '
      f'such as (128, 256, 512), got {buckets!r}.'
    )
  if list(buckets) != sorted(set(buckets)) or buckets[-1] != max_len:
    raise ValueError(
      f'data.buckets must ascend to data.max_len = {max_len}, got {buckets!r}.'
    )
  if layout != 'padded':
    raise ValueError(
      f"data.buckets = {buckets!r} goes with data.layout = 'padded' alone, got "
      f'{layout!r}; leave one of them out.'
    )


def as_sources(source, buckets) -> tuple[str, ...]:
  """Returns one source or several as a tuple."""
  sources = (source,) if isinstance(source, str) else source
  is_list = isinstance(sources, tuple | list) and len(sources) > 0
  if not is_list or not all(isinstance(name, str) for name in sources):
    raise ValueError(
      'data.source must be the name of a data set or a path, or a tuple of '
      f'them, got {source!r}.'
    )
  if twice := [name for name in sources if list(sources).count(name) > 1]:
    raise ValueError(
      f'data.source names {twice[0]!r} twice; name it once, and raise its '
      'share with data.weights.'
    )
  if len(sources) > 1 and buckets is not None:
    raise ValueError(
      f'data.buckets = {buckets!r} goes with one data.source, got '
      f'{len(sources)}; leave data.buckets out.'
    )
  return tuple(sources)


def check_annotations(sequence_weights, labels, labels_per, classes, layout):
  """Refuses arguments of weights and labels that go with no other."""
  for name, path in (
    ('sequence_weights', sequence_weights),
    ('labels', labels),
  ):
    if path is not None and not isinstance(path, str):
      raise ValueError(f'data.{name} must be a path, got {path!r}.')
  check_choice('labels_per', labels_per, ('protein', 'residue'))
  if classes is not None and labels is None:
    raise ValueError(
      f'data.label_classes = {classes!r} goes with data.labels; bind both or '
      'none.'
    )
  if labels and labels_per == 'protein' and layout == 'concatenated':
    raise ValueError(
      'data.labels of proteins need rows of whole proteins: data.layout = '
      f"'packed' or 'padded', got {layout!r}."
    )


def check_weights(weights, num_sources: int) -> None:
  """Refuses weights that are no share of the rows for each source."""
  if weights is None:
    return
  if not isinstance(weights, tuple | list) or len(weights) != num_sources:
    raise ValueError(
      f'data.weights must be a tuple of {num_sources}, one number for each '
      f'data.source, got {weights!r}.'
    )
  for weight in weights:
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < 1e100:
      raise ValueError(
        f'data.weights must be positive numbers, got {weights!r}; leave out '
        'the data.source that shall not be read.'
      )


def _is_whole(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)
