"""metrics.jsonl holds each step once, whatever interrupted the run."""

import math

import pytest

from protein_lm import metrics


def test_records_come_back(tmp_path):
  with metrics.MetricsLog(tmp_path, 0) as log:
    log.write(5, {'train/loss': 2.5})
    log.write(10, {'train/loss': 2.25, 'validation/loss': 2.75})
  assert metrics.read(tmp_path) == [
    {'step': 5, 'train/loss': 2.5},
    {'step': 10, 'train/loss': 2.25, 'validation/loss': 2.75},
  ]


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
  with metrics.MetricsLog(tmp_path, 0) as log:
    for step in (1, 2, 3):
      log.write(step, {'train/loss': 1.0})
  with metrics.MetricsLog(tmp_path, 2) as log:
    log.write(3, {'train/loss': 0.5})
  assert [r['step'] for r in metrics.read(tmp_path)] == [1, 2, 3]
  assert metrics.read(tmp_path)[-1]['train/loss'] == 0.5


def test_a_torn_last_line_is_dropped(tmp_path):
  (tmp_path / metrics.FILE_NAME).write_text('{"step": 1}\n{"step": 2, "tra')
  with metrics.MetricsLog(tmp_path, 2) as log:
    log.write(3, {})
  assert [r['step'] for r in metrics.read(tmp_path)] == [1, 3]


def test_ratios_of_known_sums():
  sums = {
    'loss': 8 * math.log(4),
    'correct': 2,
    'num_tokens': 8,
    'residue_loss': 6 * math.log(5),
    'num_residues': 6,
  }
  found = metrics.ratios(sums, 'causal')
  assert found['perplexity'] == pytest.approx(4)
  assert found['residue_perplexity'] == pytest.approx(5)
  assert found['accuracy'] == 0.25


def test_a_masked_number_never_bears_a_causal_name():
  sums = {
    'loss': 1.0,
    'correct': 0,
    'num_tokens': 1,
    'residue_loss': 1.0,
    'num_residues': 1,
  }
  found = metrics.ratios(sums, 'masked')
  assert found['masked_residue_perplexity'] == pytest.approx(math.e)
  assert 'perplexity' not in found and 'residue_perplexity' not in found
