"""Which process of a run this is, as flags or the cluster say."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
  """Of this process among those of the run.

  Attributes:
    address: host:port of process 0; None if JAX finds it.
    num_processes: None if JAX finds it.
    process_id: None if JAX finds it.
    method: how JAX finds what is None ('slurm', None for its own choice), or
      'deactivate' if nothing is.
    local_device_ids: () for all devices of the host, None as JAX chooses.
  """

  address: str | None
  num_processes: int | None
  process_id: int | None
  method: str | None = 'deactivate'
  local_device_ids: tuple[int, ...] | None = ()

  def __str__(self):
    if self.process_id is None:
      return 'a process of several'
    return f'process {self.process_id} of {self.num_processes}'


def find_place(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  environ: Mapping[str, str] = os.environ,
) -> Place | None:
  """Where this process stands: what is given, else what the environment says.

  Args:
    coordinator_address: host:port of process 0, or 'auto'.
    num_processes: of the run.
    process_id: of this one, from 0.
    environ: COORDINATOR_ADDRESS, NUM_PROCESSES, and PROCESS_ID or
      JOB_COMPLETION_INDEX (which Kubernetes sets in an Indexed Job); Slurm's
      variables in a step of several tasks; TPU_WORKER_HOSTNAMES of several
      hosts.

  Returns:
    The place, or None for a run of one process.

  Raises:
    ValueError: a part is missing or makes no sense.
  """
  address = coordinator_address or environ.get('COORDINATOR_ADDRESS')
  if address == 'auto':
    return Place(None, None, None, None)
  if address is None:
    if num_processes is not None or process_id is not None:
      raise ValueError(
        '--num_processes and --process_id need --coordinator_address=HOST:PORT '
        'of process 0.'
      )
    return _place_in_cluster(environ)
  if not re.fullmatch(r'.+:\d+', address):
    raise ValueError(
      f'--coordinator_address must be HOST:PORT of process 0, got {address!r}.'
    )
  if num_processes is None:
    num_processes = _number(environ, 'NUM_PROCESSES')
  if process_id is None:
    process_id = _number(environ, 'PROCESS_ID', 'JOB_COMPLETION_INDEX')
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'process_id must be from 0 to num_processes - 1 = {num_processes - 1}, '
      f'got {process_id}.'
    )
  if num_processes == 1:
    return None
  return Place(address, num_processes, process_id)


def _place_in_cluster(environ) -> Place | None:
  if 'SLURM_STEP_NODELIST' in environ and 'SLURM_PROCID' in environ:
    num_tasks = int(environ.get('SLURM_NTASKS', 1))
    if num_tasks == 1:
      return None
    # JAX takes one device a task; a task that is alone on its host takes all.
    one_a_host = num_tasks == int(environ.get('SLURM_STEP_NUM_NODES', 0))
    return Place(
      None,
      num_tasks,
      int(environ['SLURM_PROCID']),
      'slurm',
      () if one_a_host else None,
    )
  if ',' in environ.get('TPU_WORKER_HOSTNAMES', ''):
    return Place(None, None, None, None)
  return None


def _number(environ, *names):
  for name in names:
    if (text := environ.get(name)) is not None:
      if not text.isdecimal():
        raise ValueError(f'{name} must be a whole number, got {text!r}.')
      return int(text)
  raise ValueError(
    f'a run of several processes needs --{names[0].lower()}, or '
    f'{" or ".join(names)} in the environment.'
  )
