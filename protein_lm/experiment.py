"""run_experiment, `experiment` in gin: the training run, stage by stage."""

import contextlib
import functools
import importlib.metadata

import gin
import jax

from protein_lm import (
  attention_swap,
  checkpoint,
  compilation,
  config,
  distributed,
  label_objectives,
  plan,
  timings,
)
from protein_lm import data as data_lib
from protein_lm import train_step as steps
from protein_lm.early_stop import Best, EarlyStop
from protein_lm.interrupt import Interrupt
from protein_lm.journal import Journal
from protein_lm.mesh import make_mesh
from protein_lm.models import num_params
from protein_lm.recipe import make_recipe
from protein_lm.run_start import first_state, saved_metadata
from protein_lm.status import Status
from protein_lm.time_budget import TimeBudget
from protein_lm.validation import Validation

# The schedule that a step is compiled with to measure its speed.
_MANY_STEPS = 1_000_000


@gin.configurable(
  'experiment', denylist=['work_dir', 'dry_run', 'profile_steps']
)
def run_experiment(
  work_dir: str,
  model_cls: type = gin.REQUIRED,
  num_train_steps: int | None = None,
  max_minutes: float | None = None,
  log_every_steps: int = 50,
  eval_every_steps: int = 500,
  checkpoint_every_steps: int = 500,
  num_eval_batches: int = 16,
  keep_checkpoints: int = 2,
  init_from: str | None = None,
  init_from_step: int | str = 'latest',
  ema_decay: float | None = None,
  attention_stats_decay: float = 0.99,
  seed: int = 0,
  wandb_project: str | None = None,
  dry_run: bool = False,
  profile_steps: tuple[int, int] | None = None,
):
  """Trains a model in work_dir, or goes on with the run that is there.

  Args:
    work_dir: folder of the run: checkpoints, metrics.jsonl, status.json,
      tensorboard. Of several processes, on a file system that all see.
    model_cls: FlaxLM, FlaxBERT, FlaxRegressor or FlaxClassifier.
    num_train_steps: steps of the whole run; None for as many as max_minutes
      allows, measured before the first and kept by the run.
    max_minutes: the run ends, evaluated and saved, within so many minutes of
      wall time since the start of its process; with num_train_steps, at
      whichever comes first, the schedule being that of num_train_steps.
    log_every_steps: steps between two records of training metrics.
    eval_every_steps: steps between two evaluations on validation.
    checkpoint_every_steps: steps between two checkpoints.
    num_eval_batches: batches of validation read each time, the same ones.
    keep_checkpoints: newest checkpoints kept, beside the best.
    init_from: work_dir of another run, or a .safetensors file, whose weights
      a new run starts from; see init_from.py.
    init_from_step: of that run's checkpoints: a step, 'latest' or 'best'.
    ema_decay: of an average of the parameters, a step, which evaluation then
      uses; see make_train_step.
    attention_stats_decay: of the running statistics of queries and keys, a
      step; for attentions that need them.
    seed: of everything random in the run.
    wandb_project: of Weights & Biases, which then gets a copy of the log.
    dry_run: print what the run would take, train nothing.
    profile_steps: (first, last): trace the steps between, see profiler.py.

  Raises:
    ValueError: for numbers that make no run, or a checkpoint of other data or
      another architecture.
    checkpoint.CheckpointError: checkpoints exist but none is good, or one
      cannot be written.
    memory.OutOfMemoryError: names the largest batch that fits.
    FloatingPointError: after too many skipped steps in a row
      (progress.MAX_SKIPPED_STEPS).
  """
  if num_train_steps is None and max_minutes is None:
    raise ValueError(
      'experiment.num_train_steps or experiment.max_minutes must be given.'
    )
  _check_positive(
    num_train_steps=1 if num_train_steps is None else num_train_steps,
    log_every_steps=log_every_steps,
    eval_every_steps=eval_every_steps,
    checkpoint_every_steps=checkpoint_every_steps,
    num_eval_batches=num_eval_batches,
    keep_checkpoints=keep_checkpoints,
  )
  budget, early_stop = TimeBudget(max_minutes), EarlyStop()
  intervals = eval_every_steps, checkpoint_every_steps
  is_primary = distributed.is_primary()
  say = functools.partial(print, flush=True) if is_primary else _say_nothing
  with contextlib.ExitStack() as stack:
    if not dry_run:
      stack.enter_context(checkpoint.lock(work_dir))
      checkpoint.clean(work_dir)
      interrupt = stack.enter_context(Interrupt())
      status = stack.enter_context(Status(work_dir, is_primary))
      distributed.barrier('cleaned')
      if num_train_steps is None:  # a run keeps to what it once decided
        num_train_steps = saved_metadata(work_dir).get('num_train_steps')
    compiled = stack.enter_context(compilation.Counter())

    # 1. Model and optimiser, data, mesh.
    make = functools.partial(
      make_recipe,
      model_cls,
      seed=seed,
      attention_stats_decay=attention_stats_decay,
      ema_decay=ema_decay,
    )
    is_decided = num_train_steps is not None
    recipe = make(num_train_steps if is_decided else _MANY_STEPS)
    data = _open_data(work_dir)
    mesh = make_mesh(
      data.batch_size,
      data.buckets or (data.max_len,),
      recipe.model,
      num_microbatches=recipe.num_microbatches,
    )
    stack.enter_context(jax.set_mesh(mesh))
    recipe = recipe.on(mesh)
    label_objectives.check(recipe.model, data)
    validation = Validation(
      data, model_cls.objective, num_eval_batches, recipe.score_step
    )
    batch_settings = {**data.settings, 'experiment.seed': seed}
    config_text = config.operative()
    if unused := config.unused_bindings():
      say(f'warning: nothing used {"; ".join(unused)}')

    # 2. How long it takes, if somebody asks.
    run = plan.Run.of(recipe, data, seed, validation, *intervals)
    if dry_run:
      plan.print_plan(run, num_train_steps, budget)
      return
    measured = timings.Timings(0.0)
    if max_minutes is not None:
      status.update(state='compiling')
      measured = run.measure(0 if is_decided else budget.measuring_seconds)
    if not is_decided:
      num_train_steps = distributed.from_primary(
        budget.num_steps(measured, *intervals)
      )
      recipe = make(num_train_steps).on(mesh)
      say(
        f'{num_train_steps} steps of {measured.step:.3f} s fit in '
        f'{max_minutes:g} minutes.'
      )

    # 3. State: the newest good checkpoint, else init_from, else from scratch.
    state, saved, origin = first_state(
      work_dir,
      recipe,
      data,
      config_text,
      batch_settings,
      init_from,
      init_from_step,
    )
    best = Best(*saved.get('early_stop', ()))
    step = first_step = int(state.step)
    status.update(step=step, num_train_steps=num_train_steps)
    if step >= num_train_steps or early_stop.is_due(best):
      say(f'{work_dir} is finished: {step} of {num_train_steps} steps done.')
      status.update(state='done')
      return
    say(
      f'{model_cls.__name__} with {num_params(state.params):,} parameters on '
      f'{_devices(mesh)}, {origin}.'
    )

    # 4. The loop. Batch and randomness follow from the step alone.
    saver = stack.enter_context(checkpoint.Saver(work_dir, keep_checkpoints))
    journal = stack.enter_context(
      Journal(
        work_dir,
        recipe,
        status,
        compiled,
        saver,
        step=step,
        num_train_steps=num_train_steps,
        saved=saved,
        is_primary=is_primary,
        profile_steps=profile_steps,
        wandb_project=wandb_project,
        config_text=config_text,
      )
    )
    progress = journal.progress
    if init_from is not None and not saved:
      attention_swap.log_swap(
        journal.log,
        work_dir,
        init_from,
        init_from_step,
        recipe.graphdef,
        steps.weights_of(state),
        recipe.score_step,
        validation.batches,
        validation.masks,
      )
    batches = stack.enter_context(
      data.train_batches(seed, step, recipe.batch_sharding)
    )
    stack.enter_context(run.explaining_memory(state))
    interrupted, out_of_time = distributed.Agreement(), distributed.Agreement()
    requested = distributed.any_process(interrupt.requested)
    how = 'interrupted' if requested else ''
    compiled.mark_warm()
    while not how:
      journal.at(step, state)
      with journal.waiting():
        batch = next(batches)
      with compiled.first(batch.tokens.shape):
        rng = jax.random.fold_in(recipe.step_rng, step)
        state, sums = recipe.train_step(state, batch, rng)
      step += 1
      progress.add(sums)
      saver.check()
      if step == num_train_steps:
        how = 'done'
      elif out_of_time(budget.is_over(measured, progress.step_seconds)):
        how = 'out of time'
      record = {}
      if step % log_every_steps == 0 or how:
        record = journal.training_record()
      if validation.batches and (step % eval_every_steps == 0 or how):
        with journal.evaluating(step):
          scores = validation(steps.weights_of(state))
        record |= {f'validation/{name}': x for name, x in scores.items()}
        best = early_stop.update(best, step, scores['loss'])
        if not how and early_stop.is_due(best):
          how = 'stopped early'
      if record:
        journal.write(step, record)
      # Asked once a step, in all processes: what stops the run is saved.
      if interrupted(interrupt.requested) and not how:
        how = 'interrupted'
      if step % checkpoint_every_steps == 0 or how:
        with journal.saving(step):
          saver.save(
            step,
            state,
            config=config_text,
            metadata={
              'data_fingerprint': data.fingerprint,
              'batches': batch_settings,
              'labels': data.label_facts,
              'versions': _versions(),
              'num_train_steps': num_train_steps,
              'early_stop': list(best),
              **progress.saved(),
            },
            metric=record.get('validation/loss'),
          )
    journal.at(step, state)

    # 5. The end.
    if step == first_step:
      say(f'interrupted before step {step + 1}: there is nothing to save.')
      return
    with progress.timing('checkpoint'):
      saver.wait()
    say(progress.summary(how, work_dir, data.steps_per_epoch, best))
    if told := attention_swap.after_training(work_dir, record):
      say(told)
    status.update(
      state='interrupted' if how == 'interrupted' else 'done',
      last_checkpoint_step=step,
    )


def _open_data(work_dir):
  """The Data; of several processes the first one prepares it."""
  if not distributed.is_primary():
    distributed.barrier('prepared')
    return data_lib.open_data(work_dir)
  data = data_lib.open_data(work_dir)
  distributed.barrier('prepared')
  return data


def _devices(mesh):
  """The devices of a mesh in a few words."""
  kind = mesh.devices.flat[0].device_kind
  if mesh.size == 1:
    return kind
  axes = ' x '.join(f'{n} {name}' for name, n in mesh.shape.items() if n > 1)
  return f'{mesh.size} x {kind} ({axes})'


def _say_nothing(*args):
  """Of several processes one speaks."""


def _versions():
  packages = ('protein-lm', 'jax', 'jaxlib', 'flax', 'optax')
  packages += ('orbax-checkpoint',)
  return {name: importlib.metadata.version(name) for name in packages}


def _check_positive(**numbers):
  for name, value in numbers.items():
    if value < 1:
      raise ValueError(f'experiment.{name} must be at least 1, got {value}.')
