"""What gin may bind: registered names, their parameters, and their types.

Nothing here reads a file: `config.py` does, and asks these functions whether a
name exists, which parameters it takes, and whether a value fits.
"""

import collections.abc
import difflib
import inspect
import types
import typing
from typing import Any, NamedTuple

import gin

MACRO = 'gin.macro'  # NAME = value is NAME/gin.macro.value = value

# gin lists its registered names nowhere public; this is its table of them.
_REGISTRY = gin.config._REGISTRY
_PLAIN_TYPES = (bool, int, float, str, tuple, list, dict)
_PHRASES = {
  bool: 'True or False',
  int: 'an int',
  float: 'a float',
  str: 'a quoted string',
  tuple: 'a tuple',
  list: 'a list',
  dict: 'a dict',
  type(None): 'None',
}


class Parameter(NamedTuple):
  """What one parameter takes: its annotation, and its default if it has one."""

  annotation: Any
  default: Any

  @property
  def choices(self) -> list[str]:
    """The words it takes, where its annotation lists them."""
    options = typing.get_args(self.annotation)
    if _is_union(self.annotation):
      options = [word for arg in options for word in typing.get_args(arg)]
    return [word for word in options if isinstance(word, str)]


def lookup(selector: str):
  """Returns gin's record of a configurable, None if there is none.

  Raises:
    KeyError: the selector matches several.
  """
  return _REGISTRY.get_match(selector)


def short_name(selector: str) -> str:
  """Returns the shortest form of a full selector that is not ambiguous."""
  return _REGISTRY.minimal_selector(selector)


def written(scope: str, selector: str, arg_name: str) -> str:
  """Returns a parameter or macro as a gin file writes it."""
  if selector == MACRO:
    return scope
  name = f'{short_name(selector)}.{arg_name}'
  return f'{scope}/{name}' if scope else name


def names() -> list[str]:
  """Returns the short names of everything registered, gin's own left out."""
  return [
    short_name(selector)
    for selector, _ in _REGISTRY.items()
    if not selector.startswith('gin.')
  ]


def did_you_mean(name: str, candidates) -> str:
  """Returns ' (did you mean "x"?)' for the nearest candidate, or nothing."""
  by_lower = {candidate.lower(): candidate for candidate in candidates}
  near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
  return f' (did you mean {by_lower[near[0]]!r}?)' if near else ''


def parameters(selector: str) -> tuple[dict[str, Parameter], bool]:
  """Returns the parameters of a name, and whether it takes any other.

  A class whose `__init__` hands `**kwargs` to its base takes what the base
  takes, so the bases are read until one of them closes the list.
  """
  target = lookup(selector).wrapped
  functions = [target]
  if inspect.isclass(target):
    functions = [
      cls.__dict__.get('__init__', cls.__dict__.get('__new__'))
      for cls in target.__mro__[:-1]
      if '__init__' in cls.__dict__ or '__new__' in cls.__dict__
    ]
  found = {}
  for function in functions:
    try:
      signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
      return found, True
    hints = _type_hints(function)
    kinds = set()
    for name, parameter in signature.parameters.items():
      kinds.add(parameter.kind)
      if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        continue
      if name in ('self', 'cls'):
        continue
      annotation = hints.get(name, parameter.annotation)
      found.setdefault(name, Parameter(annotation, parameter.default))
    if inspect.Parameter.VAR_KEYWORD not in kinds:
      return found, False
  return found, bool(functions)


def allows(configurable, arg_name: str) -> bool:
  """Whether the configurable's allow and deny lists let gin bind a name."""
  if configurable.allowlist:
    return arg_name in configurable.allowlist
  return arg_name not in (configurable.denylist or ())


def mismatch(value, parameter: Parameter) -> str | None:
  """Returns what the parameter takes if the value does not fit, else None.

  Args:
    value: a literal; whatever is no plain Python literal fits everything.
    parameter: from `parameters`. Its annotation decides, or the type of its
      default where there is none; what neither explains fits.
  """
  annotation, default = parameter
  if type(value) is type(default) and value == default:
    return None
  if annotation is inspect.Parameter.empty or isinstance(annotation, str):
    annotation = type(default) if type(default) in _PLAIN_TYPES else Any
  if _fits(value, annotation):
    return None
  return _phrase(annotation)


def _type_hints(function) -> dict[str, Any]:
  try:
    return typing.get_type_hints(inspect.unwrap(function))
  except (AttributeError, NameError, SyntaxError, TypeError):
    return {}  # annotations that only a type checker can resolve


def _is_union(annotation) -> bool:
  return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_literal(value) -> bool:
  return value is None or type(value) in _PLAIN_TYPES


def _fits(value, annotation) -> bool:
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if not _is_literal(value):
    return True
  if _is_union(annotation):
    return any(_fits(value, arg) for arg in args)
  if origin is typing.Annotated:
    return _fits(value, args[0])
  if origin is typing.Literal:
    return any(type(value) is type(arg) and value == arg for arg in args)
  if annotation is None:
    return value is None
  kind = origin or annotation
  if kind is collections.abc.Callable:
    return False
  if kind is float:
    return type(value) in (int, float)
  if kind in (bool, int, str, dict, type(None)):
    return type(value) is kind
  if kind is collections.abc.Mapping:
    return isinstance(value, dict)
  if kind in (tuple, list, collections.abc.Sequence):
    if not isinstance(value, tuple | list):
      return False
    every = (
      args[0] if args and (kind is not tuple or args[1:] == (...,)) else Any
    )
    return all(_fits(item, every) for item in value)
  return True


def _phrase(annotation) -> str:
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if _is_union(annotation):
    return ' or '.join(_phrase(arg) for arg in args)
  if origin is typing.Annotated:
    return _phrase(args[0])
  if origin is typing.Literal:
    return ' or '.join(repr(arg) for arg in args)
  kind = origin or annotation
  if kind is collections.abc.Callable:
    return 'a reference such as @name()'
  if kind is collections.abc.Sequence:
    kind = tuple
  if kind in (tuple, list) and args and _phrase(args[0]).startswith('a ref'):
    return 'a tuple of them'
  return _PHRASES.get(kind, str(getattr(kind, '__name__', kind)))
