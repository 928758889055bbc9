"""What the first of several processes decides, known to all of them.

One process a host shares a checkpoint directory. What is read off the directory
to decide something (which checkpoint is good?) is read by the first process
alone: a network file system may show each host another state.
"""

import collections
import json
from collections.abc import Callable
from typing import Any

from protein_lm import checkpoint_files as files

TIMEOUT_SECONDS = 3600.0  # of the others, while the first hashes every file

_num_calls: collections.Counter[str] = collections.Counter()


def is_first() -> bool:
  """Whether this is the only process, or the first of several.

  It never starts JAX's devices: jax.distributed must be initialised before.
  """
  import jax

  return not jax.distributed.is_initialized() or jax.process_index() == 0


def from_first(purpose: str, function: Callable[[], Any]) -> Any:
  """Calls a function in the first process; all return, or raise, what it does.

  Nothing runs on the devices, so a thread may call it while others train. Every
  process calls it equally often with the same purpose.

  Args:
    purpose: a word; calls of one purpose are numbered, in one thread.
    function: without arguments, returns what JSON can hold.

  Raises:
    CheckpointError: or its subclass, as the first process raised it.
  """
  import jax

  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return function()
  from orbax.checkpoint import multihost

  client = multihost.get_jax_distributed_client()
  key = f'protein_lm/{purpose}/{_num_calls[purpose]}'
  _num_calls[purpose] += 1
  if jax.process_index():
    text = client.blocking_key_value_get(key, int(TIMEOUT_SECONDS * 1000))
    told = json.loads(text)
    if 'error' in told:
      raise _ERRORS.get(told['error'], files.CheckpointError)(told['text'])
    return told['value']
  try:
    value = function()
  except BaseException as error:
    told = {'error': type(error).__name__, 'text': str(error)}
    client.key_value_set(key, json.dumps(told))
    raise
  client.key_value_set(key, json.dumps({'value': value}))
  return value


_ERRORS = {
  'NotFoundError': files.NotFoundError,
  'MismatchError': files.MismatchError,
  'ValueError': ValueError,
}
