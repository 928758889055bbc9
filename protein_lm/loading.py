"""A trained model from its work_dir alone."""

import dataclasses
import os
from typing import Any

import gin
import jax
import numpy as np

from protein_lm import checkpoint, config, objectives, vocab
from protein_lm import data as data_lib
from protein_lm import train_step as steps

_CALIBRATION_BATCHES = 8


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

  # What the commands do, as one call each; options are those of the function
  # that each one names.

  def perplexity(self, sequences, **options):
    """Perplexity of each sequence, from its residues alone, without EOS.

    Args:
      sequences: proteins, or id -> protein.
      **options: of evaluation.perplexity_of, whose rows say more.

    Returns:
      [number of sequences] float64; of a masked model over five masks.
    """
    from protein_lm import evaluation

    rows = evaluation.perplexity_of(self, sequences, **options)
    name = 'residue_perplexity'
    if self.model.objective == 'masked':
      name = f'masked_{name}'
    return np.array([row[name] for row in rows], np.float64)

  def score(self, sequences, *, wild_type=None, **options):
    """Log-likelihoods of sequences, or the effects of variants of one.

    Args:
      sequences: proteins, or id -> protein; with wild_type, variants such as
        'A42G' or 'A42G:K50R', or whole sequences.
      wild_type: the protein that the variants are of.
      **options: of scoring.score_sequences, or scoring.score_variants.

    Returns:
      [number of sequences] float64, nats: log-likelihoods of the residues
      (pseudo-log-likelihoods, of a masked model); with wild_type how much
      likelier the variants are than it, by options' strategy.
    """
    from protein_lm import scoring

    if wild_type is not None:
      return scoring.score_variants(self, wild_type, sequences, **options)[0]
    rows = scoring.score_sequences(self, sequences, **options)
    name = 'log_likelihood'
    if self.model.objective == 'masked':
      name = 'pseudo_log_likelihood'
    return np.array([row[name] for row in rows], np.float64)

  def sample(self, num_samples=1, **options):
    """Draws proteins; see sampling.sample. Sample i of a seed is always one."""
    from protein_lm import sampling

    return sampling.sample(self, num_samples, **options)

  def infill(self, sequence, num_samples=1, **options):
    """Fills the gaps of a protein by a masked model; see sampling.infill."""
    from protein_lm import sampling

    return sampling.infill(self, sequence, num_samples, **options)

  def embed(self, sequences, **options):
    """Vectors of proteins at any layer; see embedding.embed."""
    from protein_lm import embedding

    return embedding.embed(self, sequences, **options)

  def attention_maps(self, sequence, **options):
    """What each token attends to, [N, H, L, L]; see attention_maps.py."""
    from protein_lm import attention_maps

    return attention_maps.attention_maps(self, sequence, **options)

  def contacts(self, sequence, **options):
    """How strongly residues depend on each other, [L, L]; see contacts.py."""
    from protein_lm import contacts

    return contacts.contacts(self, sequence, **options)


def calibrated(loaded, data=None):
  """A model with the statistics that its attention asks for.

  Args:
    loaded: LoadedModel.
    data: of loaded.open_data(), if it is open already; read only where the
      checkpoint lacks them.

  Returns:
    LoadedModel; `loaded` itself where it lacks nothing.
  """
  if not loaded.needs_calibration:
    return loaded
  print(
    'its attention needs statistics that this checkpoint lacks: measured on '
    f'{_CALIBRATION_BATCHES} training batches',
    flush=True,
  )
  data = data or loaded.open_data()
  return loaded.calibrate(
    data.train_batch(0, step) for step in range(_CALIBRATION_BATCHES)
  )


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
