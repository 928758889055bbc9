"""What the README says runs: its files, gin lines, flags and Python."""

import pathlib
import re

import numpy as np
import pytest

import protein_lm
from protein_lm import config
from protein_lm.experiment import run_experiment

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


@pytest.fixture(autouse=True)
def _clear_gin():
  config.register()
  config.clear()
  yield
  config.clear()


def test_it_is_at_most_200_lines():
  assert len(README.splitlines()) <= 200


def test_files_it_names_exist():
  names = re.findall(r'(?:configs|scripts|protein_lm|tests)/[\w/.]+', README)
  assert len(names) > 10
  for name in names:
    assert (ROOT / name.rstrip('.')).exists(), name


def test_links_lead_to_files():
  for target in re.findall(r'\]\(([^)h][^)]*)\)', README):
    assert (ROOT / target).exists(), target


def test_gin_lines_parse():
  found = re.findall(r'"(\w+\.\w+ = [^"]+)"', README)
  found += re.findall(r'^    (\w+\.\w+ = .+(?:\n {8}.+)*)$', README, re.M)
  assert len(found) >= 9
  for line in found:
    config.clear()
    config.parse((), [line])


def test_commands_name_flags_that_exist():
  sources = ''.join(
    path.read_text() for path in (ROOT / 'protein_lm').glob('*.py')
  )
  for flag in set(re.findall(r' --(\w+)', README)) - {'all'}:
    assert f"'{flag}'" in sources, flag


def test_the_python_block_runs(tmp_path, monkeypatch):
  generator = np.random.default_rng(0)
  with (tmp_path / 'my.fasta').open('w') as file:
    for i in range(30):
      letters = generator.choice(list('ACDEFGHIKLMNPQRSTVWY'), 40)
      file.write(f'>P{i}\n{"".join(letters)}\n')
  monkeypatch.chdir(tmp_path)
  bindings = ["data.source = 'my.fasta'", 'experiment.num_train_steps = 1']
  config.parse(['tiny.gin'], bindings)
  run_experiment('runs/a')
  block = re.search('```python\n(.*?)```', README, re.S)[1]
  names = {}
  exec(block, names)
  assert names['logits'].shape == (1, 22, 29)
  assert names['protein_lm'] is protein_lm
