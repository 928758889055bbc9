"""Several processes: found by flags or the cluster, equal to one, or ended."""

import pytest

from protein_lm import distributed
from protein_lm.place import Place, find_place

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[1-2]',
  'SLURM_STEP_NUM_NODES': '2',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}
KUBERNETES = {
  'COORDINATOR_ADDRESS': 'train-0.train:55527',
  'NUM_PROCESSES': '4',
  'JOB_COMPLETION_INDEX': '3',
}


@pytest.mark.parametrize(
  'environ, place',
  [
    ({}, None),
    ({'JOB_COMPLETION_INDEX': '3'}, None),  # a sweep: each is a run
    (KUBERNETES, Place('train-0.train:55527', 4, 3)),
    (KUBERNETES | {'NUM_PROCESSES': '1', 'PROCESS_ID': '0'}, None),
    (KUBERNETES | {'PROCESS_ID': '2'}, Place('train-0.train:55527', 4, 2)),
    (SLURM, Place(None, 2, 1, 'slurm', ())),
    (SLURM | {'SLURM_NTASKS': '8'}, Place(None, 8, 1, 'slurm', None)),
    (SLURM | {'SLURM_NTASKS': '1'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, Place(None, None, None, None)),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
  ],
)
def test_the_cluster_says_which_process_this_is(environ, place):
  assert find_place(environ=environ) == place


def test_flags_go_before_the_environment():
  assert find_place('a:1', 3, 0, environ=KUBERNETES) == Place('a:1', 3, 0)
  assert find_place('auto', environ=SLURM) == Place(None, None, None, None)


@pytest.mark.parametrize(
  'given, environ, message',
  [
    ((None, 2, 0), {}, 'need --coordinator_address=HOST:PORT'),
    (('host', 2, 0), {}, "HOST:PORT of process 0, got 'host'"),
    (('host:1', None, 0), {}, 'needs --num_processes, or NUM_PROCESSES'),
    (('host:1', 2, None), {}, 'PROCESS_ID or JOB_COMPLETION_INDEX in'),
    (('host:1', 2, 2), {}, 'from 0 to num_processes - 1 = 1, got 2'),
    ((), KUBERNETES | {'NUM_PROCESSES': 'x'}, "NUM_PROCESSES must be.*'x'"),
  ],
)
def test_what_makes_no_place_is_refused(given, environ, message):
  with pytest.raises(ValueError, match=message):
    find_place(*given, environ=environ)


def test_a_run_of_one_process_asks_nobody(tmp_path):
  with distributed.initialize():
    assert distributed.is_primary()
    assert distributed.any_process(True) and not distributed.any_process(False)
    agreed = distributed.Agreement()
    assert [agreed(x) for x in (False, True, False)] == [False, True, False]
    assert distributed.from_primary(7) == 7
    distributed.barrier('here')
    distributed.check_shared(tmp_path / 'absent')
  assert not any(tmp_path.iterdir())
