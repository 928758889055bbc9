"""The command: what is written, what is said, what is refused."""

import os
import types

import numpy as np
import pytest

from protein_lm import cli, compilation, loading, proteins, sample, sampling
from protein_lm.samples import Sample

LONG = 'ACDEFGHIKLMNPQRSTVWY' * 4


def fake_sample(loaded, num_samples, *, after_chunk, first=0, **settings):
  """Writes the prompt and one letter more; the second is empty without."""
  after_chunk(0)
  after_chunk(2 * num_samples)
  prompt = settings.get('prompt', '')
  drawn = ['A' * (i != 1 or bool(prompt)) for i in range(num_samples)]
  return [
    Sample(first + i, prompt + d, np.full(len(d) + 1, -1.5), True, d)
    for i, d in enumerate(drawn)
  ]


@pytest.fixture
def run(monkeypatch, tmp_path):
  """Runs the command on a stand-in for a model; returns the path written."""

  class Model:
    attention_fns = (types.SimpleNamespace(__name__='exact'),)

  def unreadable():
    raise ValueError('the data went away')

  def load(work_dir, step, gin_bindings):
    return types.SimpleNamespace(
      step=3,
      model=Model(),
      needs_calibration=False,
      data_arguments={'max_len': 20},
      open_data=unreadable,
    )

  monkeypatch.setattr(loading, 'load', load)
  monkeypatch.setattr(sampling, 'sample', fake_sample)
  out = tmp_path / 'out.fasta'

  def run(**settings):
    sample.sample('run', out, **{'summary': False, **settings})
    return out

  return run


def test_a_record_says_what_was_drawn(run):
  out = run(num_samples=1, prompt=LONG, seed=4, first=17)
  header, *lines = out.read_text().splitlines()
  assert header == (
    '>sample_17 log_prob=-3.000 per_residue=-1.5000 length=81 drawn=1 '
    'ended=true seed=4'
  )
  assert [len(line) for line in lines] == [60, 21]
  assert ''.join(lines) == LONG + 'A'


def test_read_fasta_reads_what_was_written(run):
  read = proteins.read_fasta(run(num_samples=1, prompt=LONG))
  assert read.ids == ['sample_0'] and read.lengths.tolist() == [81]


def test_an_empty_sample_is_left_out_and_told(run, capsys):
  out = run(num_samples=3)
  assert [line for line in out.read_text().splitlines() if '>' in line] == [
    f'>sample_{i} log_prob=-3.000 per_residue=-1.5000 length=1 drawn=1 '
    'ended=true seed=0'
    for i in (0, 2)
  ]
  assert '1 samples ended before their first residue' in capsys.readouterr().out


def test_speed_is_told(run, capsys):
  run(num_samples=3)
  assert 'drew 6 tokens in ' in capsys.readouterr().out


def test_a_file_that_exists_is_kept(run, tmp_path):
  (tmp_path / 'out.fasta').write_text('mine')
  with pytest.raises(FileExistsError, match='--overwrite'):
    run()
  assert (tmp_path / 'out.fasta').read_text() == 'mine'
  assert run(overwrite=True).read_text().startswith('>sample_0')


def test_a_folder_that_is_missing_is_named(run, tmp_path):
  with pytest.raises(ValueError, match='does not exist; make it first'):
    sample.sample('run', tmp_path / 'no' / 'out.fasta')


def test_train_that_cannot_be_read_is_a_warning(run, capsys):
  assert run(summary=True).exists()
  assert 'not compared with train' in capsys.readouterr().out


def test_a_length_beyond_training_is_a_warning(run, capsys):
  run(max_len=21)
  assert 'warning: 21 residues are more than the 20' in capsys.readouterr().out


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'infill': 'M_', 'prompt': 'M'}, 'prompt does not go with infill'),
    ({'infill': 'M_', 'max_len': 9}, 'max_len does not go with infill'),
    ({'num_sweeps': 2}, 'num_sweeps goes with infill'),
  ],
)
def test_settings_of_the_other_kind_are_refused(run, settings, message):
  with pytest.raises(ValueError, match=message):
    run(**settings)


def test_an_interrupt_writes_nothing(run, monkeypatch, tmp_path):
  def interrupted(*args, **kwargs):
    raise KeyboardInterrupt

  monkeypatch.setattr(sampling, 'sample', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run()
  assert list(tmp_path.iterdir()) == []


class Flags(dict):
  """Flags as they are after parsing: (value, default) by name."""

  def __getattr__(self, name):
    return self[name].value


@pytest.fixture
def parsed(monkeypatch):
  """Runs _main with some flags given; returns what sample was called with."""
  called = []
  defaults = dict.fromkeys((*sample.OF_BOTH, *sample.OF_PROMPTS), None)
  defaults |= {'work_dir': '~/run', 'out': 'o.fasta', 'num_samples': 1}
  defaults |= {'infill': None, 'num_sweeps': 0, 'step': 'latest'}
  defaults |= {'gin_bindings': [], 'overwrite': False, 'summary': True}

  def run(**given):
    values = Flags(
      (name, types.SimpleNamespace(value=given.get(name, d), default=d))
      for name, d in defaults.items()
    )
    monkeypatch.setattr(sample, 'flags', types.SimpleNamespace(FLAGS=values))
    monkeypatch.setattr(compilation, 'enable_cache', lambda: None)
    monkeypatch.setattr(
      sample, 'sample', lambda *args, **kwargs: called.append((args, kwargs))
    )
    cli.exits_cleanly(sample._main)(['sample'])
    return called[-1]

  return run


def test_only_flags_that_were_given_are_settings(parsed):
  args, kwargs = parsed(step='30', top_k=5, num_samples=4)
  assert args == (os.path.expanduser('~/run'), 'o.fasta', 4)
  assert kwargs == {
    'infill': None,
    'step': 30,
    'gin_bindings': [],
    'overwrite': False,
    'summary': True,
    'top_k': 5,
  }


def test_a_step_that_is_none_is_one_line(parsed, capsys):
  with pytest.raises(SystemExit, match='1'):
    parsed(step='all')
  assert capsys.readouterr().err == (
    "error: --step is a number, latest or best, got 'all'\n"
  )
