"""Several processes, one a host, as one run: who they are, what they agree on.

Everything that changes the work must be the same in all of them: a batch and
the randomness follow from the step, a clock or a disk does not, so what comes
from those is asked for with `any_process` or `from_primary`.
"""

import atexit
import contextlib
import os
import pathlib
import re
import sys
import threading
from collections.abc import Iterator

from absl import flags

from protein_lm.place import Place, find_place

flags.disclaim_key_flags()  # they are the binary's, and stand in its --help

CONNECT_TIMEOUT = 300  # seconds that the processes have to meet
HEARTBEAT_TIMEOUT = 100  # seconds after which a silent process counts as dead
_BARRIER_TIMEOUT = 24 * 3600  # seconds

# What errors say whose cause is another process.
_PEER_WORDS = re.compile(
  'gloo|nccl|coordination|heartbeat|connection (reset|closed|refused)|'
  'socket closed|broken pipe',
  re.IGNORECASE,
)


class PeerError(RuntimeError):
  """Another process of the run is gone."""


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --coordinator_address, --num_processes and --process_id."""
  flags.DEFINE_string(
    'coordinator_address',
    None,
    'host:port of process 0, for a run of several processes, one a host; '
    '"auto" asks the cluster (TPU pods, Open MPI). Found without it under '
    'Slurm; elsewhere COORDINATOR_ADDRESS.',
    flag_values=flag_values,
  )
  flags.DEFINE_integer(
    'num_processes',
    None,
    'Processes of the run; else NUM_PROCESSES.',
    lower_bound=1,
    flag_values=flag_values,
  )
  flags.DEFINE_integer(
    'process_id',
    None,
    'Number of this process, from 0; else PROCESS_ID or JOB_COMPLETION_INDEX.',
    lower_bound=0,
    flag_values=flag_values,
  )


@contextlib.contextmanager
def initialize(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  connect_timeout: int = CONNECT_TIMEOUT,
  heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
) -> Iterator[None]:
  """While entered, this process is one of the run's; does nothing for one.

  To be entered before any computation of JAX. A process that leaves by an
  error ends at once, so that the others see it: on CPU with the next step, on
  accelerators after the heartbeat timeout, when JAX aborts them with a message
  of its own. A process that hangs is found by the same timeout.

  Args:
    coordinator_address: as the flag of this name, which is read if it is None.
    num_processes: likewise.
    process_id: likewise.
    connect_timeout: seconds that all processes have to meet; then this one
      prints an error and exits.
    heartbeat_timeout: seconds after which a silent process counts as dead.

  Raises:
    ValueError: see `find_place`.
    ConnectionError: this process cannot join the others.
    PeerError: another process was lost.
  """
  place = find_place(
    _flag('coordinator_address', coordinator_address),
    _flag('num_processes', num_processes),
    _flag('process_id', process_id),
  )
  if place is None:
    yield
    return
  _connect(place, connect_timeout, heartbeat_timeout)
  import jax

  try:
    yield
  except BaseException as error:
    # The usual end waits for all processes, and this one would for ever.
    atexit.register(_leave_at_once)
    if _PEER_WORDS.search(str(error)) and isinstance(
      error, ValueError | RuntimeError
    ):
      reason = ' '.join(str(error).split())[:200]
      raise PeerError(
        f'{place} lost another one, whose own message says why; start all '
        'again, and the run goes on from its last checkpoint '
        f'({reason}).'
      ) from error
    raise
  jax.distributed.shutdown()


def _flag(name, value):
  known = flags.FLAGS.is_parsed() and name in flags.FLAGS
  return flags.FLAGS[name].value if value is None and known else value


def _connect(place: Place, timeout: int, heartbeat_timeout: int) -> None:
  import jax

  # It would take SIGTERM away from protein_lm.interrupt.
  jax.config.update('jax_enable_preemption_service', False)
  host, _, port = (place.address or '').rpartition(':')
  local = host in ('localhost', '127.0.0.1', '[::1]')
  # JAX aborts the process where it waits in vain: this is sooner, and tells.
  timer = threading.Timer(timeout, _give_up, (place, timeout))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      place.address,
      place.num_processes,
      place.process_id,
      local_device_ids=place.local_device_ids,
      cluster_detection_method=place.method,
      initialization_timeout=timeout + 60,
      heartbeat_timeout_seconds=heartbeat_timeout,
      coordinator_bind_address=f'{host}:{port}' if local else None,
    )
  except Exception as error:
    raise ConnectionError(
      f'{place} cannot join the run at {place.address or "its coordinator"}: '
      f'{error}; if another program listens there, choose another port.'
    ) from error
  finally:
    timer.cancel()


def _give_up(place, timeout):
  print(
    f'error: {place} did not meet all others at '
    f'{place.address or "their coordinator"} within {timeout} s; start all of '
    'them, with the same address, which process 0 must be reached by.',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _leave_at_once():
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def is_primary() -> bool:
  """Whether this process writes what is written once: logs, configs."""
  import jax

  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Whether the flag is set in any process; all must ask, and all wait."""
  import jax

  return flag if jax.process_count() == 1 else bool(_any(flag))


class Agreement:
  """`any_process` for every step: nobody waits, the answer is one call old.

  Example:
    agreed = Agreement()
    for step in ...:
      ...
      if agreed(interrupt.requested):
        break  # in all processes after the same step
  """

  def __init__(self):
    self._asked = None

  def __call__(self, flag: bool) -> bool:
    """Whether the flag of the previous call was set in any process.

    In a run of one process, the flag of this call.
    """
    import jax

    if jax.process_count() == 1:
      return flag
    before, self._asked = self._asked, _any(flag)
    return before is not None and bool(before)


def _any(flag: bool):
  """Bool array of whether the flag is set anywhere, on its way."""
  import jax
  import numpy as np

  sharding, reduce = _reduction()
  everywhere = jax.make_array_from_callback(
    (jax.device_count(),), sharding, lambda _: np.array([flag], np.bool_)
  )
  return reduce(everywhere)


_REDUCTION = []


def _reduction():
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  if not _REDUCTION:
    mesh = Mesh(np.array(jax.devices()), ('device',))
    _REDUCTION.append(
      (
        NamedSharding(mesh, PartitionSpec('device')),
        jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec())),
      )
    )
  return _REDUCTION[0]


def from_primary(value: float) -> float:
  """A number as the primary process has it; all must ask.

  It travels as float64 bits, so that whole numbers up to 2**53 are exact.
  """
  import jax

  if jax.process_count() == 1:
    return value
  import numpy as np
  from jax.experimental import multihost_utils

  bits = np.array([value], np.float64).view(np.uint32)
  bits = np.asarray(multihost_utils.broadcast_one_to_all(bits), np.uint32)
  return type(value)(bits.view(np.float64)[0])


def barrier(name: str) -> None:
  """Returns when all processes have come here, each with the same name.

  They wait for each other up to a day (the first may be preparing data), and
  not on the devices. A name is used once in a run.
  """
  import jax

  if jax.process_count() > 1:
    from orbax.checkpoint import multihost

    client = multihost.get_jax_distributed_client()
    client.wait_at_barrier(f'protein_lm/{name}', _BARRIER_TIMEOUT * 1000)


def check_shared(work_dir: str | os.PathLike) -> None:
  """Refuses a work_dir that is another folder on another host.

  Raises:
    OSError: in all processes, if one does not see what process 0 wrote.
  """
  import jax

  if jax.process_count() == 1:
    return
  # A number that an earlier run or another host did not leave there.
  number = from_primary(int.from_bytes(os.urandom(6), 'big'))
  path = pathlib.Path(work_dir) / f'.shared-{number}'
  failure = None
  if is_primary():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.touch()
    except OSError as error:
      failure = error
  barrier('work_dir written')
  unseen = any_process(not path.exists())
  if is_primary():
    path.unlink(missing_ok=True)
  if failure:
    raise failure
  if unseen:
    raise OSError(
      f'{work_dir} is not the same folder for all {jax.process_count()} '
      'processes; name one on a disk that all hosts share.'
    )
