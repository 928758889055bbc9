"""One step of training, one batch of scoring: pure functions under jit.

Axes: B batch, L length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fast_attention import lower_variance
from protein_lm import objectives
from protein_lm.models import AttentionStats


class TrainState(NamedTuple):
  """All that training changes; empty tuples where unused.

  step: [] int32, number of steps taken.
  params: nested dict of arrays.
  opt_state: state of the optax transformation.
  attention_stats: running averages of the statistics of queries and keys,
    for the attentions that need them, with leading axis N.
  ema_params: averaged parameters.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  attention_stats: Any = ()
  ema_params: Any = ()


class Weights(NamedTuple):
  """What a model computes with."""

  params: Any
  attention_stats: Any = ()


def weights_of(state):
  """The Weights of a TrainState."""
  return Weights(state.params, state.attention_stats)


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


def init_state(params, tx, graphdef=None):
  """TrainState before the first step; the graph says what is measured."""
  attention_stats = ()
  if graphdef is not None:
    attention_stats = merge_model(graphdef, params).init_attention_stats()
  return TrainState(
    jnp.zeros((), jnp.int32), params, tx.init(params), attention_stats
  )


def make_train_step(graphdef, tx, objective, attention_stats_decay=0.99):
  """Makes the jitted `train_step(state, batch, rng) -> (state, sums)`.

  The loss is the mean nll in nats over the tokens that count: residues and
  EOS, not BOS, PAD or B X Z (objectives.py). A step whose gradient is not
  finite leaves parameters and moments as they are, bit for bit, and is
  counted in `skipped_steps`.

  Args:
    graphdef: of the model, from split_model.
    tx: optax transformation.
    objective: from objectives.make_objective.
    attention_stats_decay: of the running statistics of queries and keys, a
      step. A step uses those of the steps before it, never of its own batch.

  Returns:
    A function of (TrainState, Batch, key) to (TrainState, dict of float32
    scalar sums); the state is donated.
  """

  def loss_fn(params, attention_stats, batch, rng):
    model = merge_model(graphdef, Weights(params, attention_stats))
    scores = objective.train_scores(model, batch, rng)
    sums = objectives.sums(scores, batch.tokens)
    loss = sums['loss'] / jnp.maximum(sums['num_tokens'], 1)
    measured = model.measured_stats.get_value() if attention_stats else ()
    return loss, (sums, measured)

  def train_step(state, batch, rng):
    grads, (sums, measured) = jax.grad(loss_fn, has_aux=True)(
      state.params, state.attention_stats, batch, rng
    )
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums['loss'])
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    attention_stats = ()
    if state.attention_stats:
      attention_stats = lower_variance.update(
        state.attention_stats, measured, attention_stats_decay
      )
    params, opt_state, attention_stats = jax.tree.map(
      lambda new, old: jnp.where(is_finite, new, old),
      (params, opt_state, attention_stats),
      (state.params, state.opt_state, state.attention_stats),
    )
    sums = {name: jnp.where(is_finite, x, 0) for name, x in sums.items()}
    sums['grad_norm'] = jnp.where(is_finite, grad_norm, 0)
    sums['skipped_steps'] = 1.0 - is_finite
    return state._replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      attention_stats=attention_stats,
    ), sums

  return jax.jit(train_step, donate_argnums=0)


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
