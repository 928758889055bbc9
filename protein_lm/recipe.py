"""What a run computes: model, objective and optimizer, as jitted functions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import gin
import jax

from protein_lm import compilation, flops, objectives, optimizer, sharding
from protein_lm import train_step as steps

# What the run's seed is folded with, one number a purpose.
_INIT, _STEP = range(2)


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
  """The functions of a run; `on` puts them on a mesh.

  Attributes:
    model: the model without weights, for its numbers.
    graphdef: of the model.
    objective: see objectives.py.
    learning_rate_fn: step -> learning rate.
    init_state: key -> the TrainState from scratch.
    train_step: see train_step.make_train_step.
    score_step: see train_step.make_score_step.
    root_rng: key of everything random in the run.
    mesh: of mesh.make_mesh, None before `on`.
    abstract_state: shapes and shardings of the TrainState on the mesh.
  """

  model: Any
  graphdef: Any
  objective: Any
  learning_rate_fn: Callable
  init_state: Callable[[jax.Array], steps.TrainState]
  train_step: Callable
  score_step: Callable
  root_rng: jax.Array
  mesh: jax.sharding.Mesh | None = None
  abstract_state: steps.TrainState | None = None

  def on(self, mesh) -> 'Recipe':
    """This recipe on a mesh; its functions are called under jax.set_mesh.

    The state stays where the rules of sharding.py put it; rows that are scored
    are spread over the mesh.
    """
    abstract_state = jax.eval_shape(self.init_state, self.root_rng)
    shardings = sharding.state_shardings(mesh, abstract_state)
    return dataclasses.replace(
      self,
      mesh=mesh,
      init_state=jax.jit(
        self.init_state,
        out_shardings=shardings,
        compiler_options=compilation.run_once_options(),
      ),
      train_step=jax.jit(
        self.train_step,
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
      ),
      score_step=sharding.make_score_step(mesh, self.score_step),
      abstract_state=sharding.with_shardings(abstract_state, shardings),
    )

  def make_state(self) -> steps.TrainState:
    """The TrainState from scratch."""
    return self.init_state(self.root_rng)

  @functools.cached_property
  def step_rng(self) -> jax.Array:
    """Key of the steps; fold in the step."""
    return jax.random.fold_in(self.root_rng, _STEP)

  @property
  def batch_sharding(self) -> jax.sharding.Sharding:
    """Where batches lie, [B, L]."""
    return sharding.batch_sharding(self.mesh)

  @property
  def num_microbatches(self) -> int:
    """Parts that a batch is computed in."""
    return gin.get_bindings('make_train_step').get('num_microbatches', 1)

  def flops_of(self, num_unpadded: float, sum_positions: float) -> float:
    """Operations of a step; see flops.of_step."""
    return flops.of_step(self.model, num_unpadded, sum_positions)

  def peak_flops(self) -> float:
    """Operations a second of all devices of the mesh."""
    num_devices = self.mesh.size
    if jax.default_backend() == 'cpu':  # one device of several has all cores
      num_devices = jax.device_count()
    return flops.peak(dtype=self.model.dtype) * num_devices


def make_recipe(
  model_cls,
  num_train_steps: int,
  *,
  seed: int = 0,
  attention_stats_decay: float = 0.99,
  ema_decay: float | None = None,
) -> Recipe:
  """Makes the Recipe of a run, without a mesh.

  Args:
    model_cls: FlaxLM or another model class.
    num_train_steps: where the schedule ends.
    seed: of everything random in the run.
    attention_stats_decay: see train_step.make_train_step.
    ema_decay: likewise.

  Raises:
    ValueError: for what is wrong in the configuration of its parts.
  """
  graphdef, abstract_params = steps.abstract_model(model_cls)
  objective = objectives.make_objective(model_cls.objective)
  tx, learning_rate_fn = optimizer.make_optimizer(num_train_steps)

  def init_state(root_rng):
    params = steps.init_params(model_cls, jax.random.fold_in(root_rng, _INIT))
    return steps.init_state(params, tx, graphdef, ema_decay)

  return Recipe(
    model=steps.merge_model(graphdef, abstract_params),
    graphdef=graphdef,
    objective=objective,
    learning_rate_fn=jax.jit(learning_rate_fn),  # one program, not a dozen
    init_state=init_state,
    train_step=steps.make_train_step(
      graphdef, tx, objective, attention_stats_decay, ema_decay
    ),
    score_step=steps.make_score_step(graphdef, objective),
    root_rng=jax.random.key(seed),
  )
