"""Every shipped gin file is a lab note that parses; every run uses it all."""

import itertools
import pathlib
import re

import gin
import pytest

from protein_lm import config, models, prepare, train_step

FOLDER = pathlib.Path(__file__).parent.parent / 'configs'
FILES = sorted(path.name for path in FOLDER.glob('*.gin'))
RUNS = [
  name for name in FILES if 'num_train_steps = ' in (FOLDER / name).read_text()
]
SIZES = [name for name in FILES if name.startswith('model_')]


class DataWanted(Exception):
  """Raised in place of preparing data: by then all else has been built."""


@pytest.fixture(autouse=True)
def clean():
  config.register()
  config.clear()
  yield
  config.clear()


def unused(names, tmp_path, monkeypatch):
  """The bindings of these files that a run does not use."""

  def want_data(*args, **kwargs):
    raise DataWanted

  monkeypatch.setattr(prepare, 'prepare', want_data)
  config.parse(names)
  from protein_lm.experiment import run_experiment

  with pytest.raises(DataWanted):
    run_experiment(str(tmp_path), dry_run=True)
  return config.unused_bindings()


@pytest.mark.parametrize('name', FILES)
def test_config_opens_as_a_lab_note(name):
  text = (FOLDER / name).read_text()
  note = list(itertools.takewhile(lambda x: x[:1] == '#', text.splitlines()))
  starts = [line[2:].split(' ')[0] for line in note]
  assert 'Command' in starts and 'Expect' in starts
  assert name not in RUNS or 'Hardware' in starts


@pytest.mark.parametrize('name', FILES)
def test_config_fits_a_screen(name):
  lines = (FOLDER / name).read_text().splitlines()
  assert len(lines) <= 40
  assert max(map(len, lines)) <= 80


@pytest.mark.parametrize('name', FILES)
def test_config_parses(name):
  config.parse([name])


@pytest.mark.parametrize('name', RUNS)
def test_run_uses_every_binding(name, tmp_path, monkeypatch):
  assert unused([name], tmp_path, monkeypatch) == []


@pytest.mark.parametrize('name', RUNS)
def test_operative_config_of_a_run_reads_back(name, tmp_path, monkeypatch):
  unused([name], tmp_path, monkeypatch)
  text = config.operative()
  config.clear()
  config.parse_text(text, trusted=False)
  assert config.diff(text, config.config_str()) == ''


@pytest.mark.parametrize(
  'swap',
  [name for name in FILES if name.startswith(('objective', 'attention'))],
)
def test_swapped_in_file_is_used(swap, tmp_path, monkeypatch):
  config.parse([swap])
  mine = set(config.config_str().splitlines())
  config.clear()
  left = unused(['quickstart.gin', swap], tmp_path, monkeypatch)
  assert not [line for line in mine if line.split(' = ')[0] in left]


@pytest.mark.parametrize('name', SIZES)
def test_model_has_the_size_its_note_says(name):
  text = (FOLDER / name).read_text()
  millions = float(re.search(r'([\d.]+) million parameters', text)[1])
  objective = 'masked' if 'token_dropout = True' in text else 'causal'
  config.parse(['base.gin', name, f'objective_{objective}.gin'])
  model_cls = gin.query_parameter('experiment.model_cls').configurable.wrapper
  _, params = train_step.abstract_model(model_cls)
  assert models.num_params(params) == pytest.approx(millions * 1e6, rel=0.1)


def test_hybrid_of_attentions_is_one_binding():
  binding = (
    'FlaxModel.attention_fn = '
    '(@exact_attention(), @make_fast_softmax_attention())'
  )
  config.parse(['quickstart.gin'], [binding])
  _, params = train_step.abstract_model(models.FlaxLM)
  assert models.num_params(params)
