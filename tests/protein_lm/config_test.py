"""Each mistake in a configuration is one line; what is right is bound."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import gin
import pytest

from protein_lm import config


@gin.configurable('toy_model', module='config_test')
class ToyModel:
  def __init__(
    self,
    width=8,
    rate=0.1,
    name: Literal['learned', 'rotary'] = 'learned',
    clip=None,
    tied=False,
    attention: Callable | Sequence[Callable] | None = None,
    *,
    limit: float | None = None,
  ):
    self.width, self.rate, self.name, self.clip = width, rate, name, clip
    self.tied, self.attention, self.limit = tied, attention, limit


@gin.configurable('ToyLM', module='config_test')
class ToyLM(ToyModel):
  pass


@gin.configurable('ToyBERT', module='config_test')
class ToyBERT(ToyModel):
  def __init__(self, *args, depth=2, **kwargs):
    super().__init__(*args, **kwargs)
    self.depth = depth


@gin.configurable('toy_attention', module='config_test')
def toy_attention(features=4, kernel='relu'):
  return lambda: (features, kernel)


@pytest.fixture(autouse=True)
def clean():
  config.clear()
  yield
  config.clear()


@pytest.fixture
def write(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return lambda name, text: (tmp_path / name).write_text(text)


def message(*args, **kwargs):
  """The one line that parsing this text fails with."""
  with pytest.raises(config.ConfigError) as caught:
    config.parse_text(*args, **kwargs)
  assert '\n' not in str(caught.value)
  return str(caught.value)


UNKNOWN = [
  # text, what is wrong, the nearest name
  ('toy_modle.width = 3', "1: nothing is called 'toy_modle'", 'toy_model'),
  ('\ntoylm:\n  width = 3', "2: nothing is called 'toylm'", 'ToyLM'),
  ('toy_model.widht = 3', "1: toy_model has no parameter 'widht'", 'width'),
  ('ToyBERT.dpeth = 3', "1: ToyBERT has no parameter 'dpeth'", 'depth'),
  ('ToyBERT.wdith = 3', "1: ToyBERT has no parameter 'wdith'", 'width'),
  (
    'ToyLM.features = 3',
    "1: ToyLM has no parameter 'features'",
    'toy_attention.features',
  ),
  (
    'toy_model.attention = @toy_atention()',
    "1: nothing is called 'toy_atention'",
    'toy_attention',
  ),
  ('SIZE = 3\ntoy_model.width = %SISE', '2: %SISE is not bound', 'SIZE'),
  (
    'big/ToyLM.width = 3\ntoy_model.attention = @bgi/ToyLM()',
    "1: no reference enters scope 'big'",
    'bgi',
  ),
]


@pytest.mark.parametrize('text, wrong, nearest', UNKNOWN)
def test_unknown_name_is_one_line_with_the_nearest(text, wrong, nearest):
  assert message(text, source='x.gin') == (
    f'x.gin:{wrong} (did you mean {nearest!r}?)'
  )


@pytest.mark.parametrize(
  'text, wrong',
  [
    (
      'toy_model.width = 3\ntoy_model:\n  width = 4',
      '3: toy_model.width is bound twice, first at line 1',
    ),
    ('SIZE = 3\nSIZE = 4', '2: SIZE is bound twice, first at line 1'),
    ('A = %B\nB = %A', '1: %B refers to itself'),
    ('ToyLM.width = %gin.REQUIRED', '1: ToyLM.width must be given a value'),
    ('toy_model.width = 8 8', '1: Expected newline'),
    ('ToyLM.clip = (\n  1,\n', '3: a bracket or string is never closed'),
    (
      'ToyLM.name = rotary',
      "1: cannot read the value rotary; text is quoted, 'rotary'",
    ),
    ('toy_model.tied = true', '1: true is written True'),
    ("include 'zzz.gin'", "1: there is no file 'zzz.gin'"),
    (
      'import nowhere',
      "1: cannot import nowhere: No module named 'nowhere'",
    ),
    (
      'from __gin__ import dynamic_registration',
      '1: dynamic registration is not supported; import a module that '
      'registers its names with @gin.configurable',
    ),
    ('a/ToyLM.width = 3', "1: no reference enters scope 'a'"),
    ('ToyLM.clip = @a/ToyLM()', "1: nothing is bound in scope 'a'"),
  ],
)
def test_mistake_is_one_line(text, wrong):
  assert message(text, source='x.gin') == f'x.gin:{wrong}'


@pytest.mark.parametrize(
  'binding, takes',
  [
    ("toy_model.width = '3'", "an int, not '3'"),
    ('toy_model.width = 3.5', 'an int, not 3.5'),
    ('toy_model.width = 1e3', 'an int, not 1000.0 (write 1000)'),
    ('toy_model.width = True', 'an int, not True'),
    ('toy_model.width = None', 'an int, not None'),
    ("toy_model.rate = 'high'", "a float, not 'high'"),
    ('toy_model.tied = 1', 'True or False, not 1'),
    ("toy_model.limit = 'no'", "a float or None, not 'no'"),
    (
      "toy_model.name = 'rotory'",
      "'learned' or 'rotary', not 'rotory' (did you mean 'rotary'?)",
    ),
    (
      "toy_model.attention = 'exact'",
      "a reference such as @name() or a tuple of them or None, not 'exact'",
    ),
    ("SIZE = '3'\ntoy_model.width = %SIZE", "an int, not '3' (from %SIZE)"),
  ],
)
def test_wrong_type_is_refused(binding, takes):
  assert message(binding).endswith(f' takes {takes}')


@pytest.mark.parametrize(
  'text',
  [
    'toy_model.rate = 1',
    'toy_model.limit = 1',
    'toy_model.limit = None',
    'toy_model.clip = None',
    'toy_model.clip = 0.5',
    'toy_model.attention = @toy_attention()',
    'toy_model.attention = (@toy_attention(), @toy_attention)',
    'config_test.toy_model.width = 3',
    'SIZE = %OTHER\nOTHER = 3\ntoy_model.width = %SIZE',
    'a/toy_attention.features = 3\ntoy_model.attention = @a/toy_attention()',
    'ToyLM.width = 3\nToyBERT.width = 4\nToyBERT.depth = 5',
    'toy_model.rate = %RATE\nRATE = -1e-3  # a comment',
  ],
)
def test_valid_text_is_accepted(text):
  config.parse_text(text)


def test_bindings_reach_a_subclass_unless_it_has_its_own():
  config.parse_text('toy_model:\n  width = 3\n  rate = 1\nToyLM.width = 5')
  assert (ToyLM().width, ToyLM().rate, ToyBERT().width) == (5, 1, 3)


def test_nothing_is_bound_if_anything_is_wrong():
  message('toy_model.width = 3\ntoy_model.rate = True')
  assert ToyModel().width == 8


def test_bindings_override_files_and_files_their_includes(write):
  write('a.gin', 'toy_model:\n  width = 1\n  rate = 0.1\n  clip = 1.0\n')
  write('b.gin', "include 'a.gin'\ntoy_model:\n  rate = 0.2\n  clip = 2.0\n")
  config.parse(['b.gin'], ['  toy_model.clip = 3.0\n  ToyLM.tied = True'])
  model = ToyLM()
  assert (model.width, model.rate, model.clip, model.tied) == (1, 0.2, 3, True)


def test_include_after_a_binding_it_overrides_is_refused(write):
  write('a.gin', 'toy_model.width = 1\n')
  assert message("toy_model.width = 2\ninclude 'a.gin'", source='b.gin') == (
    'b.gin:2: this include binds toy_model.width again, after line 1; '
    'move the include up'
  )


def test_mistake_in_an_include_names_the_included_file(write):
  write('a.gin', '\n\ntoy_model.widht = 1\n')
  assert message("include 'a.gin'").startswith('a.gin:3: toy_model has no ')


def test_file_that_includes_itself_is_refused(write):
  write('a.gin', "include 'a.gin'\n")
  assert message("include 'a.gin'") == "a.gin:1: 'a.gin' includes itself"


@pytest.mark.parametrize(
  'bindings, expected',
  [
    (
      ['ToyLM.width = 1', 'ToyLM.wdth = 2'],
      "2: ToyLM has no parameter 'wdth' (did you mean 'width'?)",
    ),
    (
      ['\nToyLM.width = 1\nToyLM.width = 2'],
      '3: ToyLM.width is bound twice, first at line 2',
    ),
    (['SISE = 3'], "1: nothing uses %SISE (did you mean 'SIZE'?)"),
    (
      ['depth = 3'],
      "1: nothing uses %depth (did you mean 'ToyBERT.depth'?)",
    ),
  ],
)
def test_mistake_on_the_command_line(bindings, expected, write):
  write('a.gin', 'SIZE = 2\ntoy_model.width = %SIZE\n')
  with pytest.raises(config.ConfigError) as caught:
    config.parse(['a.gin'], bindings)
  assert str(caught.value) == f'--gin_bindings:{expected}'


def test_later_binding_on_the_command_line_wins():
  config.parse([], ['toy_model.width = 1', 'toy_model.width = 2'])
  assert ToyModel().width == 2


def test_command_line_binds_a_macro_of_an_earlier_parse():
  config.parse_text('SIZE = 2\ntoy_model.width = %SIZE')
  config.parse([], ['SIZE = 3'])
  assert ToyModel().width == 3


def test_missing_file_names_the_nearest_shipped_one():
  with pytest.raises(config.ConfigError, match="did you mean 'quickstart.gin'"):
    config.parse(['configs/quikstart.gin'])


@pytest.mark.parametrize('name', ['quickstart.gin', 'configs/quickstart.gin'])
def test_shipped_config_is_found_from_anywhere(name, write):
  assert config.find(name).name == 'quickstart.gin'


def test_working_directory_comes_first(write):
  write('quickstart.gin', '')
  assert str(config.find('quickstart.gin')) == 'quickstart.gin'


@pytest.mark.parametrize(
  'text, expected',
  [
    ('import os', 'config:1: import is refused in untrusted text'),
    ('from os import path', 'config:1: import is refused in untrusted text'),
    (
      'from __gin__ import dynamic_registration',
      'config:1: import is refused in untrusted text',
    ),
    ("include '/etc/passwd'", 'config:1: include is refused in untrusted text'),
    (
      'toy_model.clip = @os.system()',
      "config:1: nothing is called 'os.system'",
    ),
    ('ToyLM.clip = ' + '[' * 5000, 'config:1: values are nested too deeply'),
    (
      '#' * (1 << 21),
      'config:1: 2097152 characters, more than the 1048576 a configuration may '
      'have',
    ),
  ],
)
def test_untrusted_text_is_refused(text, expected):
  assert message(text, trusted=False) == expected


def test_macros_that_multiply_are_refused():
  text = 'A0 = [1, 1]\n' + '\n'.join(
    f'A{i + 1} = [%A{i}, %A{i}]' for i in range(19)
  )
  assert message(text, trusted=False).endswith(
    'macros within macros make this value too big'
  )


GARBAGE = r"""
$ | a | = | x.y = | x: | ( | " | x.y = {1 | @ | \ | x.y = @a( | include | import
| ü.y = 1 | x.y = 1e | x.y = 'a | x.y = -@a | /x.y = 1 | a//x.y = 1 | %x = 1
""".strip().split(' | ')


@pytest.mark.parametrize(
  'text', [*GARBAGE, '\0', 'x:\n', 'x.y = 1\n z', 'x.' * 9000 + 'z = 1']
)
def test_garbage_is_a_config_error(text):
  assert message(text, trusted=False).startswith('config:')


def test_operative_text_reads_back_untrusted():
  config.parse_text(
    'SIZE = 3\ntoy_model.width = %SIZE\nwide/toy_attention.features = 9\n'
    'toy_model.attention = (@toy_attention(), @wide/toy_attention())\n'
  )
  ToyLM()
  text = config.operative()
  config.clear()
  config.parse_text(text, trusted=False)
  model = ToyLM()
  assert model.width == 3
  assert [fn() for fn in model.attention] == [(4, 'relu'), (9, 'relu')]
  assert config.operative() == text


def test_unused_bindings_are_those_no_call_used():
  config.parse_text(
    'SIZE = 3\nUNUSED = 4\ntoy_model.width = %SIZE\ntoy_model.rate = 1\n'
    'toy_attention.kernel = "elu"\nwide/toy_attention.features = 9\n'
    'toy_attention.features = 5\ntoy_model.attention = @wide/toy_attention()\n'
    'ToyBERT.depth = 3\n'
  )
  ToyLM(rate=2)
  assert config.unused_bindings() == [
    'ToyBERT.depth',
    'UNUSED',
    'toy_attention.features',
    'toy_model.rate',
  ]


def test_diff_shows_values_behind_macros_of_the_named_configurables():
  old = 'SIZE = 3\ntoy_model.width = %SIZE\ntoy_model.rate = 1\nother.x = 1'
  new = 'N = 4\ntoy_model:\n  width = %N\n  rate = 1\n  name = "a"\nother.x = 2'
  assert config.diff(old, new, names=('toy_model',)) == (
    "toy_model.name: not set -> 'a'\ntoy_model.width: 3 -> 4"
  )


def test_diff_of_equal_configurations_is_empty():
  text = 'toy_model.attention = (@a(), @s/b)'
  assert config.diff(text, text + '  # same') == ''


def test_gin_context_is_stripped():
  @gin.configurable(module='config_test')
  def outer():
    inner()

  @gin.configurable(module='config_test')
  def inner():
    raise ValueError('width must be positive')

  with pytest.raises(ValueError) as caught:
    outer()
  assert 'In call to configurable' in str(caught.value)
  assert config.strip_gin_context(caught.value) == 'width must be positive'


def test_misspelt_binding_ends_training_within_six_seconds(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  start = time.monotonic()
  run = subprocess.run(
    [sys.executable, '-m', 'protein_lm.train', '--work_dir=run']
    + ['--gin_files=tiny.gin', '--gin_bindings=FlaxModel.emb_dmi = 3'],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(root)},
    capture_output=True,
    text=True,
  )
  assert time.monotonic() - start < 6
  assert (run.returncode, run.stderr) == (
    1,
    "error: --gin_bindings:1: FlaxModel has no parameter 'emb_dmi' "
    "(did you mean 'emb_dim'?)\n",
  )
  assert not (tmp_path / 'run').exists()


def test_an_isolated_configuration_leaves_no_trace():
  config.register()
  config.clear()
  config.parse([], ["data.data_dir = 'mine'", 'FlaxModel.num_layers = 3'])
  text = config.config_str()
  for _ in range(2):
    with config.isolated():
      assert config.config_str().strip() == ''
      config.parse_text("data.data_dir = 'theirs'", trusted=False)
      assert not config.vouches_for('data.data_dir')
    assert config.config_str() == text
    assert config.vouches_for('data.data_dir')
  config.clear()
