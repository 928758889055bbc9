"""What setup.cfg promises: commands, packages, files, locked dependencies."""

import ast
import configparser
import fnmatch
import importlib
import inspect
import pathlib
import pkgutil
import re
import sys

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ('fast_attention', 'protein_lm')


def read_setup():
  setup = configparser.ConfigParser(delimiters=('=',))
  setup.read(ROOT / 'setup.cfg')
  return setup


def items(text):
  """The lines of a multi-line value, without comments."""
  lines = (line.strip() for line in text.splitlines())
  return [line for line in lines if line and not line.startswith('#')]


SETUP = read_setup()
SOURCES = [path for name in PACKAGES for path in (ROOT / name).rglob('*.py')]


def normal(name):
  return re.sub('[-_.]+', '-', name).lower()


def locked():
  lines = items((ROOT / 'requirements.lock').read_text())
  return {normal(n): v for n, v in (line.split('==') for line in lines)}


@pytest.mark.parametrize(
  'line', items(SETUP['options.entry_points']['console_scripts'])
)
def test_command_is_a_function_without_arguments(line):
  module, _, name = line.partition('=')[2].strip().partition(':')
  inspect.signature(getattr(importlib.import_module(module), name)).bind()


@pytest.mark.parametrize(
  'requirement',
  items(SETUP['options']['install_requires'])
  + items(SETUP['options.extras_require']['quickstart'])
  + items(SETUP['options.extras_require']['dev']),
)
def test_lock_has_a_version_in_range(requirement):
  wanted = Requirement(requirement)
  assert locked()[normal(wanted.name)] in wanted.specifier


def test_dev_holds_quickstart():
  extras = SETUP['options.extras_require']
  assert set(items(extras['quickstart'])) <= set(items(extras['dev']))


def test_every_package_is_listed():
  found = {
    '.'.join(path.parent.relative_to(ROOT).parts)
    for path in SOURCES
    if path.name == '__init__.py'
  }
  listed = set(items(SETUP['options']['packages']))
  assert listed == found | {'protein_lm.configs'}


def test_every_data_file_is_listed():
  """A wheel has the gin files, the tables and the README files."""
  for package, globs in SETUP['options.package_data'].items():
    folder = package.replace('.', '/').replace('protein_lm/configs', 'configs')
    for path in (ROOT / folder).iterdir():
      if path.is_file() and path.suffix not in ('.py', '.pyc'):
        names = [glob.replace('**/', '') for glob in items(globs)]
        assert any(fnmatch.fnmatch(path.name, glob) for glob in names), path


def imported(path):
  """The top-level names that a source imports anywhere, lazily too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield node.module.split('.')[0]


@pytest.mark.parametrize(
  'path', SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_import_of_what_must_stay_out(path):
  banned = {'tensorflow', 'torch', 'promb'}
  if 'fast_attention' in path.parts[len(ROOT.parts) :]:
    banned |= {'flax', 'protein_lm'}
  assert not banned & set(imported(path))


def test_importing_everything_leaves_tensorflow_out():
  for name in PACKAGES:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f'{name}.'):
      if module.name != 'protein_lm.configs':
        importlib.import_module(module.name)
  assert 'tensorflow' not in sys.modules
