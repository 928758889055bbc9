"""The callable: what it honours, what it refuses, where it works."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
  residuals,
)

BOTH = [make_fast_softmax_attention, make_fast_generalized_attention]


def softmax(**kwargs):
  return make_fast_softmax_attention(nb_features=16, **kwargs)


@pytest.fixture
def qkv(normal):
  return tuple(normal(3, 2, 9, 2, 8))


# Arguments that are honoured.


def test_batch_axes_may_be_any_number(qkv):
  expected = softmax()(*qkv)
  np.testing.assert_allclose(
    softmax()(*(x[0] for x in qkv)), expected[0], atol=1e-6
  )
  out = softmax()(*(x[None, :, None] for x in qkv))
  np.testing.assert_allclose(out[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize('dtype', [bool, jnp.float32, jnp.int32])
def test_padding_mask_is_honoured(dtype, qkv):
  q, k, v = qkv
  mask = (jnp.arange(9) < 6).astype(dtype)
  expected = softmax()(q, k[:, :6], v[:, :6])
  for shape in [(1, 1, 1, 9), (1, 1, 9)]:
    out = softmax()(q, k, v, mask=mask.reshape(shape))
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize(
  'unidirectional, is_causal, expected',
  [
    (None, False, False),
    (None, True, True),
    (True, False, True),
    (True, True, True),
    (False, False, False),
  ],
)
def test_direction(unidirectional, is_causal, expected, qkv):
  attention = softmax(unidirectional=unidirectional)
  out = attention(*qkv, is_causal=is_causal)
  first_only = softmax()(*(x[:, :1] for x in qkv))
  assert np.allclose(out[:, :1], first_only, atol=1e-6) == expected


def test_segments_are_maximal_runs(qkv):
  ids = jnp.array([[4, 4, 0, 4, 4, 4, 1, 1, 1]] * 2)
  out = softmax()(*qkv, segment_ids=ids)
  for part in (slice(0, 2), slice(2, 3), slice(3, 6), slice(6, 9)):
    alone = softmax()(*(x[:, part] for x in qkv))
    np.testing.assert_allclose(out[:, part], alone, atol=1e-5)


@pytest.mark.parametrize(
  'dtype, is_causal', [(jnp.bfloat16, True), (jnp.float16, False)]
)
def test_narrow_in_narrow_out(dtype, is_causal, qkv):
  """8. bf16 in gives bf16 out, gradients too."""
  narrow = [x.astype(dtype) for x in qkv]

  def call(*x):
    return softmax()(*x, is_causal=is_causal)

  out, vjp = jax.vjp(call, *narrow)
  assert out.dtype == dtype
  assert all(grad.dtype == dtype for grad in vjp(out))
  wide = call(*(x.astype(jnp.float32) for x in narrow))
  np.testing.assert_allclose(out.astype(jnp.float32), wide, atol=2e-2)


def test_float64_is_kept(qkv):
  with jax.enable_x64(True):
    q, k, v = (jnp.asarray(np.asarray(x), jnp.float64) for x in qkv)
    out = softmax()(q, k, v, is_causal=True)
    expected = softmax(implementation='reference')(q, k, v, is_causal=True)
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, expected, rtol=1e-10)


def test_dtype_is_that_of_the_output(qkv):
  assert softmax()(*qkv, dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_multi_query_heads_are_repeated(qkv):
  q, k, v = qkv
  q = jnp.concatenate([q, q * 2], axis=2)  # heads 0 1 2 3, keys' 0 0 1 1
  attention = make_fast_generalized_attention()
  out = attention(q, k, v, is_causal=True)
  repeated = (jnp.repeat(x, 2, axis=2) for x in (k, v))
  np.testing.assert_allclose(
    out, attention(q, *repeated, is_causal=True), atol=1e-6
  )


def test_last_query_sees_all_unmasked_keys(qkv):
  """9. A causal query of length 1 against cached keys."""
  q, k, v = qkv
  attention = softmax(unidirectional=True)
  full = attention(*(x[:, :6] for x in qkv))
  mask = jnp.broadcast_to(jnp.arange(9) < 6, (2, 1, 1, 9))
  out = attention(q[:, 5:6], k, v, mask=mask)
  np.testing.assert_allclose(out, full[:, 5:6], atol=1e-6)


def test_precision_and_unroll_leave_the_output(qkv):
  expected = softmax()(*qkv, is_causal=True)
  attention = softmax(implementation='scan', lax_scan_unroll=99)
  out = attention(*qkv, is_causal=True, precision='highest')
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_every_argument_of_flax_is_named():
  named = set(inspect.signature(softmax()).parameters)
  for attention in (nn.dot_product_attention, nnx.dot_product_attention):
    assert set(inspect.signature(attention).parameters) <= named


# Random matrices.


def test_fixed_matrix_is_that_of_layer_zero(qkv):
  attention = softmax(seed=3)
  out = attention(*qkv, rng=attention.projection_rng(0))
  np.testing.assert_allclose(attention(*qkv), out, atol=1e-6)


def test_layers_and_seeds_draw_different_matrices(rng):
  keys = [
    softmax().projection_rng(0),
    softmax().projection_rng(1),
    softmax(seed=1).projection_rng(0),
  ]
  matrices = [softmax().projection(key, 1, 8) for key in keys]
  assert not np.allclose(matrices[0], matrices[1])
  assert not np.allclose(matrices[0], matrices[2])


def test_layer_may_be_traced():
  traced = jax.jit(softmax().projection_rng)(jnp.int32(3))
  assert jnp.array_equal(
    jax.random.key_data(traced),
    jax.random.key_data(softmax().projection_rng(3)),
  )


def test_redraw_follows_the_training_step_only(rng):
  fixed, redrawn = softmax(redraw_features=False), softmax()

  def data(key):
    return tuple(jax.random.key_data(key).tolist())

  assert data(fixed.projection_rng(1, rng)) == data(fixed.projection_rng(1))
  steps = [jax.random.fold_in(rng, step) for step in range(2)]
  keys = {
    data(redrawn.projection_rng(layer, step))
    for layer in range(2)
    for step in [None, *steps]
  }
  assert len(keys) == 6
  assert data(redrawn.projection_rng(1)) == data(fixed.projection_rng(1))


def test_a_checkpoint_keeps_the_projection(qkv, rng):
  def gradients(*qkv):
    attend = functools.partial(softmax(), rng=rng, is_causal=True)
    names = jax.checkpoint_policies.save_only_these_names(residuals.NAME)
    out, vjp = jax.vjp(jax.checkpoint(attend, policy=names), *qkv)
    return vjp(out)

  assert str(jax.make_jaxpr(gradients)(*qkv)).count('= random_bits[') == 1


# Arguments that are refused.


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(bias=jnp.zeros((2, 2, 9, 9))), 'bias is not supported'),
    (dict(dropout_rate=0.1), 'attention dropout is not supported'),
    (dict(module=object()), 'sow_weights=False'),
    (dict(stats={}), 'uses no statistics'),
    (dict(qk_attn_weights_einsum=jnp.einsum), 'custom einsums'),
    (dict(mask=jnp.ones((2, 1, 9, 9))), 'set unidirectional=True instead'),
    (dict(mask=jnp.ones((2, 2, 1, 9))), 'mask must be key padding'),
    (dict(mask=jnp.ones((3, 1, 1, 9))), 'mask must be key padding'),
    (dict(mask=jnp.ones((2, 9))), 'mask must be key padding'),
    (dict(segment_ids=jnp.ones((2, 8), int)), 'segment_ids must be'),
  ],
)
def test_refusals_name_the_way_out(kwargs, message, qkv):
  with pytest.raises(ValueError, match=message):
    softmax()(*qkv, **kwargs)


def test_dropout_is_allowed_when_deterministic(qkv):
  softmax()(*qkv, dropout_rate=0.1, deterministic=True)


def test_contradicting_directions_are_refused(qkv):
  with pytest.raises(ValueError, match='contradicts unidirectional=False'):
    softmax(unidirectional=False)(*qkv, is_causal=True)


@pytest.mark.parametrize(
  'shapes, message',
  [
    (((9, 8), (9, 8), (9, 8)), 'of one rank'),
    (((9, 2, 8), (1, 9, 2, 8), (1, 9, 2, 8)), 'of one rank'),
    (((2, 9, 2, 8), (3, 9, 2, 8), (3, 9, 2, 8)), 'equal batch axes'),
    (((2, 9, 2, 8), (2, 9, 2, 4), (2, 9, 2, 8)), 'equal depths'),
    (((2, 9, 2, 8), (2, 9, 2, 8), (2, 8, 2, 8)), 'equal lengths and heads'),
    (((2, 9, 3, 8), (2, 9, 2, 8), (2, 9, 2, 8)), 'must divide'),
    (((2, 0, 2, 8), (2, 0, 2, 8), (2, 0, 2, 8)), 'no axis may be empty'),
  ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
  with pytest.raises(ValueError, match=message):
    softmax()(*(jnp.ones(shape) for shape in shapes))


def test_another_width_than_qkv_dim_is_refused(qkv):
  with pytest.raises(ValueError, match='qkv_dim is the width of one head'):
    softmax(qkv_dim=16)(*qkv)


def test_causal_cross_attention_is_refused(qkv):
  q, k, v = qkv
  with pytest.raises(ValueError, match='as many queries as keys'):
    softmax()(q[:, :4], k, v, is_causal=True)


# Transformations.


def test_vmap_equals_a_batch_axis(qkv):
  def call(*x):
    return softmax()(*x, is_causal=True)

  np.testing.assert_allclose(jax.vmap(call)(*qkv), call(*qkv), atol=1e-6)


def test_remat_leaves_gradients(qkv):
  def call(q, k, v):
    return jnp.sum(softmax()(q, k, v, is_causal=True) ** 2)

  expected = jax.jit(jax.grad(call))(*qkv)
  actual = jax.jit(jax.grad(jax.checkpoint(call)))(*qkv)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_leaks_no_tracer(qkv):
  with jax.checking_leaks():

    def call(*x):
      return jnp.sum(softmax(unidirectional=True)(*x))

    jax.jit(jax.grad(call))(*qkv)


@pytest.mark.parametrize(
  'kwargs, is_packed',
  [
    (dict(is_causal=True), False),
    pytest.param({}, False, marks=pytest.mark.slow),
    pytest.param({}, True, marks=pytest.mark.slow),
  ],
)
def test_shard_map_over_the_batch(kwargs, is_packed, normal):
  mesh = jax.make_mesh(
    (2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  q, k, v = normal(3, 2, 150, 2, 8)
  ids = jnp.tile(jnp.arange(150) // 40, (2, 1)) if is_packed else None

  def loss(q, k, v, ids):
    out = softmax()(q, k, v, segment_ids=ids, **kwargs)
    return jnp.sum(out**2, axis=(1, 2, 3))

  def grads(*args):
    return jax.grad(lambda *x: jnp.sum(loss(*x)), argnums=(0, 1, 2))(*args)

  spec = PartitionSpec('data')
  sharded = jax.shard_map(grads, mesh=mesh, in_specs=spec, out_specs=spec)
  actual = jax.jit(sharded)(q, k, v, ids)
  for a, b in zip(actual, jax.jit(grads)(q, k, v, ids), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# Inside Flax modules.


def train_once(loss, params):
  """Losses before and after a gradient step."""
  before, grads = jax.jit(jax.value_and_grad(loss))(params)

  def step(p, g):
    return p - 0.05 * g

  return before, loss(jax.tree.map(step, params, grads))


@pytest.mark.parametrize('make', BOTH)
def test_linen_trains_and_decodes(make, rng, normal):
  attention = make(qkv_dim=8, unidirectional=True)
  x = normal(2, 6, 16)

  def build(decode):
    return nn.MultiHeadDotProductAttention(
      num_heads=2, attention_fn=attention, decode=decode
    )

  params = build(False).init(rng, x)['params']

  def call(p):
    return build(False).apply({'params': p}, x)

  before, after = train_once(lambda p: jnp.mean((call(p) - x) ** 2), params)
  assert after < before

  cache = build(True).init(rng, x)['cache']
  outs = []
  for t in range(6):
    out, updates = build(True).apply(
      {'params': params, 'cache': cache}, x[:, t : t + 1], mutable='cache'
    )
    cache = updates['cache']
    outs.append(out)
  np.testing.assert_allclose(
    jnp.concatenate(outs, axis=1), call(params), atol=1e-5
  )


@pytest.mark.parametrize('make', BOTH)
def test_nnx_trains_and_decodes(make, normal):
  attention = make(qkv_dim=8, unidirectional=True)
  x = normal(2, 6, 16)
  module = nnx.MultiHeadAttention(
    num_heads=2,
    in_features=16,
    attention_fn=attention,
    decode=False,
    rngs=nnx.Rngs(0),
  )
  full = module(x)
  graph, params, rest = nnx.split(module, nnx.Param, ...)

  def call(p):
    return nnx.merge(graph, p, rest)(x)

  before, after = train_once(lambda p: jnp.mean((call(p) - x) ** 2), params)
  assert after < before

  module.init_cache((2, 6, 16))
  outs = [module(x[:, t : t + 1], decode=True) for t in range(6)]
  np.testing.assert_allclose(jnp.concatenate(outs, axis=1), full, atol=1e-5)


@pytest.mark.parametrize('is_causal', [True, False])
def test_nnx_sends_is_causal_and_padding(is_causal, normal):
  x = normal(2, 6, 16)
  module = nnx.MultiHeadAttention(
    num_heads=2,
    in_features=16,
    attention_fn=softmax(),
    decode=False,
    rngs=nnx.Rngs(0),
  )
  mask = (jnp.arange(6) < 4).astype(jnp.float32)[None, None, None]
  out = module(x, mask=jnp.tile(mask, (2, 1, 1, 1)), is_causal=is_causal)
  alone = module(x[:, :4], is_causal=is_causal)
  np.testing.assert_allclose(out[:, :4], alone, atol=1e-5)
