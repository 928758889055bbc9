"""The same run on any mesh, and in two processes, which are this file."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import gin
import jax
import numpy as np
import pytest

from protein_lm import (
  checkpoint,
  cli,
  distributed,
  layouts,
  models,
  sharding,
)
from protein_lm import train_step as steps
from protein_lm.batches import RowBatches
from protein_lm.evaluation import evaluate_batches
from protein_lm.mesh import make_mesh
from protein_lm.prefetch import Prefetch
from protein_lm.proteins import MemoryStore, from_sequences
from protein_lm.recipe import make_recipe
from protein_lm.windows import EvalBatches

NUM_STEPS, NUM_ROWS, MAX_LEN = 20, 8, 48
CONFIG = f"""
FlaxModel.emb_dim = 32
FlaxModel.qkv_dim = 32
FlaxModel.mlp_dim = 64
FlaxModel.num_heads = 4
FlaxModel.num_layers = 2
FlaxModel.max_len = {MAX_LEN}
make_optimizer.learning_rate = 3e-3
make_optimizer.warmup_steps = 2
make_optimizer.grad_clip_norm = 1.0
"""


@pytest.fixture(scope='module', autouse=True)
def configured():
  gin.parse_config(CONFIG)
  yield
  gin.clear_config()


def proteins():
  rng = np.random.default_rng(0)
  return from_sequences(
    {
      str(i): ''.join(rng.choice(list('ACDEFGHIKLMNPQRSTVWY'), n))
      for i, n in enumerate(rng.integers(1, 60, 60))
    }
  )


def recipe_on(sizes):
  """The functions of the run on a mesh."""
  recipe = make_recipe(models.FlaxLM, num_train_steps=100)
  return recipe.on(make_mesh(NUM_ROWS, (MAX_LEN,), recipe.model, *sizes))


def train(recipe, state, num_steps=NUM_STEPS):
  """(the state after num_steps more, the loss of each)."""
  store = MemoryStore(proteins())
  batches = RowBatches([layouts.Packed(store, MAX_LEN)], NUM_ROWS)
  first, losses = int(state.step), []
  with Prefetch(batches, 3, first, recipe.batch_sharding) as ahead:
    for step in range(first, first + num_steps):
      rng = jax.random.fold_in(recipe.step_rng, step)
      state, sums = recipe.train_step(state, next(ahead), rng)
      losses.append(float(sums['loss'] / sums['num_tokens']))
  return state, losses


def evaluate(recipe, state):
  batches = EvalBatches(proteins(), NUM_ROWS, MAX_LEN)
  return evaluate_batches(recipe.score_step, steps.weights_of(state), batches)


@pytest.fixture(scope='module')
def alone():
  """(losses, scores) of the run on one device."""
  recipe = recipe_on((1, 1, 1, 1))
  with jax.set_mesh(recipe.mesh):
    state, losses = train(recipe, recipe.make_state())
    return losses, evaluate(recipe, state)


MESHES = [
  pytest.param((8, 1, 1, 1), marks=pytest.mark.slow),
  pytest.param((1, 8, 1, 1), marks=pytest.mark.slow),
  (2, 1, 2, 2),
  pytest.param((2, 2, 2, 1), marks=pytest.mark.slow),
  pytest.param((1, 1, 4, 1), marks=pytest.mark.slow),
  pytest.param((1, 2, 1, 4), marks=pytest.mark.slow),
]


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_every_mesh_gives_the_losses_and_scores_of_one_device(sizes, alone):
  recipe = recipe_on(sizes)
  with jax.set_mesh(recipe.mesh):
    state, losses = train(recipe, recipe.make_state())
    scores = evaluate(recipe, state)
  np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
  assert losses[-1] < losses[0] - 0.1
  assert scores == pytest.approx(alone[1], rel=1e-5)
  assert scores['num_tokens'] == alone[1]['num_tokens']
  for leaf, expected in zip(
    jax.tree.leaves(state), jax.tree.leaves(recipe.abstract_state), strict=True
  ):
    assert leaf.sharding == expected.sharding


def test_a_checkpoint_moves_to_another_mesh(tmp_path):
  recipe, other = recipe_on((8, 1, 1, 1)), recipe_on((1, 4, 2, 1))
  with jax.set_mesh(recipe.mesh):
    state = recipe.make_state()
    checkpoint.save(tmp_path, 0, state, config='', metadata={})
  moved, _ = checkpoint.restore(tmp_path, other.abstract_state)
  jax.tree.map(np.testing.assert_array_equal, moved, state)
  kernel = moved.params['blocks']['mlp_in']['kernel']
  assert kernel.addressable_shards[0].data.shape == (2, 8, 32)  # N D F


@pytest.mark.slow
def test_fsdp_gathers_weights_and_never_rows():
  recipe = recipe_on((1, 8, 1, 1))
  store = MemoryStore(proteins())
  batches = RowBatches([layouts.Packed(store, MAX_LEN)], NUM_ROWS)
  with jax.set_mesh(recipe.mesh):
    batch = sharding.put(recipe.mesh, batches.make(0, 0))
    lowered = recipe.train_step.lower(
      recipe.abstract_state, batch, recipe.step_rng
    )
  program = lowered.compile().as_text()
  gathered = re.findall(r'(\S+) all-gather\(', program)
  assert gathered
  assert not [x for x in gathered if f'[{NUM_ROWS},{MAX_LEN}' in x]


def process(address, number, work_dir):
  """One of two: trains, tells what it saw, then process 1 fails."""
  with distributed.initialize(address, 2, number, connect_timeout=120):
    distributed.check_shared(work_dir)
    recipe = recipe_on((1, 2, 1, 1))
    with jax.set_mesh(recipe.mesh):
      state, losses = train(recipe, recipe.make_state())
      agreed = distributed.Agreement()
      seen = {
        'devices': [len(jax.local_devices()), len(jax.devices())],
        'losses': losses,
        'scores': evaluate(recipe, state),
        'agreed': [agreed(number == 1 and step == 2) for step in range(5)],
        'any': distributed.any_process(number == 1),
        'none': distributed.any_process(False),
        'from_primary': [
          distributed.from_primary(x) for x in (2**50 + number, 0.1 + number)
        ],
        'primary': distributed.is_primary(),
      }
      with open(os.path.join(work_dir, f'{number}.json'), 'w') as file:
        json.dump(seen, file)
      distributed.barrier('told')
      if number == 1:
        raise ValueError('the second host has had enough')
      train(recipe, state)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """What two processes saw, [2] dicts, and how they ended, [2] (code, text)."""
  work_dir = tmp_path_factory.mktemp('pair')
  with socket.create_server(('127.0.0.1', 0)) as server:
    address = f'127.0.0.1:{server.getsockname()[1]}'
  root = str(pathlib.Path(distributed.__file__).parents[1])
  flags = '--xla_force_host_platform_device_count=1'
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, address, str(number), str(work_dir)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'XLA_FLAGS': flags, 'PYTHONPATH': root},
    )
    for number in range(2)
  ]
  try:
    errors = [process.communicate(timeout=200)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  ends = [(p.returncode, e) for p, e in zip(processes, errors, strict=True)]
  paths = [work_dir / f'{number}.json' for number in range(2)]
  assert all(path.exists() for path in paths), ends
  return [json.loads(path.read_text()) for path in paths], ends


@pytest.mark.slow
def test_two_processes_give_the_losses_and_scores_of_one(pair, alone):
  for seen in pair[0]:
    assert seen['devices'] == [1, 2]
    np.testing.assert_allclose(seen['losses'], alone[0], rtol=1e-5)
    assert seen['scores'] == pytest.approx(alone[1], rel=1e-5)


@pytest.mark.slow
def test_two_processes_agree(pair):
  for seen in pair[0]:
    assert seen['agreed'] == [False, False, False, True, False]
    assert seen['any'] and not seen['none']
    assert seen['from_primary'] == [2**50, 0.1]
  assert [seen['primary'] for seen in pair[0]] == [True, False]


@pytest.mark.slow
def test_when_a_process_fails_the_other_ends_too_and_says_why(pair):
  (code, error), (failed_code, failed_error) = pair[1]
  assert failed_code == 1
  assert 'error: the second host has had enough' in failed_error
  assert code == 1
  assert 'error: process 0 of 2 lost another one' in error


if __name__ == '__main__':
  gin.parse_config(CONFIG)
  cli.exits_cleanly(
    lambda argv: process(sys.argv[1], int(sys.argv[2]), sys.argv[3])
  )(sys.argv[:1])
