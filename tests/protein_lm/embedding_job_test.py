"""A job on disk: whole records survive, others are done again."""

import numpy as np
import pytest

from protein_lm import embedding_job
from protein_lm.embedding_job import open_job

MANIFEST = {'step': 1, 'layers': (0, -1)}
LAYOUT = {'a': ((2, 3), 'float32'), 'b': ((1, 3), 'float16')}


def arrays(seed):
  random = np.random.default_rng(seed)
  return {
    name: random.normal(size=s).astype(t) for name, (s, t) in LAYOUT.items()
  }


def begin(out, *seeds):
  with open_job(out, MANIFEST, False) as job:
    for seed in seeds:
      job.append(arrays(seed))


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'x.npz'


def test_records_are_read_as_they_were_added(out):
  begin(out, 1)
  with open_job(out, MANIFEST, False) as job:
    assert job.num_done == 1
    job.append(arrays(2))
    for found, seed in zip(job.read([LAYOUT] * 2), (1, 2), strict=True):
      for name, expected in arrays(seed).items():
        np.testing.assert_array_equal(found[name][0 : len(expected)], expected)
        np.testing.assert_array_equal(found[name][0], expected[0])


@pytest.mark.parametrize('keep', [-1, -35, 5])
def test_a_record_that_was_cut_off_is_dropped(out, keep):
  begin(out, 1, 2)
  path = embedding_job.folder_of(out) / 'batches'
  path.write_bytes(path.read_bytes()[:keep])
  with open_job(out, MANIFEST, False) as job:
    assert job.num_done == (1 if keep < 0 else 0)


def test_a_damaged_record_is_dropped_with_what_follows(out):
  begin(out, 1, 2, 3)
  path = embedding_job.folder_of(out) / 'batches'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with open_job(out, MANIFEST, False) as job:
    assert job.num_done == 1


def test_another_manifest_is_refused(out):
  begin(out, 1)
  other = MANIFEST | {'layers': (1,)}
  with (
    pytest.raises(ValueError, match='with another layers; run that command'),
    open_job(out, other, False),
  ):
    pass
  with open_job(out, MANIFEST, False) as job:
    assert job.num_done == 1


def test_another_manifest_starts_afresh_if_asked_to(out):
  begin(out, 1)
  with open_job(out, MANIFEST | {'step': 2}, True) as job:
    assert job.num_done == 0


def test_asking_so_keeps_what_has_the_same(out):
  begin(out, 1)
  with open_job(out, MANIFEST, True) as job:
    assert job.num_done == 1


def test_two_processes_do_not_write_the_same(out):
  begin(out, 1)
  with (
    open_job(out, MANIFEST, False),
    pytest.raises(ValueError, match='another process is writing'),
    open_job(out, MANIFEST, False),
  ):
    pass


def test_nothing_done_leaves_nothing(out):
  with pytest.raises(OSError), open_job(out, MANIFEST, False):
    raise OSError
  assert not any(out.parent.iterdir())


def test_the_finished_file_takes_its_place_alone(out):
  with open_job(out, MANIFEST, False) as job:
    (job.folder / 'whole.npz').write_text('x')
    job.finish(job.folder / 'whole.npz', out)
  assert [path.name for path in out.parent.iterdir()] == ['x.npz']
