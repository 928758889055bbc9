"""A trained model from its work_dir alone."""

import dataclasses
import os
from typing import Any

import gin
import jax

from protein_lm import checkpoint, config, objectives, vocab
from protein_lm import data as data_lib
from protein_lm import train_step as steps


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
  """A checkpoint and all that its configuration says.

  Attributes:
    work_dir: folder of the run.
    step: step of the checkpoint.
    graphdef: static graph of the model.
    params: nested dict of arrays; the averaged ones if the run kept an average
      (`experiment.ema_decay`).
    attention_stats: of the attentions that need them, see calibrate; () if
      the checkpoint has none.
    config: the configuration, text in gin's syntax.
    data_arguments: of data.open_data, as configured, and whether the caller's
      gin_bindings stand behind data_dir.
    objective: what it was trained on, see objectives.py.
    metadata: saved with the checkpoint, such as `data_fingerprint`.
  """

  work_dir: str
  step: int
  graphdef: Any
  params: Any
  attention_stats: Any
  config: str
  data_arguments: dict[str, Any]
  objective: Any
  metadata: dict[str, Any]
  vocab = vocab

  @property
  def model(self):
    """The FlaxLM or FlaxBERT with its parameters, ready to call."""
    return steps.merge_model(self.graphdef, self.weights)

  @property
  def weights(self):
    """What the score step takes: parameters and statistics."""
    return steps.Weights(self.params, self.attention_stats)

  @property
  def needs_calibration(self):
    """Whether its attention needs statistics that the checkpoint lacks."""
    needs_stats = steps.merge_model(
      self.graphdef, self.params
    ).needs_attention_stats
    return needs_stats and not self.attention_stats

  def calibrate(self, batches):
    """This model with statistics of queries and keys in training batches.

    Args:
      batches: Batch objects of the train split.

    Returns:
      A LoadedModel.
    """

    @jax.jit
    def measure(params, stats, batch):
      model = steps.merge_model(self.graphdef, params)
      return model.measure_attention_stats(
        batch.tokens, segment_ids=batch.segment_ids, stats=stats
      )

    model = steps.merge_model(self.graphdef, self.params)
    total = model.init_attention_stats()
    for batch in batches:
      # The statistics choose features, which change the later layers' inputs.
      measured = measure(self.params, total, batch)
      total = jax.tree.map(lambda a, b: a + b, total, measured)
    return dataclasses.replace(self, attention_stats=total)

  def make_score_step(self):
    """A jitted `score_step(params, batch, mask_BL=None)`, see train_step.py."""
    return steps.make_score_step(self.graphdef, self.objective)

  def open_data(self):
    """The Data it was trained on; prepares what is not."""
    return data_lib.open_data(self.work_dir, **self.data_arguments)


def load(work_dir, step='latest', gin_bindings=()):
  """Loads a checkpoint and the configuration beside it.

  Clears the gin configuration of the process and puts that of the checkpoint
  in its place. The configuration is read as untrusted: literal values and
  registered names only.

  Args:
    work_dir: folder of the run.
    step: a step, 'latest' or 'best' (lowest validation loss).
    gin_bindings: bindings that override the configuration, such as
      'FlaxModel.attention_fn = @exact_attention()'.

  Returns:
    LoadedModel.

  Raises:
    checkpoint.CheckpointError: without a good checkpoint.
    config.ConfigError: for a binding that is wrong.

  Example:
    loaded = protein_lm.load('runs/quickstart')
    logits_BLV = loaded.model(tokens_BL)
  """
  work_dir = os.path.abspath(os.path.expanduser(work_dir))
  step = checkpoint.choose(work_dir, step)
  config.register()
  config.clear()
  config.parse_text(
    checkpoint.config(work_dir, step),
    source=f'{work_dir}/checkpoints/{step}/config.gin',
    trusted=False,
  )
  config.parse((), gin_bindings)
  model_cls = gin.get_bindings('experiment')['model_cls']
  graphdef, abstract_params = steps.abstract_model(model_cls)
  has_average = gin.get_bindings('experiment').get('ema_decay') is not None
  params, manifest = checkpoint.restore_params(
    work_dir,
    abstract_params,
    step,
    'ema_params' if has_average else 'params',
  )
  attention_stats = ()
  abstract_stats = jax.eval_shape(
    lambda params: steps.merge_model(graphdef, params).init_attention_stats(),
    abstract_params,
  )
  if abstract_stats and checkpoint.has_attention_stats(work_dir, step):
    attention_stats, _ = checkpoint.restore_params(
      work_dir, abstract_stats, step, 'attention_stats'
    )
  return LoadedModel(
    work_dir,
    step,
    graphdef,
    params,
    attention_stats,
    config.config_str(),
    {
      **gin.get_bindings('data'),
      'trusted': config.vouches_for('data.data_dir'),
    },
    objectives.make_objective(model_cls.objective),
    manifest['metadata'],
  )
