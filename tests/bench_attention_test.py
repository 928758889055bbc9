"""scripts/bench_attention.py: its formulas, its rules, and a tiny run."""

import csv
import dataclasses
import importlib
import importlib.util
import pathlib
import sys

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / 'scripts'


@pytest.fixture(scope='module')
def bench():
  """The script as a module; those beside it are found as when it is run."""
  sys.path.insert(0, str(SCRIPTS))
  yield importlib.import_module('bench_attention')
  sys.path.remove(str(SCRIPTS))


def case(bench, **kwargs):
  shape = bench.Config().case('softmax', True, 'forward_backward', 8192)
  return dataclasses.replace(shape, **kwargs)


@pytest.mark.parametrize(
  'kind, causal, pass_name, gflop',
  [
    ('softmax', True, 'forward_backward', 44.3),
    ('softmax_scan_1', True, 'forward_backward', 44.3),
    ('softmax', False, 'forward_backward', 21.7),
    ('softmax', True, 'forward', 14.1),
    ('softmax', False, 'forward', 8.7),
    ('exact', True, 'forward_backward', 240.5),
    ('torch_sdpa', False, 'forward', 137.4),
  ],
)
def test_nominal_operations(bench, kind, causal, pass_name, gflop):
  one = case(bench, kind=kind, causal=causal, pass_name=pass_name)
  assert one.flops / 1e9 == pytest.approx(gflop, abs=0.1)


def test_crossover_between_lengths(bench):
  linear = {length: 1e-6 * length for length in (512, 1024, 2048, 4096)}
  square = {length: 1e-9 * length**2 for length in linear}
  assert bench.report.crossover(linear, square) == pytest.approx(1000)


def test_crossover_only_where_the_fast_one_was_slower(bench):
  fast, slow = {512: 1.0, 1024: 2.0}, {512: 2.0, 1024: 4.0}
  assert bench.report.crossover(fast, slow) is None
  assert bench.report.crossover(slow, fast) is None
  assert bench.report.crossover(fast, {}) is None


def test_rows_predicted_to_be_slow_are_skipped(bench):
  measured = [(1024, 4.0), (4096, 64.0)]  # quadratic
  reason = bench.why_skipped(case(bench), measured, 255.0, np.inf)
  assert reason == 'skipped: predicted 256 s'
  assert not bench.why_skipped(case(bench), measured, 257.0, np.inf)
  assert not bench.why_skipped(case(bench), [], 1.0, np.inf)


def test_first_prediction_knows_the_kind(bench):
  measured = [(4096, 10.0)]
  assert not bench.why_skipped(case(bench), measured, 30.0, np.inf)
  exact = case(bench, kind='exact')
  assert bench.why_skipped(exact, measured, 30.0, np.inf)


def test_rows_larger_than_memory_are_skipped(bench):
  exact = case(bench, kind='exact', length=65536)
  reason = bench.why_skipped(exact, [], 60.0, 16e9)
  assert reason == 'skipped: needs 275 GB of memory'


def test_missing_package_names_the_extra(bench, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert '.[peers]' in bench.rows.why_unavailable('torch_sdpa')


def test_unknown_row_is_refused(bench):
  values = vars(bench.Config()) | {'causal': ['true'], 'kinds': ['flash']}
  with pytest.raises(ValueError, match="of softmax, .* got 'flash'"):
    bench.read_config(values)


def test_flags_read_as_their_defaults(bench):
  values = vars(bench.Config()) | {
    'lengths': ['32', '64'],
    'causal': ['false'],
    'kinds': ['relu'],
  }
  config = bench.read_config(values)
  assert config == bench.Config([32, 64], causal=[False], kinds=['relu'])


@pytest.fixture
def tiny(bench, tmp_path):
  return bench.Config(
    lengths=(32, 64),
    num_heads=2,
    qkv_dim=8,
    nb_features=16,
    causal=(True,),
    passes=('forward_backward',),
    kinds=('softmax', 'exact'),
    repeats=1,
    out_dir=str(tmp_path / 'new'),
  )


@pytest.mark.slow
def test_tiny_run_writes_table_and_figure(bench, tiny, capsys):
  bench.sweep(tiny)
  out_dir = pathlib.Path(tiny.out_dir)
  with (out_dir / 'attention.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(row['kind'], row['length']) for row in rows] == [
    ('softmax', '32'),
    ('exact', '32'),
    ('softmax', '64'),
    ('exact', '64'),
  ]
  assert all(float(row['median_ms']) > 0 for row in rows)
  assert (out_dir / 'attention.png').read_bytes().startswith(b'\x89PNG')
  assert 'than exact' in capsys.readouterr().out


@pytest.mark.slow
def test_skipped_row_says_so(bench, tiny, capsys):
  bench.sweep(dataclasses.replace(tiny, max_seconds=1e-9))
  assert capsys.readouterr().out.count('skipped: predicted') == 2


@pytest.mark.slow
def test_growth_and_decode(bench, tiny):
  assert list(bench.growth(tiny, (32, 64)).values())[0] > 0
  assert bench.decode(tiny, (2, 40), num_tokens=2)['softmax'] > 0
