"""LoRA: no change at first, and the merged kernels compute the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from protein_lm import lora, models, train_step

make = functools.partial(
  models.FlaxLM,
  emb_dim=16,
  qkv_dim=16,
  mlp_dim=24,
  num_heads=2,
  num_layers=2,
  max_len=16,
  dropout_rate=0.0,
  mlp='swiglu',
)
TOKENS = np.arange(14, dtype=np.int32).reshape(2, 7)


def split(**kwargs):
  return train_step.split_model(make(**kwargs, rngs=nnx.Rngs(0)))


def logits(graphdef, params):
  return train_step.merge_model(graphdef, params)(TOKENS)


def with_random_factors(params):
  """Factors that change the function: B no longer zero."""
  rng = jax.random.key(1)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      jax.random.normal(rng, x.shape) if 'lora' in str(path[-1]) else x
    ),
    params,
  )


def without_factors(params):
  blocks = {
    name: {k: v for k, v in module.items() if k not in lora.FACTORS}
    for name, module in params['blocks'].items()
  }
  return {**params, 'blocks': blocks}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_factors_change_nothing_at_first(dtype):
  graphdef, params = split(lora_rank=3, lora_targets=lora.TARGETS, dtype=dtype)
  plain_graphdef, _ = split(dtype=dtype)
  np.testing.assert_array_equal(
    logits(graphdef, params), logits(plain_graphdef, without_factors(params))
  )


def test_only_targets_have_factors():
  _, params = split(lora_rank=3)
  has = {k for k, x in params['blocks'].items() if 'lora_a' in x}
  assert has == {'query', 'value'}
  assert params['blocks']['query']['lora_a'].shape == (2, 16, 3)
  assert params['blocks']['query']['lora_b'].shape == (2, 3, 2, 8)


def test_merged_kernels_compute_the_same_in_the_plain_architecture():
  graphdef, params = split(
    lora_rank=3, lora_alpha=1.0, lora_targets=lora.TARGETS
  )
  params = with_random_factors(params)
  plain_graphdef, plain = split()
  merged = lora.merge(params, alpha=1.0)
  assert jax.tree.structure(merged) == jax.tree.structure(plain)
  changed = logits(graphdef, params)
  before = logits(graphdef, split(lora_rank=3, lora_targets=lora.TARGETS)[1])
  assert jnp.abs(changed - before).max() > 1e-2
  np.testing.assert_allclose(logits(plain_graphdef, merged), changed, atol=1e-5)


def test_merging_a_plain_tree_changes_nothing():
  _, params = split()
  assert not lora.has_factors(params)
  assert lora.merge(params, 16.0) is not None
  jax.tree.map(np.testing.assert_array_equal, lora.merge(params, 16.0), params)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'lora_rank': -1}, 'lora_rank must be at least 0, got -1'),
    ({'lora_alpha': 0.0}, 'lora_alpha must be positive, got 0.0'),
    ({'lora_targets': ('quary',)}, "must name some of query, .*, got 'quary'"),
    ({'lora_targets': ()}, r'got \(\)'),
    ({'lora_targets': ('mlp_gate',), 'mlp': 'gelu'}, "got 'mlp_gate'"),
  ],
)
def test_wrong_arguments_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    make(**({'lora_rank': 2} | change), rngs=nnx.Rngs(0))
