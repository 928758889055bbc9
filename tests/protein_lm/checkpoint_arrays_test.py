"""Arrays of a checkpoint: on any devices, by name, without their model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from protein_lm import checkpoint


def mesh_of(*shape):
  devices = np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape)
  return jax.sharding.Mesh(devices, ('fsdp', 'tensor')[: len(shape)])


def place(tree, mesh):
  """Splits what divides over the mesh, as training would."""

  def sharding(x):
    names = [
      name if x.shape[i] % mesh.shape[name] == 0 else None
      for i, name in enumerate(mesh.axis_names[: x.ndim])
    ]
    return NamedSharding(mesh, P(*names))

  return jax.tree.map(lambda x: jax.device_put(x, sharding(x)), tree)


def make_state():
  return {
    'step': jnp.int32(7),
    'params': {
      'w': jax.random.normal(jax.random.key(0), (16, 12)),
      'half': jnp.arange(24, dtype=jnp.bfloat16).reshape(8, 3),
      'odd': jnp.arange(5.0),
      'none': jnp.zeros((0, 8)),
    },
  }


@pytest.mark.parametrize(
  'saved_on, restored_on', [((8,), (1,)), ((8,), (2, 4)), ((1,), (8,))]
)
def test_a_checkpoint_moves_between_meshes(tmp_path, saved_on, restored_on):
  state = place(make_state(), mesh_of(*saved_on))
  checkpoint.save(tmp_path, 7, state, config='', metadata={})
  asked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    place(make_state(), mesh_of(*restored_on)),
  )
  restored, _ = checkpoint.restore(tmp_path, asked)
  for new, old, struct in zip(
    *map(jax.tree.leaves, (restored, make_state(), asked)), strict=True
  ):
    assert new.sharding == struct.sharding and new.dtype == old.dtype
    assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  work_dir = tmp_path_factory.mktemp('saved')
  state = place(make_state(), mesh_of(4))
  checkpoint.save(work_dir, 7, state, config='', metadata={})
  return work_dir


def test_arrays_are_read_by_name_without_the_model(saved):
  arrays = checkpoint.read_arrays(saved)
  params = make_state()['params']
  assert arrays.keys() == {'w', 'half', 'odd'}
  for name, array in arrays.items():
    assert isinstance(array, np.ndarray) and array.dtype == params[name].dtype
    assert array.tobytes() == np.asarray(params[name]).tobytes()


def test_a_prefix_that_nothing_has_gives_nothing(saved):
  assert checkpoint.read_arrays(saved, 7, prefix='ema_params/') == {}


def test_stored_shapes_are_all_names_with_shape_and_dtype(saved):
  shapes = checkpoint.stored_shapes(saved)
  assert {k: (v.shape, str(v.dtype)) for k, v in shapes.items()} == {
    'step': ((), 'int32'),
    'params/w': ((16, 12), 'float32'),
    'params/half': ((8, 3), 'bfloat16'),
    'params/odd': ((5,), 'float32'),
  }


def test_latest_is_none_where_nothing_is(saved, tmp_path):
  assert checkpoint.latest(tmp_path) is None
  assert checkpoint.latest(saved) == 7


def test_under_a_mesh_an_abstract_array_comes_to_the_default_device(tmp_path):
  state = {'params': {'w': jnp.arange(4.0)}}
  checkpoint.save(tmp_path, 1, state, config='', metadata={})
  with jax.set_mesh(mesh_of(8)):
    # Its sharding names the mesh, and no devices.
    abstract = jax.eval_shape(lambda: {'w': jnp.zeros(4)})
    params, _ = checkpoint.restore_params(tmp_path, abstract)
  np.testing.assert_array_equal(params['w'], np.arange(4.0))


def test_biases_of_an_older_model_are_told(tmp_path):
  state = {'params': {'bias': jnp.ones(2), 'w': jnp.ones(2)}}
  checkpoint.save(tmp_path, 1, state, config='', metadata={})
  with pytest.raises(checkpoint.MismatchError, match='FlaxModel.use_bias'):
    checkpoint.restore_params(tmp_path, {'w': jnp.ones(2)})
