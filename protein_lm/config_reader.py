"""Reads gin files and texts into bindings, with each name checked on the way.

gin's own parser supplies the statements; references stay as they are written,
so that nothing is looked up, imported or bound before it is checked.
"""

import dataclasses
import importlib
import os
import pathlib
import re
import tokenize
from typing import Any, NamedTuple

from gin import config_parser

from protein_lm import config_schema

MAX_ITEMS = 10_000  # of a value with its macros replaced
MAX_DEPTH = 20  # of macros that refer to macros

_PACKAGE = pathlib.Path(__file__).resolve().parent


class ConfigError(ValueError):
  """A mistake in a configuration, told in one line."""


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@name`, `@name()` or `%name` as written; it prints as it is written."""

  name: str
  is_macro: bool = False
  evaluate: bool = False

  def __repr__(self):
    if self.is_macro:
      return f'%{self.name}'
    return f'@{self.name}{"()" if self.evaluate else ""}'


class Binding(NamedTuple):
  """One binding: where it stands, what it binds (gin's full names), the value.

  The macro `SIZE = 3` is scope 'SIZE', selector 'gin.macro', arg_name 'value'.
  """

  where: str
  scope: str
  selector: str
  arg_name: str
  value: Any

  @property
  def key(self) -> tuple[str, str, str]:
    return self.scope, self.selector, self.arg_name

  @property
  def is_macro(self) -> bool:
    return self.selector == config_schema.MACRO

  def __str__(self):
    return config_schema.written(*self.key)


class _AsWritten(config_parser.ParserDelegate):
  """Keeps references as written, so that checks come before look-ups."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate=evaluate)

  def macro(self, macro_name):
    return Reference(macro_name, is_macro=True)


def find(name: str) -> pathlib.Path | None:
  """Returns the gin file of this name, None if there is none.

  Looks in the working directory, in `configs` inside the installed package, and
  in `configs` beside the package (a checkout); so `quickstart.gin` and
  `configs/quickstart.gin` are found from anywhere.
  """
  path = pathlib.Path(name)
  candidates = [path]
  if not path.is_absolute():
    tail = path
    if path.parts[:1] == ('configs',):
      tail = path.relative_to('configs')
    candidates += [folder / tail for folder in _config_folders()]
  return next((c for c in candidates if c.is_file()), None)


def _config_folders() -> list[pathlib.Path]:
  return [_PACKAGE / 'configs', _PACKAGE.parent / 'configs']


def load_file(name, where, trusted, including) -> list[Binding]:
  """Returns the bindings of a file; `where` is what names it."""
  path = find(name)
  if path is None:
    shipped = {f.name for d in _config_folders() for f in d.glob('*.gin')}
    raise ConfigError(
      f'{where}: there is no file {name!r}'
      + config_schema.did_you_mean(os.path.basename(name), shipped)
    )
  if path.resolve() in including:
    raise ConfigError(f'{where}: {name!r} includes itself')
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f'{where}: cannot read {name!r}: {error}') from error
  return load(text, str(path), trusted, (*including, path.resolve()))


def load(text, source, trusted, including, first_line=1) -> list[Binding]:
  """Returns the bindings of a text and its includes, names checked."""
  bindings, bound_at = [], {}
  for statement in statements(text, source, first_line):
    line = statement.location.line_num + first_line - 1
    where = f'{source}:{line}'
    match statement:
      case config_parser.IncludeStatement():
        if not trusted:
          raise ConfigError(f'{where}: include is refused in untrusted text')
        nested = load_file(statement.filename, where, trusted, including)
        for binding in nested:
          if binding.key in bound_at:
            raise ConfigError(
              f'{where}: this include binds {binding} again, after line '
              f'{bound_at[binding.key]}; move the include up'
            )
        bindings += nested
      case config_parser.ImportStatement():
        _import(statement, where, trusted)
      case config_parser.BlockDeclaration():
        configurable(statement.selector, where)
      case config_parser.BindingStatement():
        binding = _checked_name(statement, where)
        if binding.key in bound_at:
          raise ConfigError(
            f'{where}: {binding} is bound twice, first at line '
            f'{bound_at[binding.key]}'
          )
        bound_at[binding.key] = line
        bindings.append(binding)
  return bindings


def statements(text, source, first_line=1) -> list:
  """Returns the statements of a text, in gin's own types."""
  found = []
  try:
    parser = config_parser.ConfigParser(text, _AsWritten())
    while statement := parser.parse_statement():
      found.append(statement)
  except SyntaxError as error:
    line, message = error.lineno or 1, _syntax_message(error)
  except tokenize.TokenError as error:
    line, message = error.args[1][0], error.args[0]
    if message.startswith('EOF in multi-line'):
      message = 'a bracket or string is never closed'
  except StopIteration:
    line, message = text.count('\n') + 1, 'the text ends within a statement'
  except RecursionError:
    line, message = 1, 'values are nested too deeply'
  else:
    return found
  raise ConfigError(f'{source}:{line + first_line - 1}: {message}')


def _syntax_message(error: SyntaxError) -> str:
  token = re.search(r"Failed to parse token '(.*)'", error.msg or '')
  if not token:
    return error.msg.splitlines()[0].rstrip('.')
  word = token[1]
  if word.lower() in ('true', 'false', 'none'):
    return f'{word} is written {word.capitalize()}'
  return f'cannot read the value {word}; text is quoted, {word!r}'


def _import(statement, where, trusted) -> None:
  if not trusted:
    raise ConfigError(f'{where}: import is refused in untrusted text')
  if statement.module.split('.')[0] == '__gin__':
    raise ConfigError(
      f'{where}: dynamic registration is not supported; import a module that '
      'registers its names with @gin.configurable'
    )
  try:
    importlib.import_module(statement.module)
  except ImportError as error:
    raise ConfigError(
      f'{where}: cannot import {statement.module}: {error}'
    ) from error


def configurable(selector, where):
  """Returns gin's record of a name; refuses one that is unknown."""
  try:
    found = config_schema.lookup(selector)
  except KeyError as error:
    raise ConfigError(f'{where}: {error.args[0].rstrip(".")}') from error
  if not found:
    near = config_schema.did_you_mean(selector, config_schema.names())
    raise ConfigError(f'{where}: nothing is called {selector!r}{near}')
  return found


def _checked_name(statement, where) -> Binding:
  scope, selector, arg_name, value = statement[:4]
  if not arg_name:
    name = f'{scope}/{selector}' if scope else selector
    return Binding(where, name, config_schema.MACRO, 'value', value)
  target = configurable(selector, where)
  known, takes_any = config_schema.parameters(target.selector)
  if arg_name not in known and not takes_any:
    near = config_schema.did_you_mean(arg_name, known)
    raise ConfigError(
      f'{where}: {selector} has no parameter {arg_name!r}'
      + (near or parameter_elsewhere(arg_name))
    )
  if not config_schema.allows(target, arg_name):
    raise ConfigError(f'{where}: {selector}.{arg_name} is not for gin to bind')
  return Binding(where, scope, target.selector, arg_name, value)


def parameter_elsewhere(arg_name) -> str:
  """Returns ' (did you mean ...?)' where another name takes this parameter."""
  for name in config_schema.names():
    if arg_name in config_schema.parameters(name)[0]:
      return f' (did you mean {name + "." + arg_name!r}?)'
  return ''


def resolved(value, macros, where):
  """Returns a value with its macros replaced by theirs.

  Raises:
    ConfigError: a macro refers to itself, or the value grows beyond MAX_ITEMS.
  """
  num_items = 0

  def walk(value, names):
    nonlocal num_items
    num_items += 1
    if num_items > MAX_ITEMS or len(names) > MAX_DEPTH:
      raise ConfigError(
        f'{where}: macros within macros make this value too big'
      )
    is_macro = isinstance(value, Reference) and value.is_macro
    if not is_macro or value.name not in macros:
      return mapped(value, lambda item: walk(item, names))
    if value.name in names:
      raise ConfigError(f'{where}: {value} refers to itself')
    return walk(macros[value.name], (*names, value.name))

  return walk(value, ())


def mapped(value, function):
  """Applies a function to the items of a container, one level deep."""
  if type(value) in (list, tuple):
    return type(value)(function(item) for item in value)
  if type(value) is dict:
    return {function(key): function(item) for key, item in value.items()}
  return value


def references(value):
  """Yields the references in a value, however deep."""
  if isinstance(value, Reference):
    yield value
  elif isinstance(value, list | tuple):
    for item in value:
      yield from references(item)
  elif isinstance(value, dict):
    yield from references([*value.keys(), *value.values()])
