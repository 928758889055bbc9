"""The mesh: sizes from gin, and what cannot be cut is refused."""

import types

import gin
import jax
import pytest
from flax import nnx

from fast_attention import make_fast_softmax_attention
from protein_lm import cores
from protein_lm import mesh as mesh_lib
from protein_lm.exact_attention import exact_attention
from protein_lm.mesh import make_mesh
from protein_lm.models import FlaxLM

MODEL = types.SimpleNamespace(num_heads=4, mlp_dim=6)
FAST = make_fast_softmax_attention()


def model(*attention_fns):
  return FlaxLM(
    attention_fns,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=32,
    num_layers=2,
    num_heads=4,
    rngs=nnx.Rngs(0),
  )


@pytest.fixture
def accelerators(monkeypatch):
  """Eight of them; the mesh is what it is made from."""
  device = types.SimpleNamespace(platform='gpu', device_kind='H100')
  monkeypatch.setattr(mesh_lib, '_devices', lambda: [device] * 8)
  monkeypatch.setattr(
    jax, 'make_mesh', lambda shape, *args, devices, **kwargs: shape
  )


def test_one_process_on_a_cpu_takes_one_device_unless_told():
  mesh = make_mesh(32)
  assert dict(mesh.shape) == dict.fromkeys(mesh_lib.AXES, 1)
  assert make_mesh(32, data=2, fsdp=4).devices.shape == (2, 4, 1, 1)


def test_of_a_cpu_data_takes_the_cores_that_have_rows(monkeypatch):
  monkeypatch.setattr(cores, '_num_devices', 4)
  assert make_mesh(32).shape['data'] == 4
  assert make_mesh(6).shape['data'] == 3
  assert make_mesh(32, fsdp=2).shape['data'] == 2
  assert make_mesh(8, num_microbatches=4).shape['data'] == 2
  assert make_mesh(8, data=1).shape['data'] == 1


def test_a_large_model_is_not_copied_for_each_core(monkeypatch):
  monkeypatch.setattr(cores, '_num_devices', 4)
  monkeypatch.setattr(mesh_lib, '_check_model', lambda *args: None)
  monkeypatch.setattr(mesh_lib, '_num_params', lambda model: 2**25 + model)
  assert make_mesh(8, model=0).shape['data'] == 4
  assert make_mesh(8, model=1).shape['data'] == 1


@pytest.mark.parametrize(
  'num_rows, lengths, sizes, shape',
  [
    (1, (4096,), {}, (1, 1, 1, 4)),
    (1, (2048, 4096), {}, (1, 1, 1, 2)),
    (2, (4096,), {}, (2, 1, 1, 2)),
    (4, (4096,), {}, (4, 1, 1, 1)),
    (1, (1024,), {}, (1, 1, 1, 1)),
    (1, (4098,), {}, (1, 1, 1, 2)),
    (1, (8196,), {}, (1, 1, 1, 4)),
    (3, (4096,), {}, (3, 1, 1, 1)),
    (1, (), {}, (1, 1, 1, 1)),
    (1, (4096,), {'data': 1}, (1, 1, 1, 1)),
    (1, (4096,), {'sequence': 1}, (1, 1, 1, 1)),
    (1, (4096,), {'tensor': 2}, (1, 1, 2, 2)),
  ],
)
def test_long_rows_are_cut_for_cores_without_rows(
  monkeypatch, num_rows, lengths, sizes, shape
):
  monkeypatch.setattr(cores, '_num_devices', 4)
  mesh = make_mesh(num_rows, lengths, model(FAST), **sizes)
  assert mesh.devices.shape == shape


@pytest.mark.parametrize(
  'attention_fn, parts', [(exact_attention(), 4), (len, 1)]
)
def test_rows_are_cut_where_all_attention_can_be(
  monkeypatch, attention_fn, parts
):
  monkeypatch.setattr(cores, '_num_devices', 4)
  mesh = make_mesh(1, (4096,), model(FAST, attention_fn))
  assert mesh.shape['sequence'] == parts


def test_rows_are_cut_for_as_many_cores_as_divide_the_heads(monkeypatch):
  monkeypatch.setattr(cores, '_num_devices', 3)
  assert make_mesh(1, (6144,), model(FAST)).shape['sequence'] == 2


def test_the_compiler_may_place_what_no_rule_names():
  assert set(make_mesh(32).axis_types) == {jax.sharding.AxisType.Auto}


def test_sizes_come_from_gin():
  gin.bind_parameter('mesh.fsdp', 4)
  try:
    assert make_mesh(32).shape['fsdp'] == 4
  finally:
    gin.clear_config()


def test_the_default_device_is_the_mesh():
  with jax.default_device(jax.devices()[3]):
    assert make_mesh(32).devices.item() == jax.devices()[3]


@pytest.mark.parametrize(
  'num_rows, sizes, shape',
  [
    (32, {}, (8, 1, 1, 1)),
    (32, {'fsdp': 4}, (2, 4, 1, 1)),
    (32, {'tensor': 8}, (1, 1, 8, 1)),
    (12, {}, (6, 1, 1, 1)),
    (12, {'fsdp': 2}, (3, 2, 1, 1)),
    (5, {'sequence': 3}, (1, 1, 1, 3)),
  ],
)
def test_data_takes_all_accelerators_that_have_rows(
  accelerators, num_rows, sizes, shape
):
  assert make_mesh(num_rows, **sizes) == shape


def test_idle_accelerators_are_named(accelerators, capsys):
  make_mesh(6)
  assert 'data 6 x fsdp 1 x' in (text := capsys.readouterr().out)
  assert text.count('H100') == 2
  make_mesh(8)
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  'sizes, message',
  [
    ({'data': 0}, 'mesh.data must be a whole number, at least 1, got 0'),
    ({'fsdp': 2.0}, 'mesh.fsdp must be a whole number.*got 2.0'),
    ({'data': 4, 'tensor': 4}, 'data 4 x.*= 16 devices, and there are 8'),
    ({'data': 2, 'fsdp': 3}, '32 rows.*data 2 x fsdp 3.*a multiple of 6'),
    ({'sequence': 5}, 'rows of 48 tokens cannot be cut for sequence 5'),
    ({'tensor': 8}, 'num_heads=4 cannot be cut for tensor 8'),
    ({'tensor': 4}, 'mlp_dim=6 cannot be cut for tensor 4'),
  ],
)
def test_what_cannot_be_cut_is_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(32, (48,), MODEL, **sizes)


def test_several_processes_use_all_devices(accelerators, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert make_mesh(16) == (8, 1, 1, 1)
  with pytest.raises(ValueError, match='2 processes have 8, which must all'):
    make_mesh(16, data=2)
  with pytest.raises(ValueError, match='12 rows of a batch cannot be cut'):
    make_mesh(12)
