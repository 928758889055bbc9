"""Gin configurations: find, check, bind, and say afterwards what was used.

`parse` checks every binding before anything expensive happens: each mistake is
one line, `file:line: what is wrong (did you mean ...?)`. gin itself passes over
duplicates, wrong types, misspelt scopes and unused bindings in silence.
"""

import contextlib
import copy
import importlib
import re
import textwrap

import gin
from gin import config_parser

from protein_lm import config_reader, config_schema

ConfigError = config_reader.ConfigError
find = config_reader.find

# Importing these registers every name that a gin file may mention.
MODULES = (
  'fast_attention.factories',
  'protein_lm.models',
  'protein_lm.heads',
  'protein_lm.objectives',
  'protein_lm.label_objectives',
  'protein_lm.data',
  'protein_lm.datasets.letters',
  'protein_lm.datasets.split_rule',
  'protein_lm.early_stop',
  'protein_lm.mesh',
  'protein_lm.optimizer',
  'protein_lm.train_step',
  'protein_lm.experiment',
)
MAX_UNTRUSTED_BYTES = 1 << 20  # an operative config has about 5 kB

# Names bound by the user, if anything was bound that was not; see vouches_for.
_vouched: set[str] = set()
_is_untrusted = False


def register() -> None:
  """Imports the modules that register names with gin."""
  for module in MODULES:
    importlib.import_module(module)


def parse(gin_files=(), gin_bindings=(), *, trusted: bool = True) -> None:
  """Checks gin files and bindings, then binds them on top of what is bound.

  Args:
    gin_files: names of files, later ones override earlier ones. Each is looked
      for as `find` says.
    gin_bindings: texts of one or more lines, they override the files and each
      other in order.
    trusted: False refuses import and include, see `parse_text`.

  Raises:
    ConfigError: the first mistake, before anything is bound.
  """
  bindings = []
  for name in gin_files:
    bindings += config_reader.load_file(name, '--gin_files', trusted, ())
  line = 1
  for text in gin_bindings:
    more = config_reader.load(
      textwrap.dedent(text), '--gin_bindings', trusted, (), line
    )
    _check_macros_are_used(more, bindings)
    bindings += more
    line += text.count('\n') + 1
  _check(bindings, trusted)
  _bind(bindings, trusted)


def parse_text(
  text: str, *, source: str = 'config', trusted: bool = True
) -> None:
  """Checks and binds a configuration given as a string.

  Args:
    text: statements in gin's syntax.
    source: the name that errors give the text, such as its path.
    trusted: False for a configuration found beside a checkpoint: it may hold
      literal values and references to registered names, nothing else.

  Raises:
    ConfigError: the first mistake, before anything is bound.
  """
  if not trusted and len(text) > MAX_UNTRUSTED_BYTES:
    raise ConfigError(
      f'{source}:1: {len(text)} characters, more than the '
      f'{MAX_UNTRUSTED_BYTES} a configuration may have'
    )
  bindings = config_reader.load(text, source, trusted, ())
  _check(bindings, trusted)
  _bind(bindings, trusted)


def vouches_for(name: str) -> bool:
  """Whether the user stands behind the value of a parameter.

  True, unless an untrusted configuration was bound and no trusted one has bound
  this name since. What is written to (`data.data_dir`) must be vouched for.

  Args:
    name: as written in a gin file, such as 'data.data_dir'.
  """
  return not _is_untrusted or name in _vouched


def config_str() -> str:
  """Returns everything bound, as text that `parse_text` reads."""
  return gin.config_str()


def operative() -> str:
  """Returns every value that was used, defaults too, as text.

  `parse_text(text, trusted=False)` reads it back; gin would head it with the
  imports of files that it parsed itself.
  """
  lines = gin.operative_config_str().splitlines(keepends=True)
  return ''.join(x for x in lines if not x.startswith(('import ', 'from ')))


def clear() -> None:
  """Forgets all bindings, which of them were used, and who made them."""
  global _is_untrusted
  _is_untrusted = False
  _vouched.clear()
  gin.clear_config()


@contextlib.contextmanager
def isolated():
  """Runs its body with nothing bound, then brings back what was.

  For the configuration of another run, read while this one goes on. The body
  calls nothing of this run that gin configures.
  """
  global _is_untrusted
  tables = (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG)
  tables += (gin.config._SINGLETONS, _vouched)
  kept, was_untrusted = [copy.copy(x) for x in tables], _is_untrusted
  clear()
  try:
    yield
  finally:
    clear()
    _is_untrusted = was_untrusted
    for table, content in zip(tables, kept, strict=True):
      table.update(content)


def unused_bindings() -> list[str]:
  """Returns the bindings that no call used, as written in a gin file."""
  bound, used = gin.config._CONFIG, set()
  for (scope, selector), values in gin.config._OPERATIVE_CONFIG.items():
    parts = scope.split('/') if scope else []
    for arg_name in values:
      # A call sees the binding of the innermost scope that has one.
      for end in range(len(parts), -1, -1):
        outer = '/'.join(parts[:end])
        if arg_name in bound.get((outer, selector), ()):
          used.add((outer, selector, arg_name))
          break
  return sorted(
    config_schema.written(scope, selector, arg_name)
    for (scope, selector), values in bound.items()
    for arg_name in values
    if (scope, selector, arg_name) not in used
  )


def diff(old_text: str, new_text: str, names=None) -> str:
  """Returns one line for each parameter that two configurations bind apart.

  Macros are replaced by their values, so `FlaxModel.max_len: 512 -> 1024` shows
  wherever the number was written.

  Args:
    old_text: a configuration, such as the one beside a checkpoint.
    new_text: another.
    names: only these configurables, such as ('FlaxModel', 'FlaxLM').
  """
  old, new = literals(old_text, 'old'), literals(new_text, 'new')
  lines = []
  for key in sorted(old.keys() | new.keys()):
    selector = key.rsplit('/', 1)[-1].rsplit('.', 1)[0].rsplit('.', 1)[-1]
    before, after = old.get(key, 'not set'), new.get(key, 'not set')
    if before != after and (names is None or selector in names):
      lines.append(f'{key}: {before} -> {after}')
  return '\n'.join(lines)


def literals(text: str, source: str = 'config') -> dict[str, str]:
  """Returns 'scope/name.parameter' -> value as text, macros resolved.

  Reads; nothing is looked up, imported or bound.
  """
  macros, values = {}, {}
  for statement in config_reader.statements(text, source):
    if isinstance(statement, config_parser.BindingStatement):
      scope, selector, arg_name, value = statement[:4]
      key = f'{scope}/{selector}' if scope else selector
      if arg_name:
        values[f'{key}.{arg_name}'] = value
      else:
        macros[key] = value
  return {
    key: repr(config_reader.resolved(value, macros, source))
    for key, value in values.items()
  }


def strip_gin_context(error: BaseException) -> str:
  """Returns an error's text without the calls that gin appends to it."""
  return re.sub(
    r"\n  (In call to configurable '|No values supplied by Gin or caller for "
    r'|Gin had values bound for: |Caller supplied values for: )[^\n]*',
    '',
    str(error),
  )


def _check_macros_are_used(bindings, earlier) -> None:
  """Refuses a macro on the command line that nothing refers to."""
  used = {
    reference.name
    for binding in (*earlier, *bindings)
    for reference in config_reader.references(binding.value)
    if reference.is_macro
  } | {
    '/'.join(reference.scopes)
    for reference in gin.config.iterate_references(gin.config._CONFIG)
    if reference.configurable.selector == config_schema.MACRO
  }
  for binding in bindings:
    if binding.is_macro and binding.scope not in used:
      near = config_schema.did_you_mean(binding.scope, used)
      raise ConfigError(
        f'{binding.where}: nothing uses %{binding.scope}'
        + (near or config_reader.parameter_elsewhere(binding.scope))
      )


def _check(bindings, trusted) -> None:
  """Checks references, macros, scopes and types, with all bindings known."""
  macros = {b.scope: b.value for b in bindings if b.is_macro}
  for scope, selector in gin.config._CONFIG:
    if selector == config_schema.MACRO:  # bound by an earlier parse
      macros.setdefault(scope, gin.config._CONFIG[scope, selector]['value'])
  for binding in bindings:
    for reference in config_reader.references(binding.value):
      if not reference.is_macro:
        config_reader.configurable(reference.name.split('/')[-1], binding.where)
      elif reference.name not in macros and not _is_constant(reference.name):
        near = config_schema.did_you_mean(reference.name, macros)
        raise ConfigError(f'{binding.where}: {reference} is not bound{near}')
  if trusted:
    _check_scopes(bindings)
  for binding in bindings:
    _check_value(binding, macros)
  required = config_reader.Reference('gin.REQUIRED', is_macro=True)
  for binding in {binding.key: binding for binding in bindings}.values():
    if binding.value == required:
      raise ConfigError(f'{binding.where}: {binding} must be given a value')


def _check_scopes(bindings) -> None:
  """A scope is real where a binding and a reference name it."""
  bound = {
    part: binding.where
    for binding in bindings
    if not binding.is_macro
    for part in binding.scope.split('/')
    if part
  }
  entered = {
    part: binding.where
    for binding in bindings
    for reference in config_reader.references(binding.value)
    if not reference.is_macro
    for part in reference.name.split('/')[:-1]
  }
  earlier = {
    part for scope, _ in gin.config._CONFIG for part in scope.split('/')
  } | {
    part
    for reference in gin.config.iterate_references(gin.config._CONFIG)
    for part in reference.scopes
  }
  for part, where in bound.items():
    if part not in entered and part not in earlier:
      near = config_schema.did_you_mean(part, entered)
      raise ConfigError(f'{where}: no reference enters scope {part!r}{near}')
  for part, where in entered.items():
    if part not in bound and part not in earlier:
      near = config_schema.did_you_mean(part, bound)
      raise ConfigError(f'{where}: nothing is bound in scope {part!r}{near}')


def _check_value(binding, macros) -> None:
  value = config_reader.resolved(binding.value, macros, binding.where)
  parameter = config_schema.parameters(binding.selector)[0].get(
    binding.arg_name
  )
  takes = parameter and config_schema.mismatch(value, parameter)
  if not takes:
    return
  text = repr(value)
  if text != repr(binding.value):
    text += f' (from {binding.value!r})'
  elif isinstance(value, float) and value.is_integer() and 'int' in takes:
    text += f' (write {int(value)})'
  elif isinstance(value, str):
    text += config_schema.did_you_mean(value, parameter.choices)
  raise ConfigError(f'{binding.where}: {binding} takes {takes}, not {text}')


def _is_constant(name) -> bool:
  return bool(gin.config._CONSTANTS.matching_selectors(name))


def _bind(bindings, trusted) -> None:
  global _is_untrusted
  _is_untrusted |= not trusted
  (_vouched.update if trusted else _vouched.difference_update)(
    config_schema.written(*binding.key) for binding in bindings
  )
  with gin.unlock_config():
    for binding in bindings:
      try:
        gin.bind_parameter(binding.key, _for_gin(binding.value))
      except ValueError as error:
        raise ConfigError(f'{binding.where}: {error}') from error


def _for_gin(value):
  if isinstance(value, config_reader.Reference):
    delegate = gin.config.ParserDelegate()
    if value.is_macro:
      return delegate.macro(value.name)
    return delegate.configurable_reference(value.name, value.evaluate)
  return config_reader.mapped(value, _for_gin)
