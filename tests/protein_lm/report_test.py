"""The page of a real, tiny run: complete, and without anything from outside."""

import re

import pytest

from protein_lm import cli, config, report
from protein_lm.experiment import run_experiment

HEADINGS = [
  'Perplexity',
  'Learning curves',
  'Where it comes from (test)',
  'Confusions',
  'Calibration',
  'Similarity of amino acids',
  'Attention maps of P',
  'Error of random features',
]


@pytest.fixture(scope='module')
def work_dir(fasta_60, tmp_path_factory):
  work_dir = tmp_path_factory.mktemp('run')
  config.register()
  config.clear()
  config.parse(
    ['tiny.gin'],
    [
      f"data.source = '{fasta_60}'",
      f"data.data_dir = '{work_dir}/data'",
      'experiment.num_train_steps = 1',
    ],
  )
  run_experiment(work_dir)
  yield work_dir
  config.clear()


@pytest.fixture(scope='module')
def page(work_dir):
  return report.write_report(work_dir).read_text()


def test_it_has_all_its_parts(page):
  found = re.findall('<h2>(.*?)</h2>', page)
  assert len(found) == len(HEADINGS)
  for heading, start in zip(found, HEADINGS, strict=True):
    assert heading.startswith(start)
  assert page.count('<img') == page.count('data:image/svg+xml') == 9


def test_nothing_is_loaded_from_elsewhere(page):
  assert not re.search(r'(src|href)="(?!data:)', page)
  assert '<script' not in page and '@import' not in page


@pytest.mark.slow
def test_another_split_and_protein_are_taken(work_dir, tmp_path):
  proteins = tmp_path / 'mine.fasta'
  proteins.write_text('>one\nMKTAYIAKQR\n>two\nMACDEFGHIKLMNP\n')
  out = report.write_report(
    work_dir, protein='one', fasta=proteins, out=tmp_path / 'a.html'
  )
  text = out.read_text()
  assert 'Attention maps of one' in text and '2 proteins' in text


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(split='tset'), "no split 'tset'"),
    (dict(protein='Q0'), "'Q0' is no id of split 'test'"),
  ],
)
def test_what_does_not_exist_is_named(work_dir, kwargs, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    report.write_report(work_dir, out=tmp_path / 'a.html', **kwargs)
  assert not list(tmp_path.iterdir())


def test_a_folder_without_checkpoint_is_one_line(tmp_path, capsys, monkeypatch):
  write = cli.exits_cleanly(lambda argv: report.write_report(tmp_path / 'none'))
  with pytest.raises(SystemExit) as exit_:
    write(['report'])
  assert exit_.value.code == 1
  assert len(capsys.readouterr().err.splitlines()) == 1
