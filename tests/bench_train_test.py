"""scripts/bench_train.py: its columns, its rules, and a tiny run."""

import importlib
import pathlib
import sys
import types

import numpy as np
import pytest

from protein_lm import config, flops

SCRIPTS = pathlib.Path(__file__).parents[1] / 'scripts'


@pytest.fixture(scope='module')
def bench():
  """The script as a module; those beside it are found as when it is run."""
  sys.path.insert(0, str(SCRIPTS))
  yield importlib.import_module('bench_train')
  sys.path.remove(str(SCRIPTS))


@pytest.fixture
def tiny(monkeypatch):
  """A configuration of two small layers."""
  monkeypatch.setattr(flops, '_GEMM_SIZE', {'cpu': 64})
  config.register()
  config.clear()
  config.parse(
    (),
    [
      'experiment.model_cls = @FlaxLM',
      'FlaxModel.emb_dim = 8',
      'FlaxModel.qkv_dim = 8',
      'FlaxModel.mlp_dim = 16',
      'FlaxModel.num_layers = 2',
      'FlaxModel.num_heads = 2',
      'FlaxModel.attention_fn = @make_fast_generalized_attention()',
    ],
  )
  yield
  config.clear()


def test_synthetic_rows_are_full(bench):
  batch = bench.synthetic_batch(2, 5)
  assert batch.tokens.shape == (2, 5) and batch.tokens.max() < 20
  assert np.all(batch.segment_ids == 1) and np.all(batch.weights == 1)
  assert batch.positions.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
  'B, L, parts', [(16, 512, 2), (8, 1024, 2), (1, 8192, 1), (12, 512, 1)]
)
def test_parts_of_a_batch_leave_each_core_its_tokens(bench, B, L, parts):
  mesh = types.SimpleNamespace(shape={'data': min(B, 2), 'fsdp': 1})
  assert bench.num_microbatches(mesh, bench.synthetic_batch(B, L)) == parts


def test_ratios_are_to_the_peers(bench):
  rows = [
    bench.Row('exact', 1, 8, num_tokens=8, seconds=[1.0, 2.0, 4.0]),
    bench.Row('torch', 1, 8, num_tokens=8, seconds=[4.0]),
    bench.Row('performer_16', 1, 8, num_tokens=4, seconds=[20.0]),
  ]
  exact, _, performer = bench.table(rows, [1.0], 'float32')
  assert (exact['tokens_per_sec'], exact['x_torch']) == (4, 2)
  assert exact['x_performer'] == 20
  assert performer['x_torch'] == 0.1


def test_row_without_times_says_why(bench):
  rows = [bench.Row('torch', 1, 8, note='without torch')]
  (line,) = bench.table(rows, [1.0], 'float32')
  assert line['note'] == 'without torch' and line['x_torch'] == ''


def test_unknown_row_is_refused(bench):
  bench.check_kinds(['softmax_16', 'config', 'performer_8', 'torch'])
  with pytest.raises(ValueError, match="got 'softmax'"):
    bench.check_kinds(['softmax'])


def test_peers_are_shaped_like_the_model(bench, tiny, monkeypatch):
  seen = []
  monkeypatch.setattr(bench.peers, 'why_unavailable', lambda *_: '')
  monkeypatch.setattr(bench.peers, 'available_bytes', lambda: np.inf)
  monkeypatch.setattr(
    bench.peers, 'make_step', lambda kind, shape, batches: seen.append(shape)
  )
  bench.make_row('torch', [bench.synthetic_batch(1, 8)])
  assert (seen[0].emb_dim, seen[0].mlp_dim, seen[0].num_heads) == (8, 16, 2)
  assert seen[0].causal


def test_batch_of_a_peer_shrinks_to_what_fits(bench, tiny, monkeypatch):
  rows = []
  monkeypatch.setattr(bench.peers, 'why_unavailable', lambda *_: '')
  monkeypatch.setattr(
    bench.peers,
    'make_step',
    lambda kind, shape, batches: rows.append(len(batches[0].tokens)),
  )
  batch = bench.synthetic_batch(8, 16)
  shape = bench.peers.Shape(2, 8, 8, 16, 2, 32, True, 'float32')
  needed = bench.peers.least_bytes('performer_8', shape, 2 * 16)
  monkeypatch.setattr(bench.peers, 'available_bytes', lambda: needed / 0.7)
  assert bench.make_row('performer_8', [batch]).batch_size == 2
  assert rows == [2]


def test_row_that_fits_at_no_size_is_left_out(bench, tiny, monkeypatch):
  monkeypatch.setattr(bench.peers, 'why_unavailable', lambda *_: '')
  monkeypatch.setattr(bench.peers, 'available_bytes', lambda: 1.0)
  row = bench.make_row('performer_8', [bench.synthetic_batch(2, 16)])
  assert row.run is None and row.note.startswith('skipped: needs')


@pytest.mark.slow
def test_tiny_run(bench, tiny, capsys):
  batches = [bench.synthetic_batch(2, 16)]
  lines = bench.bench(['config', 'softmax_4'], [batches], 1, 20.0)
  assert [line['kind'] for line in lines] == ['config', 'softmax_4']
  assert all(line['tokens_per_sec'] > 0 for line in lines)
  assert all(line['temp_mb'] != '' for line in lines)
  assert 'product of matrices' in capsys.readouterr().out
