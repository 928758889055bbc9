"""A device for each core, unless somebody chose otherwise."""

import os
import sys
import types

import jax
import pytest

from protein_lm import cores


@pytest.fixture
def fresh_jax(monkeypatch):
  """As if JAX had made no devices, on a machine of three cores."""
  settings = {}
  fake = types.SimpleNamespace(
    config=types.SimpleNamespace(
      jax_num_cpu_devices=-1, update=settings.__setitem__
    ),
    distributed=types.SimpleNamespace(is_initialized=lambda: False),
  )
  monkeypatch.setitem(sys.modules, 'jax', fake)
  monkeypatch.setattr(cores, '_num_devices', 1)
  monkeypatch.setattr(cores, 'available', lambda: 3)
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  return fake, settings


def test_each_core_becomes_a_device(fresh_jax):
  assert cores.make_devices() == cores.num_devices() == 3
  assert fresh_jax[1] == {'jax_num_cpu_devices': 3}


def test_of_many_cores_some_become_devices(fresh_jax, monkeypatch):
  monkeypatch.setattr(cores, 'available', lambda: 64)
  assert cores.make_devices() == cores.MOST_DEVICES


def test_a_number_that_was_chosen_is_kept(fresh_jax, monkeypatch):
  fake, settings = fresh_jax
  monkeypatch.setenv(
    'XLA_FLAGS', '--a=1 --xla_force_host_platform_device_count=8'
  )
  assert cores.make_devices() == 1
  monkeypatch.delenv('XLA_FLAGS')
  fake.config.jax_num_cpu_devices = 5
  assert cores.make_devices() == 1
  fake.config.jax_num_cpu_devices = -1
  fake.distributed.is_initialized = lambda: True
  assert cores.make_devices() == 1
  assert not settings


def test_devices_that_are_made_stay(monkeypatch):
  before = jax.device_count()  # makes them
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  assert cores.make_devices() == 1
  assert jax.device_count() == before


def test_available_cores_are_those_of_this_process():
  assert 1 <= cores.available() <= os.cpu_count()
