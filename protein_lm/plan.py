"""What a run would take, printed before it runs (`--dry_run`)."""

import time

import jax

from protein_lm import models

_TIMED_STEPS = 3


def print_plan(data, objective, state, train_step, num_train_steps, seed):
  """Prints parameters, memory, steps, tokens, epochs and a measured duration.

  Compiles the step and runs it a few times on the first batch; nothing is
  saved. (Batches of all buckets have about as many tokens.)

  Args:
    data: the Data of the run.
    objective: says which share of the tokens counts.
    state: TrainState from scratch, donated.
    train_step: jitted, see train_step.make_train_step.
    num_train_steps: steps of the run.
    seed: of the run.
  """
  num_params = models.num_params(state.params)
  state_bytes = _num_bytes(state)
  batch = data.train_batch(seed, 0)
  rng = jax.random.key(seed)
  start = time.perf_counter()
  compiled = train_step.lower(state, batch, rng).compile()
  compile_seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  temporary_bytes = getattr(memory, 'temp_size_in_bytes', 0)

  seconds = []
  for _ in range(1 + _TIMED_STEPS):  # the first one warms up
    start = time.perf_counter()
    state, sums = compiled(state, batch, rng)
    jax.block_until_ready(sums)
    seconds.append(time.perf_counter() - start)
  step_seconds = sorted(seconds[1:])[_TIMED_STEPS // 2]

  epochs = num_train_steps / data.steps_per_epoch
  rows = (
    ('parameters', f'{num_params:,}'),
    ('state in memory', _megabytes(state_bytes)),
    ('working memory of a step', _megabytes(temporary_bytes)),
    ('train proteins', '{:,} ({:,} residues)'.format(*data.splits['train'])),
    ('batch', '{} rows of {} tokens'.format(*batch.tokens.shape)),
    ('steps', f'{num_train_steps:,}'),
    (
      'counted tokens',
      f'{epochs * data.tokens_per_epoch * objective.counted_share:,.0f}',
    ),
    ('epochs', f'{epochs:.2f} of {data.steps_per_epoch:,.1f} steps'),
    ('compilation', f'{compile_seconds:.1f} s'),
    ('a step', f'{step_seconds:.3f} s (median of {_TIMED_STEPS})'),
    (
      'estimated duration',
      f'{_duration(compile_seconds + num_train_steps * step_seconds)}, '
      'evaluation and checkpoints not included',
    ),
  )
  width = max(len(name) for name, _ in rows)
  for name, text in rows:
    print(f'{name:<{width}}  {text}')


def _num_bytes(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _megabytes(num_bytes):
  return f'{num_bytes / 1e6:,.1f} MB'


def _duration(seconds):
  hours, seconds = divmod(round(seconds), 3600)
  return f'{hours}:{seconds // 60:02}:{seconds % 60:02} (h:mm:ss)'
