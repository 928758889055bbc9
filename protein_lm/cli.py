"""What the binaries share: gin flags, and errors that are one line.

A binary is

    def main(argv): ...

    if __name__ == '__main__':
      cli.define_gin_flags()
      cli.run(main)
"""

import functools
import os
import sys

from absl import app, flags, logging

from protein_lm import config

# What is defined here is a flag of the binary, and stands in its --help.
flags.disclaim_key_flags()

DEBUG_VARIABLE = 'PROTEIN_LM_DEBUG'
_INTERRUPTED = 130  # exit code


def define_gin_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines --gin_files and --gin_bindings, both repeatable."""
  flags.DEFINE_multi_string(
    'gin_files',
    [],
    'gin files, comma separated; later ones override earlier ones. Looked for '
    'in the working directory, then among the shipped configs.',
    flag_values=flag_values,
  )
  flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    'Bindings that override the files, such as "FlaxModel.num_layers = 4"; one '
    'or several lines.',
    flag_values=flag_values,
  )


def define_model_flags(
  step: str = 'A number, latest or best.', is_required: bool = True
) -> None:
  """Defines the flags that choose a trained model: run, step and bindings.

  Args:
    step: help of --step.
    is_required: whether --work_dir is.
  """
  flags.DEFINE_string(
    'work_dir', None, 'Folder of the run.', required=is_required
  )
  flags.DEFINE_string('step', 'latest', step)
  flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    "Bindings on top of the run's, such as "
    '"FlaxModel.attention_fn = @exact_attention()".',
  )


def parse_step(text: str, flag: str = 'step') -> int | str:
  """What --step says of one checkpoint: a number, 'latest' or 'best'.

  Raises:
    ValueError: it is none of these; names the flag.
  """
  if text in ('latest', 'best'):
    return text
  if not text.isdecimal():
    raise ValueError(f'--{flag} is a number, latest or best, got {text!r}')
  return int(text)


def parse_gin_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Registers all names, then checks and binds what the gin flags say.

  Raises:
    config.ConfigError: the first mistake, one line.
  """
  config.register()
  names = ','.join(flag_values.gin_files).split(',')
  config.parse(
    [name.strip() for name in names if name.strip()], flag_values.gin_bindings
  )


def run(main, takes_arguments: bool = False) -> None:
  """Parses the flags, runs main(argv) and exits as `exits_cleanly` says."""
  if 'debug' not in flags.FLAGS:
    flags.DEFINE_bool('debug', False, 'Show the traceback of every error.')
  try:
    app.run(exits_cleanly(main, takes_arguments))
  except SystemExit as exit_:
    if exit_.code == _INTERRUPTED and 'jax' in sys.modules:
      # What JAX still computes can crash an interpreter that is going away.
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(_INTERRUPTED)
    raise


def exits_cleanly(main, takes_arguments: bool = False):
  """Wraps main(argv): what the user can mend is told in one line.

  Those errors print `error: ...` and exit 1; --debug or PROTEIN_LM_DEBUG=1
  shows the traceback instead. Any other error is ours and keeps its traceback.
  An interrupt exits 130, a closed pipe 141, both without a word. What is no
  flag is an error, unless main takes_arguments.
  """

  @functools.wraps(main)
  def wrapped(argv):
    logging.set_verbosity(logging.WARNING)
    try:
      if argv[1:] and not takes_arguments:
        raise ValueError(f'{argv[1]!r} is no flag: flags begin with --')
      return main(argv)
    except KeyboardInterrupt:
      sys.exit(_INTERRUPTED)
    except BrokenPipeError:
      # Whoever read our output left; keep the interpreter from flushing to it.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(141)
    except Exception as error:
      if _debug() or not _is_for_user(error):
        raise
      print(f'error: {_one_line(error)}', file=sys.stderr)
      sys.exit(1)

  return wrapped


def _is_for_user(error: Exception) -> bool:
  """Wrong values, files, diverged runs, errors that this package named."""
  return (
    isinstance(error, ValueError | OSError | FloatingPointError)
    or type(error).__module__.split('.')[0] in ('protein_lm', 'fast_attention')
    # A RuntimeError is how gin says that a value is missing.
    or str(error).startswith('Required bindings for ')
  )


def _one_line(error: Exception) -> str:
  text = config.strip_gin_context(error)
  if isinstance(error, OSError) and error.strerror and error.filename:
    text = f'{error.strerror}: {error.filename!r}'
  return ' '.join(text.split())


def _debug() -> bool:
  if os.environ.get(DEBUG_VARIABLE, '0') not in ('', '0'):
    return True
  known = 'debug' in flags.FLAGS and flags.FLAGS.is_parsed()
  return bool(known and flags.FLAGS.debug)
