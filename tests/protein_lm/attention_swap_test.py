"""The comparison at a swap of attention: logged once, told at the end."""

import pytest

from protein_lm import attention_swap, metrics

REPORT = attention_swap.SwapReport(
  {'loss': 2.5, 'accuracy': 0.25, 'num_tokens': 9},
  {'loss': 2.75, 'accuracy': 0.125, 'num_tokens': 9},
  ('exact', 'generalized(relu)'),
)


@pytest.fixture
def measured(monkeypatch):
  monkeypatch.setattr(
    attention_swap, 'swap_report', lambda *args, **kwargs: (REPORT, '')
  )


def test_it_is_logged_at_step_0_once(tmp_path, measured, capsys):
  for _ in range(2):  # a run that is killed before its first checkpoint
    with metrics.MetricsLog(tmp_path, 0) as log:
      attention_swap.log_swap(log, tmp_path)
  assert metrics.read(tmp_path) == [{'step': 0, **REPORT.metrics}]
  assert capsys.readouterr().out == (
    'swap of attention on validation: exact accuracy 0.2500, loss 2.5000 -> '
    'generalized(relu) accuracy 0.1250, loss 2.7500 before training\n'
  )


def test_the_last_record_says_what_training_won_back(tmp_path, measured):
  with metrics.MetricsLog(tmp_path, 0) as log:
    attention_swap.log_swap(log, tmp_path)
  line = attention_swap.after_training(tmp_path, {'validation/accuracy': 0.2})
  assert line.endswith(
    '0.2500 before, 0.1250 after the swap, 0.2000 after training'
  )
  assert attention_swap.after_training(tmp_path, {'train/loss': 1.0}) == ''


def test_a_run_without_a_swap_says_nothing(tmp_path):
  record = {'validation/accuracy': 0.2}
  assert attention_swap.after_training(tmp_path, record) == ''
  assert attention_swap.swap_report('a', 1, None, None, None, []) == (None, '')


def test_exported_weights_have_no_attention_to_compare(tmp_path):
  report, why = attention_swap.swap_report(
    tmp_path / 'a.safetensors', 'latest', None, None, None, ['batch']
  )
  assert report is None and 'the source is a file' in why
