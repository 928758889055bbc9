"""On a mesh of devices attention and models give what one device gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fast_attention import (
  lower_variance,
  make_fast_generalized_attention,
  make_fast_softmax_attention,
  residuals,
)
from protein_lm import attention_sharding, cores, models, sharding
from protein_lm.exact_attention import exact_attention

NAMES = ('data', 'fsdp', 'tensor', 'sequence')
L = 32


def make_mesh(*sizes):
  return jax.make_mesh(
    sizes,
    NAMES,
    axis_types=(jax.sharding.AxisType.Auto,) * 4,
    devices=jax.devices()[: np.prod(sizes)],
  )


def softmax(**kwargs):
  return make_fast_softmax_attention(nb_features=16, **kwargs)


def packed(B):
  """Segments that cross, fill and end at the edges of 2 and of 4 shards."""
  lengths = [[5, 14, 13], [8, 16, 8], [3, 2, 27], [32, 0, 0]]
  ids = [np.repeat([1, 2, 0], row) for row in lengths]
  return jnp.asarray(np.stack(ids)[np.arange(B) % 4], jnp.int32)


def qkvg(B=4, H=4, K=8):
  x = np.random.default_rng(0).normal(size=(4, B, L, H, K))
  return tuple(jnp.asarray(x, jnp.float32))


def with_gradients(attention_fn, mesh, arrays, **kwargs):
  """Output and gradients of q, k, v, on a mesh or else on one device."""

  @jax.jit
  def run(q, k, v, g):
    def attend(*qkv):
      return attention_sharding.attend(attention_fn, *qkv, **kwargs)

    out, vjp = jax.vjp(attend, q, k, v)
    return out, *vjp(g)

  if mesh is None:
    return run(*arrays)
  with jax.set_mesh(mesh):
    return run(*arrays)


def assert_same(actual, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    actual,
    expected,
  )


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  'sizes',
  [
    (1, 2, 2, 2),
    (1, 1, 1, 4),
    pytest.param((2, 1, 1, 4), marks=SLOW),
    pytest.param((8, 1, 1, 1), marks=SLOW),
    pytest.param((1, 1, 4, 1), marks=SLOW),
  ],
)
@pytest.mark.parametrize(
  'attention_fn, is_causal', [(exact_attention(), True), (softmax(), False)]
)
def test_attention_matches_one_device(attention_fn, is_causal, sizes):
  arrays = qkvg(B=8)
  kwargs = dict(
    segment_ids=packed(8), is_causal=is_causal, rng=jax.random.key(3)
  )
  actual = with_gradients(attention_fn, make_mesh(*sizes), arrays, **kwargs)
  assert_same(actual, with_gradients(attention_fn, None, arrays, **kwargs))


@pytest.mark.parametrize('sizes', [(2, 1, 1, 4), (1, 2, 2, 2)])
@pytest.mark.parametrize('attention_fn', [exact_attention(), softmax()])
def test_cores_exchange_positions_for_heads(monkeypatch, attention_fn, sizes):
  monkeypatch.setattr(cores, '_num_devices', 8)
  monkeypatch.delattr(attention_sharding, '_gathered')
  arrays, mesh = qkvg(), make_mesh(*sizes)
  kwargs = dict(segment_ids=packed(4), is_causal=True, rng=jax.random.key(3))
  actual = with_gradients(attention_fn, mesh, arrays, **kwargs)
  assert_same(actual, with_gradients(attention_fn, None, arrays, **kwargs))
  with jax.set_mesh(mesh):
    where = NamedSharding(mesh, sharding.BATCH)
    attend = functools.partial(
      attention_sharding.attend, attention_fn, **kwargs
    )
    program = jax.jit(attend).lower(*jax.device_put(arrays[:3], where))
  assert 'all-to-all' in program.compile().as_text()


@pytest.mark.parametrize('attention_fn', [exact_attention(), softmax()])
def test_what_was_exchanged_is_kept_by_a_checkpoint(monkeypatch, attention_fn):
  monkeypatch.setattr(cores, '_num_devices', 4)
  q, k, v, g = qkvg()

  def gradients(*qkv):
    attend = functools.partial(attention_sharding.attend, attention_fn)
    names = jax.checkpoint_policies.save_only_these_names(residuals.NAME)
    return jax.vjp(jax.checkpoint(attend, policy=names), *qkv)[1](g)

  with jax.set_mesh(make_mesh(1, 1, 1, 4)):
    program = str(jax.make_jaxpr(gradients)(q, k, v))
  assert program.count('= all_to_all[') == 8  # q, k, v, out, and cotangents


def test_states_of_other_shards_and_states_that_are_kept():
  attention_fn = dataclasses.replace(softmax(), keep_states=True)
  kwargs = dict(segment_ids=packed(4), is_causal=True)
  actual = with_gradients(attention_fn, make_mesh(1, 1, 1, 4), qkvg(), **kwargs)
  assert_same(actual, with_gradients(softmax(), None, qkvg(), **kwargs))


def test_cores_that_do_not_divide_the_heads_send_states(monkeypatch):
  monkeypatch.setattr(cores, '_num_devices', 8)
  kwargs = dict(segment_ids=packed(4), is_causal=True)
  actual = with_gradients(softmax(), make_mesh(1, 1, 1, 8), qkvg(), **kwargs)
  assert_same(actual, with_gradients(softmax(), None, qkvg(), **kwargs))


def test_exact_attention_goes_by_blocks_of_queries(monkeypatch):
  monkeypatch.setattr(attention_sharding, '_QUERIES_AT_ONCE', 3)  # 8 = 3+3+2
  mesh, kwargs = make_mesh(1, 1, 1, 4), dict(segment_ids=packed(4))
  for attention_fn in (exact_attention(), exact_attention(unidirectional=True)):
    actual = with_gradients(attention_fn, mesh, qkvg(), **kwargs)
    expected = with_gradients(attention_fn, None, qkvg(), **kwargs)
    assert_same(actual, expected)


def test_exact_attention_without_segments_sees_all_shards():
  actual = with_gradients(exact_attention(), make_mesh(1, 1, 1, 4), qkvg())
  assert_same(actual, with_gradients(exact_attention(), None, qkvg()))


@pytest.mark.slow
@pytest.mark.parametrize(
  'features_type',
  ['centred_aderf', pytest.param('favor_plus_plus', marks=SLOW)],
)
def test_features_with_statistics_match_one_device(features_type):
  q, k, v, g = qkvg()
  stats = lower_variance.measure(q + 1, 2 * k)
  kwargs = dict(segment_ids=packed(4), is_causal=True, stats=stats)
  attention_fn = softmax(features_type=features_type)
  mesh = make_mesh(1, 1, 2, 4)
  actual = with_gradients(attention_fn, mesh, (q, k, v, g), **kwargs)
  assert_same(
    actual, with_gradients(attention_fn, None, (q, k, v, g), **kwargs)
  )


def test_statistics_are_those_of_the_whole_batch():
  q, k, *_ = qkvg()
  valid = packed(4) != 0
  expected = lower_variance.measure(q, k, valid, valid)
  for sizes in [(2, 1, 1, 4), (1, 2, 2, 2)]:
    with jax.set_mesh(make_mesh(*sizes)):
      actual = jax.jit(attention_sharding.measure)(q, k, valid)
    assert_same(actual, expected)


def test_a_batch_too_small_for_the_mesh_is_computed_by_all():
  arrays, attention_fn = qkvg(B=3), exact_attention()
  kwargs = dict(segment_ids=packed(3), is_causal=True)
  actual = with_gradients(attention_fn, make_mesh(2, 3, 1, 1), arrays, **kwargs)
  assert_same(actual, with_gradients(attention_fn, None, arrays, **kwargs))


def test_one_device_computes_as_without_a_mesh():
  kwargs = dict(segment_ids=packed(4), is_causal=True)
  actual = with_gradients(softmax(), make_mesh(1, 1, 1, 1), qkvg(), **kwargs)
  expected = with_gradients(softmax(), None, qkvg(), **kwargs)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('sizes', [(2, 1, 2, 1), (1, 1, 1, 4)])
def test_devices_drop_different_attention_weights(sizes):
  ones = jnp.ones((4, L, 4, 8))
  out = with_gradients(
    exact_attention(),
    make_mesh(*sizes),
    (ones,) * 4,
    deterministic=False,
    dropout_rate=0.5,
    dropout_rng=jax.random.key(0),
  )[0]
  # Each value is the share of weights that stay, times 2.
  assert len(np.unique(out[..., 0].round(4), axis=0)) == 4
  assert len(np.unique(out[..., 0].round(4).T, axis=0)) == 4
  np.testing.assert_allclose(out.mean(), 1, atol=0.05)


def test_a_length_that_does_not_divide_is_refused():
  with jax.set_mesh(make_mesh(1, 1, 1, 8)):
    q, k, v = (x[:, :30] for x in qkvg()[:3])
    with pytest.raises(ValueError, match=r'30 positions .* mesh.sequence=8'):
      attention_sharding.attend(softmax(), q, k, v)


def test_heads_that_do_not_divide_are_refused():
  mesh = make_mesh(1, 1, 8, 1)
  message = r'4 attention heads .* mesh.tensor=8'
  with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
    attention_sharding.attend(softmax(), *qkvg()[:3])


# Whole models.


def make_model(cls, attention_fn, **kwargs):
  model = cls(
    attention_fn=attention_fn,
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=32,
    num_layers=2,
    num_heads=2,
    max_len=L,
    rngs=nnx.Rngs(0),
    **kwargs,
  )
  return nnx.split(model, nnx.Param)


@pytest.mark.slow
@pytest.mark.parametrize(
  'cls, attention_fn, sizes, kwargs',
  [
    (models.FlaxLM, softmax(), (1, 2, 2, 2), {'remat': True}),
    pytest.param(
      models.FlaxBERT,
      (softmax(), exact_attention()),
      (1, 1, 1, 4),
      {'position_embedding': 'rotary', 'qk_norm': True},
      marks=SLOW,
    ),
    pytest.param(
      models.FlaxLM, exact_attention(), (1, 1, 1, 4), {}, marks=SLOW
    ),
    pytest.param(
      models.FlaxBERT,
      make_fast_generalized_attention(),
      (2, 1, 1, 4),
      {},
      marks=SLOW,
    ),
  ],
)
def test_logits_and_gradients_of_a_model_match_one_device(
  cls, attention_fn, sizes, kwargs
):
  graphdef, params = make_model(cls, attention_fn, **kwargs)
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 20, (4, L)))

  @jax.jit
  def run(params, tokens, segment_ids):
    def loss(params):
      model = nnx.merge(graphdef, params)
      logits = model(tokens, segment_ids=segment_ids)
      return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    (_, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, grads

  expected = run(params, tokens, packed(4))
  mesh = make_mesh(*sizes)
  rows = NamedSharding(mesh, P(('data', 'fsdp'), 'sequence'))
  with jax.set_mesh(mesh):
    actual = run(params, *jax.device_put((tokens, packed(4)), rows))
  assert_same(actual, expected)
