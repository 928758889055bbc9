"""The examples of the README run."""

import pathlib
import re

import pytest

import fast_attention

README = pathlib.Path(fast_attention.__file__).with_name('README.md')
EXAMPLES = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)


@pytest.mark.parametrize(
  'example', EXAMPLES, ids=['stats', 'raw', 'nnx', 'linen', 'devices']
)
def test_example_runs(example):
  exec(compile(example, str(README), 'exec'), {})
