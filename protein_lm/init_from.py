"""Starts a run from the weights of another one, `experiment.init_from`.

The names and shapes of parameters are compared before any is read. What fits is
taken; a head starts anew (the model's own output, a head for labels); LoRA
factors are folded into their kernels where the new model has no such ones; a
learned position table keeps its first rows. Everything else that differs is
refused. Moments, step and data start from nothing.

The configuration of the source is untrusted: its values are read as text.
"""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from protein_lm import checkpoint, config, lora, weights_file
from protein_lm.models import FlaxModel
from protein_lm.positions import sinusoid

HEADS = ('output', 'head')  # modules that may start anew or be left behind
_POSITIONS = 'position_table'
_STATISTICS = 'attention_stats/'
_MAX_TOLD = 8  # names in one message


class Report(NamedTuple):
  """What came of the parameters of a source; names such as 'blocks/out/bias'.

  Attributes:
    source: the path and the step.
    loaded: names whose arrays were taken.
    new: names that the source lacks and that start anew.
    left_over: names of the source that the model lacks.
    notes: sentences on what was changed on the way.
  """

  source: str
  loaded: tuple[str, ...]
  new: tuple[str, ...] = ()
  left_over: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()

  def lines(self):
    """The report as lines of text."""
    lines = [
      f'initialised from {self.source}: {len(self.loaded)} arrays loaded, '
      f'{len(self.new)} new, {len(self.left_over)} left over'
    ]
    if self.new:
      lines.append(f'  new (from their initial values): {_told(self.new)}')
    if self.left_over:
      lines.append(f'  left over in the source: {_told(self.left_over)}')
    return lines + [f'  {note}' for note in self.notes]


class Source(NamedTuple):
  """Another run's weights, not yet read.

  Attributes:
    name: the path and the step.
    shapes: name -> shape of each parameter.
    read: gives {name: array} of them.
    statistics: name -> shape of statistics of an attention.
    read_statistics: gives {name: array} of these.
    config: its configuration as text, '' if unknown.
  """

  name: str
  shapes: dict[str, tuple[int, ...]]
  read: Callable[[], dict[str, Any]]
  statistics: dict[str, tuple[int, ...]]
  read_statistics: Callable[[], dict[str, Any]]
  config: str


def start(path, step, state, config_text=''):
  """Puts the weights of another run into a state from scratch.

  Args:
    path: folder of the run, or a file of its exported weights.
    step: a step, 'latest' or 'best'.
    state: TrainState; its arrays say where the new ones lie.
    config_text: the configuration of this run, to tell what differs.

  Returns:
    (TrainState at step 0, Report). Averaged weights start from the loaded ones,
    and statistics of an attention are taken where their shapes fit.

  Raises:
    ValueError: for a source of another architecture.
    OSError, checkpoint.CheckpointError: for one that cannot be read.
  """
  source = open_source(path, step)
  params, report = _load(source, state.params)
  names = _by_name(state.params)
  placed = {n: _place(a, names[n]) for n, a in _by_name(params).items()}
  state = state._replace(params=_overlaid(state.params, placed))
  if state.ema_params:
    state = state._replace(ema_params=jax.tree.map(jnp.copy, state.params))
  notes = list(report.notes)
  statistics = _by_name(state.attention_stats)
  if statistics:
    fit = {n: tuple(x.shape) for n, x in statistics.items()}
    if fit == source.statistics:
      arrays = source.read_statistics()
      placed = {n: _place(arrays[n], x) for n, x in statistics.items()}
      stats = _overlaid(state.attention_stats, placed)
      state = state._replace(attention_stats=stats)
      notes.append('statistics of the attention are taken too')
    else:
      notes.append('the source has no such statistics of an attention')
  notes += _check_config(source, config_text)
  return state, report._replace(notes=tuple(notes))


def load(path, step, abstract_params):
  """Reads the parameters of another run that fit a model.

  Args:
    path: as in open_source.
    step: as in open_source.
    abstract_params: nested dict of arrays or jax.ShapeDtypeStruct.

  Returns:
    (nested dict of numpy arrays, without what is new; Report).

  Raises:
    ValueError: for a source of another architecture, with the differences.
    OSError, checkpoint.CheckpointError: for one that cannot be read.
  """
  return _load(open_source(path, step), abstract_params)


def open_source(path, step='latest'):
  """The Source at a path; averaged weights of a run are preferred.

  Args:
    path: folder of a run, or a file of weights_file.py.
    step: a step, 'latest' or 'best'; of a file 'latest'.

  Returns:
    Source.

  Raises:
    OSError, checkpoint.CheckpointError, weights_file.WeightsFileError: it
      cannot be read.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix == weights_file.SUFFIX and path.is_file():
    return _open_file(path, step)
  if not path.is_dir():
    raise FileNotFoundError(
      f'experiment.init_from: there is no folder or {weights_file.SUFFIX} file '
      f'{str(path)!r}; name the work_dir of a run, or its exported weights.'
    )
  step = checkpoint.choose(path, step)
  stored = checkpoint.stored_shapes(path, step)
  is_averaged = any(name.startswith('ema_params/') for name in stored)
  field = 'ema_params/' if is_averaged else 'params/'
  return Source(
    f'{path}, step {step}' + (', averaged weights' if is_averaged else ''),
    _shapes(stored, field),
    lambda: checkpoint.read_arrays(path, step, field),
    _shapes(stored, _STATISTICS),
    lambda: checkpoint.read_arrays(path, step, _STATISTICS),
    checkpoint.config(path, step),
  )


def _open_file(path, step):
  if step != 'latest':
    raise ValueError(
      f'experiment.init_from_step = {step!r} is of a folder of checkpoints, '
      f'and {path} holds one step; leave it out.'
    )
  arrays, texts = weights_file.read(path)
  return Source(
    str(path),
    _shapes(arrays, ''),
    lambda: arrays,
    {},
    dict,
    texts.get('config', ''),
  )


def _load(source, abstract_params):
  wanted = {k: tuple(x.shape) for k, x in _by_name(abstract_params).items()}
  stored, notes = dict(source.shapes), []
  fold = _factors(stored) - wanted.keys() or any(
    wanted[name] != stored[name] for name in _factors(stored)
  )
  if fold:
    stored = {k: v for k, v in stored.items() if k not in _factors(stored)}
  _check_shapes(source.name, wanted, stored)
  arrays = source.read()
  for name, array in arrays.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(
        f'{source.name}: {name} is {array.dtype}, and weights are numbers of '
        'floating point.'
      )
  if fold:
    alpha = _value(source.config, 'lora_alpha')
    if alpha is None:
      raise ValueError(
        f'{source.name} holds LoRA factors and no configuration that tells '
        'their lora_alpha; fold them with lora.merge(params, alpha) first.'
      )
    arrays = _by_name(lora.merge(_nested(arrays), float(alpha)))
    notes.append(f'LoRA factors are folded into their kernels (alpha {alpha})')
  loaded = {name: arrays[name] for name in stored if name in wanted}
  if stored.get(_POSITIONS) != wanted.get(_POSITIONS):
    loaded[_POSITIONS] = _resized(arrays[_POSITIONS], wanted[_POSITIONS][0])
    there, here = stored[_POSITIONS][0], wanted[_POSITIONS][0]
    notes.append(
      f'position_table: {there} rows in the source and {here} here; '
      + (
        f'rows {there} to {here - 1} start from the sinusoid'
        if here > there
        else f'the first {here} are taken'
      )
    )
  return _nested(loaded), Report(
    source.name,
    tuple(sorted(loaded)),
    tuple(sorted(wanted.keys() - stored.keys())),
    tuple(sorted(stored.keys() - wanted.keys())),
    tuple(notes),
  )


def _check_shapes(source_name, wanted, stored):
  """Refuses what differs beside heads, factors and rows of positions."""
  names = (n for n in wanted.keys() & stored.keys() if wanted[n] != stored[n])
  differ = sorted(n for n in names if not _is_resizable(n, wanted, stored))
  missing = sorted(
    name
    for name in wanted.keys() - stored.keys()
    if not _is_head(name) and name not in _factors(wanted)
  )
  surplus = sorted(n for n in stored.keys() - wanted.keys() if not _is_head(n))
  if not (differ or missing or surplus):
    return
  layers = {(stored[n][0], wanted[n][0]) for n in differ}
  same_layer = all(
    n.startswith('blocks/') and stored[n][1:] == wanted[n][1:] for n in differ
  )
  if differ and same_layer and not missing and not surplus:
    there, here = layers.pop()
    raise ValueError(
      f'{source_name} has {there} layers and this model {here}; set '
      f'FlaxModel.num_layers = {there}.'
    )
  parts = [
    f'{n} is {stored[n]} in the source and {wanted[n]} here' for n in differ
  ]
  parts += [f'{n} is not in the source' for n in missing]
  parts += [f'{n} is in the source only' for n in surplus]
  raise ValueError(
    f'{source_name} is of another architecture: {_told(parts, "; ")}; bind '
    'FlaxModel as the source did (its config.gin lies beside the weights).'
  )


def _check_config(source, config_text):
  """Refuses other inputs, which no shape shows; notes what else differs."""
  if not (source.config and config_text):
    return []
  names = ('FlaxModel', 'FlaxLM', 'FlaxBERT', 'FlaxRegressor')
  names += ('FlaxClassifier', 'make_fast_softmax_attention')
  names += ('make_fast_generalized_attention',)
  notes = config.diff(source.config, config_text, names).splitlines()
  for note in notes:
    if '.position_embedding:' in note and 'not set' not in note:
      raise ValueError(
        f'{source.name} has other positions: {note}; bind those of the source.'
      )
    if '.scale_embeddings:' in note and not is_default(note):
      raise ValueError(
        f'{source.name} scales embeddings otherwise: {note}; bind it as the '
        'source did.'
      )
  # The numbers of an attention that only one of them has say nothing, nor do
  # options that the source, older or imported, leaves at their defaults.
  notes = [
    note
    for note in notes
    if not (note.startswith('make_') and 'not set' in note)
    and not is_default(note)
  ]
  return [f'differs from the source: {note}' for note in notes]


def is_default(note):
  """Whether a line of config.diff sets an option of FlaxModel to its default.

  So does a run of today beside an older one, which had no such option.
  """
  key, _, change = note.partition(': ')
  arguments = inspect.signature(FlaxModel.__init__).parameters
  argument = arguments.get(key.rpartition('.')[2])
  return argument is not None and change == f'not set -> {argument.default!r}'


def _value(config_text, parameter):
  """The text of a value in a configuration, or None."""
  for key, text in config.literals(config_text).items():
    if key.rpartition('.')[2] == parameter:
      return text
  return None


def _is_head(name):
  return name.split('/')[0] in HEADS


def _is_resizable(name, wanted, stored):
  return name == _POSITIONS and wanted[name][1:] == stored[name][1:]


def _factors(names):
  return {n for n in names if n.rpartition('/')[2] in lora.FACTORS}


def _resized(table_LD, num_rows):
  """The first rows of a position table, those past its end a sinusoid."""
  rows = np.array(sinusoid(jnp.arange(num_rows), table_LD.shape[1]))
  kept = min(num_rows, len(table_LD))
  rows[:kept] = table_LD[:kept]
  return rows


# Trees.


def _place(array, like):
  """A jax.Array of the dtype and on the devices of another one."""
  array = np.asarray(array).astype(like.dtype)
  return jax.make_array_from_callback(
    array.shape, like.sharding, lambda index: array[index]
  )


def _overlaid(tree, arrays):
  return jax.tree_util.tree_map_with_path(
    lambda path, x: arrays.get(_name(path), x), tree
  )


def _by_name(tree):
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {_name(path): x for path, x in leaves}


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _nested(arrays):
  tree = {}
  for name, array in arrays.items():
    *modules, leaf = name.split('/')
    node = tree
    for module in modules:
      node = node.setdefault(module, {})
    node[leaf] = array
  return tree


def _shapes(arrays, prefix):
  """Shapes of the arrays whose names begin with a prefix, without it."""
  return {
    name.removeprefix(prefix): tuple(array.shape)
    for name, array in arrays.items()
    if name.startswith(prefix)
  }


def _told(items, separator=', '):
  more = len(items) - _MAX_TOLD
  text = separator.join(items[:_MAX_TOLD])
  return text + (f' and {more} more' if more > 0 else '')
