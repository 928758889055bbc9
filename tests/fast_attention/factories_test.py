"""Factories: published names and defaults, values, refusals, gin."""

import inspect
import subprocess
import sys

import gin
import jax
import pytest

import fast_attention
from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)

BOTH = [make_fast_softmax_attention, make_fast_generalized_attention]


@pytest.fixture(autouse=True)
def clean_gin():
  yield
  gin.clear_config()


@pytest.mark.parametrize(
  'make, defaults',
  [
    (
      make_fast_softmax_attention,
      dict(
        qkv_dim=None,
        renormalize_attention=True,
        numerical_stabilizer=1e-12,
        nb_features=256,
        ortho_features=True,
        ortho_scaling=0.0,
        redraw_features=True,
        unidirectional=None,
        nonnegative_features=True,
        lax_scan_unroll=None,
        features_type=None,
        seed=0,
        implementation='auto',
      ),
    ),
    (
      make_fast_generalized_attention,
      dict(
        qkv_dim=None,
        renormalize_attention=True,
        numerical_stabilizer=0.0,
        nb_features=256,
        features_type='deterministic',
        kernel_fn=jax.nn.relu,
        kernel_epsilon=1e-3,
        redraw_features=False,
        unidirectional=None,
        lax_scan_unroll=None,
        seed=0,
        implementation='auto',
      ),
    ),
  ],
)
def test_names_and_defaults(make, defaults):
  parameters = inspect.signature(make).parameters
  assert {n: p.default for n, p in parameters.items()} == defaults


@pytest.mark.parametrize('make', BOTH)
def test_equal_arguments_give_equal_values(make):
  assert make(seed=3) == make(seed=3) != make(seed=4)
  assert hash(make(seed=3)) == hash(make(seed=3))


@pytest.mark.parametrize('make', BOTH)
def test_equal_values_share_a_compilation(make, normal):
  traces = []

  def call(attention, x):
    traces.append(attention)
    return attention(x, x, x)

  jitted = jax.jit(call, static_argnums=0)
  x = normal(1, 3, 1, 4)
  jitted(make(), x)
  jitted(make(), x)
  assert len(traces) == 1


def test_repr_names_what_differs():
  attention = make_fast_generalized_attention(kernel_fn='jrequ', seed=3)
  assert repr(attention) == (
    "FastAttention(features_type='deterministic', ortho_features=False, "
    'kernel_fn=jrequ, kernel_epsilon=0.001, seed=3)'
  )


def test_gin_reaches_the_factory():
  gin.parse_config("""
    make_fast_softmax_attention.lax_scan_unroll = 16
    make_fast_softmax_attention.nb_features = 64
  """)
  attention = make_fast_softmax_attention()
  assert (attention.lax_scan_unroll, attention.nb_features) == (16, 64)


def test_features_that_do_not_exist_list_those_that_do():
  with pytest.raises(ValueError, match="trigonometric, positive.*got 'favor'"):
    make_fast_softmax_attention(features_type='favor')


@pytest.mark.parametrize(
  'make, kwargs, message',
  [
    (0, dict(nb_features=0), 'nb_features must be at least 1, got 0'),
    (0, dict(qkv_dim=0), 'qkv_dim must be at least 1'),
    (0, dict(lax_scan_unroll=0), 'lax_scan_unroll must be at least 1'),
    (0, dict(numerical_stabilizer=-1.0), 'numerical_stabilizer must be'),
    (0, dict(ortho_scaling=0.5), 'ortho_scaling must be 0'),
    (0, dict(implementation='fast'), 'one of auto, chunked, scan, reference'),
    (0, dict(features_type='trigonometric'), 'contradicts nonnegative_feat'),
    (
      0,
      dict(features_type='positive', nonnegative_features=False),
      'contradicts nonnegative_features=False',
    ),
    (1, dict(features_type='positive'), 'one of deterministic, iid, ortho'),
    (1, dict(kernel_epsilon=-1.0), 'kernel_epsilon must be at least 0'),
  ],
)
def test_bad_values_are_refused(make, kwargs, message):
  with pytest.raises(ValueError, match=message):
    BOTH[make](**kwargs)


def test_import_is_light():
  """Neither Flax nor TensorFlow nor the trainer comes along."""
  code = (
    'import sys, fast_attention; '
    'heavy = {"flax", "tensorflow", "protein_lm"} & set(sys.modules); '
    'assert not heavy, heavy'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_exported_names():
  assert set(fast_attention.__all__) == {
    'FastAttention',
    'make_fast_generalized_attention',
    'make_fast_softmax_attention',
  }
