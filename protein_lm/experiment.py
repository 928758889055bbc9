"""run_experiment, `experiment` in gin: the training run, stage by stage."""

import contextlib
import importlib.metadata
import time

import gin
import jax
import numpy as np

from protein_lm import checkpoint, config, metrics, objectives, optimizer
from protein_lm import data as data_lib
from protein_lm import train_step as steps
from protein_lm.evaluation import batch_mask, evaluate_batches, masked_residues
from protein_lm.interrupt import Interrupt
from protein_lm.models import num_params
from protein_lm.plan import print_plan
from protein_lm.progress import Progress

# What the run's seed is folded with, one number a purpose.
_INIT, _STEP = range(2)

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
)


@gin.configurable('experiment', denylist=['work_dir', 'dry_run'])
def run_experiment(
  work_dir: str,
  model_cls: type = gin.REQUIRED,
  num_train_steps: int = gin.REQUIRED,
  log_every_steps: int = 50,
  eval_every_steps: int = 500,
  checkpoint_every_steps: int = 500,
  num_eval_batches: int = 16,
  keep_checkpoints: int = 2,
  attention_stats_decay: float = 0.99,
  seed: int = 0,
  dry_run: bool = False,
):
  """Trains a model in work_dir, or goes on with the run that is there.

  Args:
    work_dir: folder of the run: checkpoints, metrics.jsonl, tensorboard.
    model_cls: FlaxLM or FlaxBERT.
    num_train_steps: steps of the whole run.
    log_every_steps: steps between two records of training metrics.
    eval_every_steps: steps between two evaluations on validation.
    checkpoint_every_steps: steps between two checkpoints.
    num_eval_batches: batches of validation read each time, the same ones.
    keep_checkpoints: newest checkpoints kept, beside the best.
    attention_stats_decay: of the running statistics of queries and keys, a
      step; for attentions that need them.
    seed: of everything random in the run.
    dry_run: print what the run would take, train nothing.

  Raises:
    ValueError: for numbers that make no run, or a checkpoint of other data or
      another architecture.
    checkpoint.CheckpointError: if checkpoints exist but none is good.
    FloatingPointError: after too many steps in a row without a finite
      gradient (progress.MAX_SKIPPED_STEPS).
  """
  _check_positive(
    num_train_steps=num_train_steps,
    log_every_steps=log_every_steps,
    eval_every_steps=eval_every_steps,
    checkpoint_every_steps=checkpoint_every_steps,
    num_eval_batches=num_eval_batches,
    keep_checkpoints=keep_checkpoints,
  )
  with contextlib.ExitStack() as stack:
    if not dry_run:
      stack.enter_context(checkpoint.lock(work_dir))
      checkpoint.clean(work_dir)
      interrupt = stack.enter_context(Interrupt())

    # 1. Model, optimiser, data.
    graphdef, _ = steps.abstract_model(model_cls)
    objective = objectives.make_objective(model_cls.objective)
    tx, learning_rate_fn = optimizer.make_optimizer(num_train_steps)
    train_step = steps.make_train_step(
      graphdef, tx, objective, attention_stats_decay
    )
    score_step = steps.make_score_step(graphdef, objective)
    root_rng = jax.random.key(seed)
    step_rng = jax.random.fold_in(root_rng, _STEP)

    @jax.jit
    def make_state():
      init_rng = jax.random.fold_in(root_rng, _INIT)
      params = steps.init_params(model_cls, init_rng)
      return steps.init_state(params, tx, graphdef)

    data = data_lib.open_data(work_dir)
    batch_settings = {**data.settings, 'experiment.seed': seed}
    config_text = config.operative()
    if unused := config.unused_bindings():
      print(f'warning: nothing used {"; ".join(unused)}', flush=True)
    if dry_run:
      print_plan(
        data, objective, make_state(), train_step, num_train_steps, seed
      )
      return

    # 2. State: the newest good checkpoint in work_dir, else from scratch.
    saved = {}
    if checkpoint.steps(work_dir):
      _check_architecture(work_dir, config_text)
      abstract_state = jax.eval_shape(make_state)
      state, manifest = checkpoint.restore(work_dir, abstract_state)
      saved = manifest['metadata']
      _check_data(work_dir, saved, data.fingerprint, batch_settings)
    else:
      state = make_state()
    step = first_step = int(state.step)
    if step >= num_train_steps:
      print(f'{work_dir} is finished: {step} of {num_train_steps} steps done.')
      return
    print(
      f'{model_cls.__name__} with {num_params(state.params):,} parameters on '
      f'{jax.devices()[0].device_kind}, '
      + (f'going on from step {step}.' if step else 'from scratch.'),
      flush=True,
    )

    # 3. The loop. Batch and randomness follow from the step alone.
    eval_batches, eval_masks = _validation(data, num_eval_batches, objective)
    log = stack.enter_context(metrics.MetricsLog(work_dir, step))
    progress = stack.enter_context(
      Progress(step, num_train_steps, model_cls.objective, saved)
    )
    sharding = _default_sharding()
    # Batches are bound to it; a state that is not would be compiled for twice.
    state = jax.device_put(state, sharding)
    batches = stack.enter_context(data.train_batches(seed, step, sharding))
    start = time.perf_counter()
    is_last, stop = False, interrupt.requested
    while not (is_last or stop):
      rng = jax.random.fold_in(step_rng, step)
      with progress.waiting_for_data():
        batch = next(batches)
      state, sums = train_step(state, batch, rng)
      step += 1
      progress.add(sums)
      is_last = step == num_train_steps
      record = {}
      if step % log_every_steps == 0 or is_last:
        record = progress.take_record()
        record['train/learning_rate'] = progress.learning_rate(learning_rate_fn)
      if eval_batches and (step % eval_every_steps == 0 or is_last):
        scores = evaluate_batches(
          score_step, steps.weights_of(state), eval_batches, eval_masks
        )
        record |= {f'validation/{name}': x for name, x in scores.items()}
      if record:
        log.write(step, record)
        progress.show(record)
      is_due = step % checkpoint_every_steps == 0
      stop = interrupt.requested  # read once: what stops the run is saved
      if is_due or is_last or stop:
        log.flush()
        checkpoint.save(
          work_dir,
          step,
          state,
          config=config_text,
          metadata={
            'data_fingerprint': data.fingerprint,
            'batches': batch_settings,
            'versions': _versions(),
            **progress.saved(),
          },
          metric=record.get('validation/loss'),
        )
        checkpoint.retain(work_dir, keep_checkpoints)
      if record or is_due:
        progress.restart_clock()

  if step == first_step:
    print(f'interrupted before step {step + 1}: there is nothing to save.')
    return
  print(
    f'{"done" if is_last else "interrupted"}: step {step} of {num_train_steps} '
    f'saved in {work_dir}; {step - first_step} steps in '
    f'{time.perf_counter() - start:.0f} s; {progress.num_tokens:,.0f} tokens '
    f'seen in all, {step / data.steps_per_epoch:.2f} epochs.',
    flush=True,
  )


def _validation(data, num_batches, objective):
  """Batches spread evenly over the validation split, and masks if masked."""
  if 'validation' not in data.splits:
    print('warning: there is no validation split, so no evaluation.')
    return [], None
  proteins = data.proteins('validation')
  batches = data.eval_batches(proteins)
  num_batches = min(num_batches, len(batches))
  chosen = np.linspace(0, len(batches) - 1, num_batches).round().astype(int)
  batches = [batches[int(i)] for i in chosen]
  if isinstance(objective, objectives.CausalObjective):
    return batches, None
  mask_T = masked_residues(proteins)
  return batches, [batch_mask(b, proteins, mask_T) for b in batches]


def _default_sharding():
  """Batches lie on the device that computations run on by default."""
  device = jax.config.jax_default_device
  if not isinstance(device, jax.Device):  # unset, or the name of a platform
    device = jax.devices(device)[0]
  return jax.sharding.SingleDeviceSharding(device)


def _versions():
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
  return {name: importlib.metadata.version(name) for name in packages}


def _check_positive(**numbers):
  for name, value in numbers.items():
    if value < 1:
      raise ValueError(f'experiment.{name} must be at least 1, got {value}.')


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


def _check_architecture(work_dir, config_text):
  """Refuses to go on with a model of other parameters or another objective."""
  saved_text = checkpoint.config(work_dir, checkpoint.choose(work_dir))
  names = ('experiment', 'FlaxModel', 'FlaxLM', 'FlaxBERT')
  changed = [
    line
    for line in config.diff(saved_text, config_text, names).splitlines()
    if line.split(':')[0].split('.')[-1] in _ARCHITECTURE
  ]
  if changed:
    raise ValueError(
      f'the model changed since the checkpoint in {work_dir}: '
      f'{"; ".join(changed)}; put it back, or train in another work_dir.'
    )
