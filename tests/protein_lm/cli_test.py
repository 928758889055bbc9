"""What the user can mend is one line; what is our fault keeps its traceback."""

import gin
import pytest
from absl import flags

from protein_lm import cli, config, distributed


@gin.configurable('cli_toy', module='cli_test')
def cli_toy(width=gin.REQUIRED):
  if width < 1:
    raise ValueError(f'width must be positive,\n  got {width}')


def run(function, capsys, argv=('train',)):
  """Exit status and standard error of a binary whose main is the function."""
  with pytest.raises(SystemExit) as caught:
    cli.exits_cleanly(lambda _: function())(list(argv))
  return caught.value.code, capsys.readouterr().err


def raises(error):
  def function():
    raise error

  return function


@pytest.mark.parametrize(
  'error, text',
  [
    (ValueError('no'), 'no'),
    (config.ConfigError('a.gin:3: no'), 'a.gin:3: no'),
    (OSError('no'), 'no'),
    (FileNotFoundError(2, 'No such file', 'x'), "No such file: 'x'"),
    (FloatingPointError('diverged'), 'diverged'),
  ],
)
def test_user_error_is_one_line(error, text, capsys):
  assert run(raises(error), capsys) == (1, f'error: {text}\n')


def test_gin_context_is_stripped(capsys):
  assert run(lambda: cli_toy(0), capsys) == (
    1,
    'error: width must be positive, got 0\n',
  )


def test_missing_required_value_is_one_line(capsys):
  code, text = run(cli_toy, capsys)
  assert code == 1
  assert text == (
    "error: Required bindings for `cli_toy` not provided in config: ['width']\n"
  )


def test_positional_argument_is_one_line(capsys):
  assert run(lambda: 0, capsys, ['train', 'work_dir=x']) == (
    1,
    "error: 'work_dir=x' is no flag: flags begin with --\n",
  )


@pytest.mark.parametrize('error', [TypeError, AttributeError, KeyError])
def test_programming_error_keeps_its_traceback(error):
  with pytest.raises(error):
    cli.exits_cleanly(lambda _: raises(error('bug'))())(['train'])


def test_debug_variable_keeps_the_traceback(monkeypatch):
  monkeypatch.setenv(cli.DEBUG_VARIABLE, '1')
  with pytest.raises(ValueError):
    cli.exits_cleanly(lambda _: raises(ValueError('no'))())(['train'])


def test_interrupt_exits_quietly(capsys):
  assert run(raises(KeyboardInterrupt()), capsys) == (130, '')


def test_result_of_main_is_returned():
  assert cli.exits_cleanly(lambda argv: len(argv))(['train']) == 1


@pytest.mark.parametrize(
  'define, name',
  [
    (cli.define_gin_flags, 'gin_files'),
    (distributed.define_flags, 'process_id'),
  ],
)
def test_shared_flags_stand_in_the_help_of_the_binary(define, name):
  values = flags.FlagValues()
  define(values)
  shown = values.get_key_flags_for_module(__name__)
  assert name in [flag.name for flag in shown]


@pytest.mark.parametrize(
  'text, step', [('latest', 'latest'), ('best', 'best'), ('120', 120)]
)
def test_a_step_is_a_word_or_a_number(text, step):
  assert cli.parse_step(text) == step


@pytest.mark.parametrize('text', ['lates', '-1', '1.5', ''])
def test_no_step_names_its_flag(text):
  with pytest.raises(ValueError, match='--step_b is a number, latest or best'):
    cli.parse_step(text, 'step_b')


def test_gin_flags_repeat_and_files_split_at_commas(monkeypatch):
  values = flags.FlagValues()
  cli.define_gin_flags(values)
  values(
    ['train', '--gin_files=a.gin, b.gin', '--gin_files=c.gin']
    + ['--gin_bindings=x.y = (1, 2)\nx.z = 3', '--gin_bindings=x.w = 4']
  )
  parsed = []
  monkeypatch.setattr(config, 'register', lambda: None)
  monkeypatch.setattr(config, 'parse', lambda *args: parsed.extend(args))
  cli.parse_gin_flags(values)
  assert parsed == [
    ['a.gin', 'b.gin', 'c.gin'],
    ['x.y = (1, 2)\nx.z = 3', 'x.w = 4'],
  ]
