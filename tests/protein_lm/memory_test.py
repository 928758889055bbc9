"""When memory ends, the largest batch that fits is named."""

import types

import jax
import jax.numpy as jnp
import pytest

from protein_lm import memory
from protein_lm.data import Batch


@pytest.mark.parametrize(
  'error',
  [
    MemoryError(),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'),
    RuntimeError('INTERNAL: std::bad_alloc'),
  ],
)
def test_the_end_of_memory_is_recognised(error):
  assert memory.is_out_of_memory(error)


def test_other_errors_are_not_of_memory():
  assert not memory.is_out_of_memory(RuntimeError('INVALID_ARGUMENT: shape'))


@pytest.mark.parametrize('batch_size', [1, 2, 7, 64, 257])
@pytest.mark.parametrize('limit', [100, 105, 131, 200])
def test_the_largest_batch_is_found(batch_size, limit):
  def needed(rows):
    return 100 + 10 * rows

  fitting = [n for n in range(1, batch_size) if needed(n) <= limit]
  found = memory.largest_batch(needed, limit, batch_size)
  assert found == max(fitting, default=0)


def test_a_batch_stays_a_multiple_of_the_devices_that_share_it():
  assert memory.largest_batch(lambda n: n, 11, 64, multiple_of=4) == 8
  assert memory.largest_batch(lambda n: n, 3, 64, multiple_of=4) == 0


def test_few_sizes_are_tried():
  tried = []
  memory.largest_batch(lambda n: tried.append(n) or n, 300, 4096)
  assert len(tried) <= 12


def test_memory_may_end_while_a_size_is_tried():
  def needed(rows):
    if rows > 5:
      raise RuntimeError('RESOURCE_EXHAUSTED: no')
    return rows

  assert memory.largest_batch(needed, 100, 32) == 5


def test_another_error_while_a_size_is_tried_is_raised():
  def needed(rows):
    raise RuntimeError('INVALID_ARGUMENT')

  with pytest.raises(RuntimeError, match='INVALID_ARGUMENT'):
    memory.largest_batch(needed, 100, 32)


@pytest.mark.parametrize(
  'arguments, wanted',
  [
    ((64, 24), 'is 24, or keep it with make_train_step.num_microbatches = 4.'),
    (
      (64, 24, 2),
      'is 24, or keep it with make_train_step.num_microbatches = 8',
    ),
    ((64, 24, 1, 8), 'num_microbatches = 4.'),
    ((7, 3), 'num_microbatches = 7.'),
    ((8, 0), 'nor would 1: make the model'),
  ],
)
def test_the_advice_names_what_fits_and_how_to_keep_the_batch(
  arguments, wanted
):
  assert wanted in memory.advice(*arguments)


@jax.jit
def step(state, batch, rng):
  """Needs memory in proportion to the rows of the batch."""
  x_BLL = jnp.sin(batch.tokens[:, :, None] * batch.tokens[:, None, :] + state)
  return state + jnp.sum(x_BLL @ x_BLL), {'loss': jnp.sum(state)}


def batch_of(rows):
  tokens = jax.ShapeDtypeStruct((rows, 64), jnp.float32)
  return Batch(tokens, tokens, tokens, tokens)


STATE = jax.ShapeDtypeStruct((), jnp.float32)


def test_an_error_of_memory_names_the_largest_batch(monkeypatch):
  needed = {
    rows: memory.step_bytes(step, STATE, batch_of(rows), None)
    for rows in (5, 6)
  }
  assert needed[5] < needed[6]
  monkeypatch.setattr(memory, 'available_bytes', lambda: needed[6] - 1)
  with (
    pytest.raises(
      memory.OutOfMemoryError,
      match='data.batch_size = 8 does not fit; the largest that fits is 5',
    ),
    memory.explaining(step, STATE, batch_of(8), None),
  ):
    raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')


def test_other_errors_pass():
  with (
    pytest.raises(KeyError),
    memory.explaining(step, STATE, batch_of(8), None),
  ):
    raise KeyError


def test_an_unknown_limit_is_no_reason_to_be_silent(monkeypatch):
  monkeypatch.setattr(memory, 'available_bytes', lambda: None)
  with (
    pytest.raises(memory.OutOfMemoryError, match='num_microbatches'),
    memory.explaining(step, STATE, batch_of(8), None),
  ):
    raise MemoryError


def test_an_accelerator_tells_its_limit(monkeypatch):
  device = types.SimpleNamespace(
    platform='gpu', memory_stats=lambda: {'bytes_limit': 7}
  )
  monkeypatch.setattr('jax.local_devices', lambda: [device])
  assert memory.available_bytes() == 7


def test_simulated_devices_share_the_host():
  free = memory.available_bytes()
  assert 0 < free < 2**50
  assert free == pytest.approx(memory._free_bytes() / 8, rel=0.2)
