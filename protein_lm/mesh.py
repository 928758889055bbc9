"""The mesh, `mesh` in gin: how the devices of a run share its work.

Four axes. `data` cuts the rows of a batch; `fsdp` cuts the rows too, and with
them the parameters and the optimiser's state; `tensor` cuts the heads of the
attention and the width of the MLP; `sequence` cuts long rows. What lies where
is in sharding.py.
"""

from collections.abc import Sequence

import gin
import jax
from flax import nnx
from jax.sharding import AxisType, Mesh

from protein_lm import attention_sharding, cores, models

AXES = ('data', 'fsdp', 'tensor', 'sequence')

# Tokens of a part of a row, for a core of a CPU; with fewer nothing is gained.
_LEAST_PART = 1024


@gin.configurable(
  'mesh', denylist=['batch_size', 'lengths', 'model', 'num_microbatches']
)
def make_mesh(
  batch_size: int,
  lengths: Sequence[int] = (),
  model=None,
  data: int | None = None,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int | None = None,
  num_microbatches: int = 1,
) -> Mesh:
  """The devices of the run, in the order that suits their connections.

  Args:
    batch_size: rows of a batch, over all devices.
    lengths: tokens of a row, all that batches come in (one without buckets).
    model: FlaxModel, or an abstract one; None to leave `tensor` unchecked.
    data: parts of a batch. None takes all devices that the other axes leave
      and the rows can be cut for. Of a CPU those are its cores (cores.py) for
      a model of up to 2^25 parameters, else one.
    fsdp: parts of a batch, and of the parameters and the optimiser's state.
    tensor: parts of the heads and of the MLP's width.
    sequence: parts of a row. None is 1, but cuts long rows for the cores of a
      CPU that `data`, None too, has no rows for, where they divide the heads.
    num_microbatches: parts of a batch that are computed one after the other;
      `data` by default cuts the rows of each.

  Returns:
    jax.sharding.Mesh with the axes data, fsdp, tensor, sequence, to be entered
    by jax.set_mesh. Of the axis type Auto: the compiler places what sharding.py
    says nothing of.

  Raises:
    ValueError: the devices, the rows, the lengths or the model cannot be cut
      like this.
  """
  devices = _devices()
  several = jax.process_count() > 1
  for name, size in zip(AXES, (data, fsdp, tensor, sequence), strict=True):
    if size is not None and (not isinstance(size, int) or size < 1):
      raise ValueError(
        f'mesh.{name} must be a whole number, at least 1, got {size!r}.'
      )
  rest = fsdp * tensor * (sequence or 1)
  if data is None:
    room = len(devices)
    are_cores = devices[0].platform == 'cpu' and not several
    if are_cores:
      room = min(_num_cores(model), room)
    data = max(room // rest, 1)
    if not several:
      data = _most_parts(batch_size // num_microbatches, fsdp, data)
    if sequence is None and are_cores:
      sequence = _parts_of_rows(model, lengths, tensor, room // (data * rest))
  sequence = sequence or 1
  rest = fsdp * tensor * sequence
  sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
  product = ' x '.join(f'{name} {size}' for name, size in sizes.items())
  num_used = data * rest
  if num_used > len(devices):
    raise ValueError(
      f'mesh: {product} = {num_used} devices, and there are {len(devices)} '
      f'({devices[0].device_kind}); make mesh.data or another axis smaller.'
    )
  if several and num_used < len(devices):
    raise ValueError(
      f'mesh: {product} = {num_used} devices, and {jax.process_count()} '
      f'processes have {len(devices)}, which must all be used; make the axes '
      'multiply to that, or start fewer processes.'
    )
  if batch_size % (data * fsdp):
    raise ValueError(
      f'mesh: {batch_size} rows of a batch cannot be cut for data {data} x '
      f'fsdp {fsdp}; make data.batch_size a multiple of {data * fsdp}.'
    )
  for length in lengths:
    if length % sequence:
      raise ValueError(
        f'mesh: rows of {length} tokens cannot be cut for sequence {sequence}; '
        f'make data.max_len and data.buckets multiples of {sequence}.'
      )
  if model is not None:
    _check_model(model, tensor)
  if num_used < len(devices) and devices[0].platform != 'cpu':
    idle = ', '.join(str(device) for device in devices[num_used:])
    print(f'mesh: {product} leaves devices idle: {idle}.', flush=True)
  return jax.make_mesh(
    tuple(sizes.values()),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
    devices=devices[:num_used],
  )


def _devices():
  """Those of all processes, or what jax_default_device names."""
  device = jax.config.jax_default_device
  return [device] if isinstance(device, jax.Device) else jax.devices(device)


def _most_parts(num_rows, fsdp, room):
  """The largest `data` up to room that the rows can be cut for, or room."""
  fit = [n for n in range(1, room + 1) if num_rows % (n * fsdp) == 0]
  return max(fit, default=room)


def _parts_of_rows(model, lengths, tensor, room):
  """The largest `sequence` up to room that leaves parts worth their cost."""
  if room < 2 or not lengths or model is None:
    return 1
  if not all(map(attention_sharding.can_split, model.attention_fns)):
    return 1
  fit = (
    n
    for n in range(2, room + 1)
    if model.num_heads % (tensor * n) == 0
    and all(L % n == 0 and L // n >= _LEAST_PART for L in lengths)
  )
  return max(fit, default=1)


def _num_cores(model):
  """Devices of a CPU to use."""
  number = cores.num_devices()
  if number == 1 or model is None or _num_params(model) <= cores.MOST_PARAMS:
    return number
  return 1


def _num_params(model):
  return models.num_params(nnx.state(model, nnx.Param))


def _check_model(model, tensor):
  for name in ('num_heads', 'mlp_dim'):
    value = getattr(model, name)
    if value % tensor:
      raise ValueError(
        f'mesh: {name}={value} cannot be cut for tensor {tensor}; make it a '
        f'multiple of {tensor}.'
      )
