"""One step of training, one batch of scoring: pure functions under jit.

Axes: B batch, L length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from protein_lm import objectives


class TrainState(NamedTuple):
  """All that training changes; empty tuples where unused.

  step: [] int32, number of steps taken.
  params: nested dict of arrays.
  opt_state: state of the optax transformation.
  attention_stats: running statistics of feature maps.
  ema_params: averaged parameters.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  attention_stats: Any = ()
  ema_params: Any = ()


def split_model(model):
  """(graphdef, params): the static graph and a plain dict of parameters."""
  graphdef, state = nnx.split(model, nnx.Param)
  return graphdef, nnx.to_pure_dict(state)


def merge_model(graphdef, params):
  """The model of a graph and a plain dict of parameters."""
  return nnx.merge(graphdef, nnx.State(params))


def abstract_model(model_cls):
  """(graphdef, abstract params) of a model class, without making weights."""
  return split_model(nnx.eval_shape(lambda: model_cls(rngs=nnx.Rngs(0))))


def init_params(model_cls, rng):
  """The initial parameters of a model class, a plain dict of arrays."""
  return split_model(model_cls(rngs=nnx.Rngs(rng)))[1]


def init_state(params, tx):
  """TrainState before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def make_train_step(graphdef, tx, objective):
  """Makes the jitted `train_step(state, batch, rng) -> (state, sums)`.

  The loss is the mean nll in nats over the tokens that count: residues and
  EOS, not BOS, PAD or B X Z (objectives.py). A step whose gradient is not
  finite leaves parameters and moments as they are, bit for bit, and is
  counted in `skipped_steps`.

  Args:
    graphdef: of the model, from split_model.
    tx: optax transformation.
    objective: from objectives.make_objective.

  Returns:
    A function of (TrainState, Batch, key) to (TrainState, dict of float32
    scalar sums); the state is donated.
  """

  def loss_fn(params, batch, rng):
    model = merge_model(graphdef, params)
    scores = objective.train_scores(model, batch, rng)
    sums = objectives.sums(scores, batch.tokens)
    return sums['loss'] / jnp.maximum(sums['num_tokens'], 1), sums

  def train_step(state, batch, rng):
    grads, sums = jax.grad(loss_fn, has_aux=True)(state.params, batch, rng)
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums['loss'])
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(is_finite, new, old),
      (params, opt_state),
      (state.params, state.opt_state),
    )
    sums = {name: jnp.where(is_finite, x, 0) for name, x in sums.items()}
    sums['grad_norm'] = jnp.where(is_finite, grad_norm, 0)
    sums['skipped_steps'] = 1.0 - is_finite
    return state._replace(
      step=state.step + 1, params=params, opt_state=opt_state
    ), sums

  return jax.jit(train_step, donate_argnums=0)


def make_score_step(graphdef, objective):
  """Makes the jitted `score_step(params, batch, mask_BL=None)`.

  Args:
    graphdef: of the model, from split_model.
    objective: from objectives.make_objective.

  Returns:
    A function to TokenScores; see there and objectives.py for mask_BL.
  """

  @jax.jit
  def score_step(params, batch, mask_BL=None):
    return objective.eval_scores(merge_model(graphdef, params), batch, mask_BL)

  return score_step
