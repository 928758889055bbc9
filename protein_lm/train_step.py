"""One step of training, one batch of scoring: pure functions under jit.

Axes: B batch, L length.
"""

from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fast_attention import lower_variance
from protein_lm import microbatches, objectives, spikes
from protein_lm.models import AttentionStats


class TrainState(NamedTuple):
  """All that training changes; empty tuples where unused.

  step: [] int32, number of steps taken.
  params: nested dict of arrays.
  opt_state: state of the optax transformation.
  attention_stats: running averages of the statistics of queries and keys,
    for the attentions that need them, with leading axis N.
  ema_params: averaged parameters.
  spike_stats: spikes.SpikeStats of the steps taken.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  attention_stats: Any = ()
  ema_params: Any = ()
  spike_stats: Any = ()


class Weights(NamedTuple):
  """What a model computes with."""

  params: Any
  attention_stats: Any = ()


def weights_of(state):
  """The Weights to evaluate: the averaged parameters where there are any."""
  return Weights(state.ema_params or state.params, state.attention_stats)


def split_model(model):
  """(graphdef, params): the static graph and a plain dict of parameters."""
  graphdef, state = nnx.split(model, nnx.Param)
  return graphdef, nnx.to_pure_dict(state)


def merge_model(graphdef, weights):
  """The model of a graph and Weights, or a plain dict of parameters."""
  if not isinstance(weights, Weights):
    weights = Weights(weights)
  model = nnx.merge(graphdef, nnx.State(weights.params))
  if weights.attention_stats:
    model.attention_stats = AttentionStats(weights.attention_stats)
  return model


def abstract_model(model_cls):
  """(graphdef, abstract params) of a model class, without making weights."""
  return split_model(nnx.eval_shape(lambda: model_cls(rngs=nnx.Rngs(0))))


def init_params(model_cls, rng):
  """The initial parameters of a model class, a plain dict of arrays."""
  return split_model(model_cls(rngs=nnx.Rngs(rng)))[1]


def init_state(params, tx, graphdef=None, ema_decay=None):
  """TrainState before the first step.

  Args:
    params: from init_params.
    tx: optax transformation.
    graphdef: of the model; says which statistics are measured.
    ema_decay: as make_train_step's; anything but None keeps an average.
  """
  attention_stats = ema_params = ()
  if graphdef is not None:
    attention_stats = merge_model(graphdef, params).init_attention_stats()
  if ema_decay is not None:
    ema_params = jax.tree.map(jnp.copy, params)
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    tx.init(params),
    attention_stats,
    ema_params,
    spikes.init(),
  )


@gin.configurable(
  denylist=['graphdef', 'tx', 'objective', 'attention_stats_decay', 'ema_decay']
)
def make_train_step(
  graphdef,
  tx,
  objective,
  attention_stats_decay: float = 0.99,
  ema_decay: float | None = None,
  num_microbatches: int = 1,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  spike_loss_factor: float | None = 3.0,
  spike_grad_norm_factor: float | None = 10.0,
  spike_after_steps: int = 10,
):
  """Makes the jitted `train_step(state, batch, rng) -> (state, sums)`.

  The loss is the mean nll in nats over the tokens that count: residues and
  EOS, not BOS, PAD or B X Z (objectives.py).

  A step is skipped, and then changes nothing but `step`, bit for bit, if

  - its loss, gradient or update is not finite. The norm of a gradient is a sum
    of squares in float32, so one beyond 1.8e19 counts as infinite;
  - its loss or gradient is a spike (spikes.py);
  - no token counts.

  Args:
    graphdef: of the model, from split_model.
    tx: optax transformation; skipped steps do not move its schedule.
    objective: from objectives.make_objective.
    attention_stats_decay: of the running statistics of queries and keys, a
      step. A step uses those of the steps before it, never of its own batch.
    ema_decay: of the average of the parameters, a step: ema = d ema + (1 - d)
      params with d = min(ema_decay, (1 + t) / (10 + t)) after t steps taken
      before, so that it forgets the initial parameters at once. None keeps no
      average; evaluation uses it where there is one.
    num_microbatches: parts that a batch is computed in, one after the other,
      for less memory. The step is the same: all losses are added up and
      divided by all counted tokens. It must divide the rows of a batch.
    label_smoothing: share of the target that is spread over the vocabulary.
    z_loss: weight of the squared log-normaliser; 1e-4 is usual. Both are in
      what is minimised, not in the loss that is reported (objectives.py).
    spike_loss_factor: a loss so many times its running mean may be a spike;
      None does not watch it.
    spike_grad_norm_factor: the same of the norm of the gradient.
    spike_after_steps: steps taken before the first judgement.

  Returns:
    A function of (TrainState, Batch, key) to (TrainState, dict of float32
    scalar sums); the state is donated. Of a step that is taken: loss, correct,
    num_tokens, residue_loss, num_residues (objectives.sums; nats), grad_norm
    (before clipping, of what is trained), param_norm (after the step),
    update_norm; all 0 if it is skipped. Of every step: num_unpadded (tokens in
    proteins), sum_positions (of those), and 0 or 1 as skipped_steps (for any
    reason), nonfinite_steps and spiked_steps.

  Raises:
    ValueError: for a number out of its range; while tracing, for rows that
      cannot be parted.
  """
  if num_microbatches < 1:
    raise ValueError(
      'make_train_step.num_microbatches must be at least 1, got '
      f'{num_microbatches}.'
    )
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise ValueError(
      f'experiment.ema_decay must be within [0, 1) or None, got {ema_decay}.'
    )
  objective = objective.regularized(label_smoothing, z_loss)
  rule = spikes.Rule(
    spike_loss_factor, spike_grad_norm_factor, spike_after_steps
  )
  rule.check()

  def loss_fn(params, attention_stats, batch, drawn, rng):
    """The summed loss of some rows, and beside it sums for the metrics."""
    if hasattr(tx, 'is_trainable'):  # no gradient of what is not trained
      params = jax.tree.map(
        lambda x, is_trainable: x if is_trainable else jax.lax.stop_gradient(x),
        params,
        tx.is_trainable(params),
      )
    model = merge_model(graphdef, Weights(params, attention_stats))
    scores = objective.train_scores(model, drawn, rng)
    sums = objectives.sums(scores, batch.tokens)
    work = _work(batch)
    measured = model.measured_stats.get_value() if attention_stats else ()
    measured = jax.tree.map(lambda x: x * work['num_unpadded'], measured)
    return objectives.training_loss(scores), (sums, work, measured)

  def train_step(state, batch, rng):
    # 1. The gradient of the mean loss.
    drawn, rng = objective.draw(batch, rng)

    def gradients(rows, rng):
      return jax.grad(loss_fn, has_aux=True)(
        state.params, state.attention_stats, *rows, rng
      )

    grads, (sums, work, measured) = microbatches.summed(
      gradients, (batch, drawn), rng, num_microbatches
    )
    num_tokens = jnp.where(sums['num_tokens'] > 0, sums['num_tokens'], 1)
    grads = jax.tree.map(lambda g: g / num_tokens, grads)

    # 2. What the step would change.
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    attention_stats = ()
    if state.attention_stats:
      num_unpadded = jnp.maximum(work['num_unpadded'], 1)
      attention_stats = lower_variance.update(
        state.attention_stats,
        jax.tree.map(lambda x: x / num_unpadded, measured),
        attention_stats_decay,
      )
    ema_params = ()
    if state.ema_params:
      t = state.spike_stats.num_steps.astype(jnp.float32)
      change = 1 - jnp.minimum(ema_decay, (1 + t) / (10 + t))
      ema_params = jax.tree.map(
        lambda ema, x: ema + change * (x - ema), state.ema_params, params
      )
    loss, grad_norm = sums['loss'] / num_tokens, optax.tree.norm(grads)
    update_norm = optax.tree.norm(updates)
    changed = TrainState(
      state.step,
      params,
      opt_state,
      attention_stats,
      ema_params,
      spikes.update(state.spike_stats, loss, grad_norm),
    )

    # 3. Whether it does.
    is_finite = jnp.isfinite(loss + grad_norm + update_norm)
    is_empty = is_finite & ~(sums['num_tokens'] > 0)
    is_spike = spikes.is_spike(rule, state.spike_stats, loss, grad_norm)
    is_spike &= is_finite & ~is_empty
    is_taken = is_finite & ~is_empty & ~is_spike
    new_state = jax.tree.map(
      lambda new, old: jnp.where(is_taken, new, old), changed, state
    )
    sums['grad_norm'] = grad_norm
    sums['param_norm'] = optax.tree.norm(params)
    sums['update_norm'] = update_norm
    sums = {name: jnp.where(is_taken, x, 0) for name, x in sums.items()}
    sums |= work | {
      'skipped_steps': 1.0 - is_taken,
      'nonfinite_steps': 1.0 - is_finite,
      'spiked_steps': 1.0 * is_spike,
    }
    return new_state._replace(step=state.step + 1), sums

  return jax.jit(train_step, donate_argnums=0)


def _work(batch):
  """Sums that the cost of a step depends on, skipped or not."""
  is_protein_BL = batch.segment_ids > 0
  return {
    'num_unpadded': jnp.sum(is_protein_BL, dtype=jnp.float32),
    'sum_positions': jnp.sum(
      jnp.where(is_protein_BL, batch.positions, 0), dtype=jnp.float32
    ),
  }


def make_score_step(graphdef, objective):
  """Makes the jitted `score_step(weights, batch, mask_BL=None)`.

  Args:
    graphdef: of the model, from split_model.
    objective: from objectives.make_objective.

  Returns:
    A function to TokenScores; see there and objectives.py for mask_BL. The
    weights are Weights, or a plain dict of parameters.
  """

  @jax.jit
  def score_step(weights, batch, mask_BL=None):
    model = merge_model(graphdef, weights)
    return objective.eval_scores(model, batch, mask_BL)

  return score_step
