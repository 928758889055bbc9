"""Where a run starts from: its newest good checkpoint, another run, or nothing.

A run goes on only with the data and the architecture of its checkpoint.
"""

from typing import Any, NamedTuple

from protein_lm import checkpoint, config, init_from
from protein_lm import data as data_lib

# Bindings that a checkpoint's parameters depend on.
_ARCHITECTURE = (
  'model_cls',
  'vocab_size',
  'emb_dim',
  'qkv_dim',
  'mlp_dim',
  'num_layers',
  'num_heads',
  'position_embedding',
  'norm',
  'mlp',
  'tie_embeddings',
  'qk_norm',
  'lora_rank',
  'lora_alpha',
  'lora_targets',
  'classes',
  'head_pooling',
  'causal',
  'use_bias',
  'norm_eps',
  'norm_embeddings',
  'scale_embeddings',
  'token_dropout',
  'output_head',
  'rotary_dtype',
)
_CONFIGURABLES = (
  'experiment',
  'FlaxModel',
  'FlaxLM',
  'FlaxBERT',
  'FlaxRegressor',
  'FlaxClassifier',
)


class Start(NamedTuple):
  """The first state of a run.

  Attributes:
    state: TrainState, on the mesh.
    saved: metadata of its checkpoint; empty if there was none.
    origin: a few words on where it comes from.
  """

  state: Any
  saved: dict[str, Any]
  origin: str


def first_state(
  work_dir: str,
  recipe,
  data,
  config_text: str,
  batch_settings: dict[str, Any],
  source: str | None = None,
  source_step: int | str = 'latest',
) -> Start:
  """The state of the newest good checkpoint, else of a source, else made anew.

  Args:
    work_dir: folder of the run.
    recipe: Recipe of the run.
    data: the Data of the run.
    config_text: operative configuration.
    batch_settings: what changes batches.
    source: `experiment.init_from`, see init_from.py.
    source_step: step of its checkpoint.

  Raises:
    ValueError: the checkpoint, or the source, is of another architecture, or
      the checkpoint of other data.
    checkpoint.CheckpointError: there are checkpoints, and none is good.
  """
  latest = checkpoint.latest(work_dir)
  if latest is not None:
    if 'hf' in checkpoint.manifest(work_dir, latest)['metadata']:
      raise ValueError(
        f'{work_dir} holds imported weights, not a run: train in another '
        f'work_dir with experiment.init_from = {str(work_dir)!r}.'
      )
    _check_architecture(work_dir, latest, config_text)
    state, manifest = checkpoint.restore(
      work_dir, recipe.abstract_state, latest
    )
    saved = manifest['metadata']
    _check_data(work_dir, saved, data.fingerprint, batch_settings)
    return Start(state, saved, f'going on from step {int(state.step)}')
  state = recipe.make_state()
  if source is None:
    return Start(state, {}, 'from scratch')
  state, report = init_from.start(source, source_step, state, config_text)
  print('\n'.join(report.lines()), flush=True)
  return Start(state, {}, f'from {report.source}')


def saved_metadata(work_dir: str) -> dict[str, Any]:
  """Metadata of the newest good checkpoint; empty if there is none."""
  latest = checkpoint.latest(work_dir)
  if latest is None:
    return {}
  return checkpoint.manifest(work_dir, latest)['metadata']


def _check_data(work_dir, saved, fingerprint, batch_settings):
  """Refuses other data; warns where the same data is batched otherwise."""
  before = saved['data_fingerprint']
  if before != fingerprint:
    raise ValueError(
      f'the data changed since the checkpoint in {work_dir}: fingerprint '
      f'{before[:12]} then, {fingerprint[:12]} now; put the old data back, or '
      'train in another work_dir.'
    )
  then = {**data_lib.SETTING_DEFAULTS, **saved['batches']}
  changed = [
    f'{name}: {then[name]} -> {value}'
    for name, value in batch_settings.items()
    if then[name] != value
  ]
  if changed:
    print(
      'warning: batches differ from those before the checkpoint, so proteins '
      f'may repeat or be missed in this epoch: {"; ".join(changed)}',
      flush=True,
    )


def _check_architecture(work_dir, step, config_text):
  """Refuses to go on with a model of other parameters or another objective."""
  saved_text = checkpoint.config(work_dir, step)
  differences = config.diff(saved_text, config_text, _CONFIGURABLES)
  changed = [
    line
    for line in differences.splitlines()
    if line.split(':')[0].split('.')[-1] in _ARCHITECTURE
    and not init_from.is_default(line)
  ]
  if changed:
    raise ValueError(
      f'the model changed since the checkpoint in {work_dir}: '
      f'{"; ".join(changed)}; put it back, or train in another work_dir.'
    )
