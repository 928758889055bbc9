"""The cores of a CPU as devices: a batch is cut for them as for accelerators.

XLA runs a step on a CPU as a row of operations, and each on all cores: those
of a small model are too small for that. With a device for each core, which
computes its rows, a step takes three quarters of the time on two cores
(scripts/BENCHMARKS.md, section 8).
"""

import os
import re

# A device has a copy of the model, and more of them bring less each.
MOST_DEVICES = 8
# Of a larger model a copy, with its moments, takes more than 400 MB.
MOST_PARAMS = 2**25
_FLAG = re.compile(r'--xla_force_host_platform_device_count\b')

_num_devices = 1


def make_devices() -> int:
  """Makes a device of each core; call it before anything is computed.

  Where the number of CPU devices is chosen already (XLA_FLAGS,
  JAX_NUM_CPU_DEVICES), or there are several processes, nothing changes.

  Returns:
    num_devices().
  """
  import jax  # not by who only asks for `available`

  global _num_devices
  if (
    _FLAG.search(os.environ.get('XLA_FLAGS', ''))
    or jax.config.jax_num_cpu_devices > 0
    or jax.distributed.is_initialized()
  ):
    return _num_devices
  number = min(available(), MOST_DEVICES)
  try:
    jax.config.update('jax_num_cpu_devices', number)
  except RuntimeError:  # JAX has made its devices
    return _num_devices
  _num_devices = number
  return number


def available() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def num_devices() -> int:
  """Devices that stand for cores; 1 unless make_devices was called."""
  return _num_devices
