"""The models: one parameter tree, no leak, no trace of padding or packing."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fast_attention import (
  FastAttention,
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import models, train_step, vocab
from protein_lm.exact_attention import exact_attention

ATTENTIONS = {
  'exact': exact_attention,
  'softmax': lambda: make_fast_softmax_attention(nb_features=16),
  'generalized': make_fast_generalized_attention,
}
OPTIONS = {
  'published': {},
  'modern': {
    'position_embedding': 'rotary',
    'norm': 'rmsnorm',
    'mlp': 'swiglu',
    'tie_embeddings': True,
    'qk_norm': True,
  },
  'sinusoidal': {'position_embedding': 'sinusoidal'},
}


def make(cls=models.FlaxLM, attention_fn=None, **options):
  return cls(
    attention_fn=attention_fn,
    **{
      'emb_dim': 16,
      'qkv_dim': 16,
      'mlp_dim': 32,
      'num_layers': 3,
      'num_heads': 2,
      'max_len': 40,
      **options,
    },
    rngs=nnx.Rngs(0),
  )


def random_tokens(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 20, shape).astype(np.int32)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_a_later_token_never_changes_earlier_logits(attention, options):
  model = make(attention_fn=ATTENTIONS[attention](), **OPTIONS[options])
  tokens = random_tokens((1, 30))
  changed = tokens.copy()
  changed[0, 20] = (tokens[0, 20] + 1) % 20
  call = jax.jit(lambda tokens: model(tokens))
  before, after = call(tokens), call(changed)
  np.testing.assert_array_equal(before[:, :20], after[:, :20])
  assert np.abs(before[:, 20:] - after[:, 20:]).max() > 1e-4


@pytest.mark.parametrize('cls', [models.FlaxLM, models.FlaxBERT])
@pytest.mark.parametrize('attention', ATTENTIONS)
@pytest.mark.parametrize(
  'options', ['published', pytest.param('modern', marks=pytest.mark.slow)]
)
def test_alone_padded_and_packed_give_the_same_logits(cls, attention, options):
  model = make(cls, ATTENTIONS[attention](), **OPTIONS[options])
  alone = random_tokens((1, 11))
  padded = np.full((1, 37), vocab.PAD_ID, np.int32)
  padded[:, :11] = alone
  packed = random_tokens((1, 37), seed=1)
  packed[:, 9:20] = alone
  segment_ids = np.repeat([1, 2, 3], [9, 11, 17])[None]
  call = jax.jit(lambda t, s=None: model(t, segment_ids=s))
  expected = call(alone)
  np.testing.assert_allclose(call(padded)[:, :11], expected, atol=1e-5)
  np.testing.assert_allclose(
    call(packed, segment_ids)[:, 9:20], expected, atol=1e-5
  )


@pytest.mark.parametrize('cls', [models.FlaxLM, models.FlaxBERT])
def test_one_parameter_tree_for_every_attention_scan_and_remat(cls):
  def tree(**options):
    return jax.tree.map(
      jnp.shape, train_step.split_model(make(cls, **options))[1]
    )

  hybrid = (exact_attention(), make_fast_softmax_attention(nb_features=16))
  for other in (
    {'attention_fn': make_fast_softmax_attention()},
    {'attention_fn': hybrid},
    {'scan_layers': False},
    {'remat': True},
  ):
    assert tree(**other) == tree()


@pytest.mark.parametrize(
  'num_fns',
  [
    pytest.param(1, marks=pytest.mark.slow),
    pytest.param(2, marks=pytest.mark.slow),
    3,
  ],
)
@pytest.mark.slow
def test_scanned_unrolled_and_rematerialised_layers_agree(num_fns):
  fns = (exact_attention(), make_fast_softmax_attention(nb_features=16))
  fns = (fns + fns)[:num_fns]
  tokens = random_tokens((2, 30))

  def logits_and_grads(**options):
    graphdef, params = train_step.split_model(
      make(attention_fn=fns, num_layers=5, **options)
    )

    def loss(params):
      logits = train_step.merge_model(graphdef, params)(tokens)
      return jnp.mean(logits**2), logits

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  expected = logits_and_grads(scan_layers=False)
  for options in ({}, {'remat': True}):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      logits_and_grads(**options),
      expected,
    )


def _compiled_gradient(num_layers=4, **options):
  """The gradient of a small model, compiled, and its parameters."""
  graphdef, params = train_step.split_model(
    make(num_layers=num_layers, max_len=130, dropout_rate=0.1, **options)
  )

  def loss(params, tokens, rng):
    model = train_step.merge_model(graphdef, params)
    return jnp.mean(model(tokens, rng=rng, deterministic=False) ** 2)

  tokens = random_tokens((4, 130))
  gradient = jax.jit(jax.grad(loss))
  arguments = (params, tokens, jax.random.key(1))
  return gradient.lower(*arguments).compile(), arguments


@pytest.mark.parametrize(
  'fn',
  [
    exact_attention(),
    pytest.param(
      make_fast_softmax_attention(nb_features=16), marks=pytest.mark.slow
    ),
  ],
)
@pytest.mark.slow
def test_rematerialised_layers_take_less_memory_for_equal_gradients(fn):
  memory, grads = [], []
  for remat in ('none', 'dots', 'full', 'states'):
    compiled, arguments = _compiled_gradient(attention_fn=fn, remat=remat)
    memory.append(compiled.memory_analysis().temp_size_in_bytes)
    grads.append(compiled(*arguments))
  none, dots, full, states = memory
  assert none > 1.2 * dots > 1.2 * full
  assert (states > dots) == isinstance(fn, FastAttention)
  for found in grads[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, grads[0]
    )


@pytest.mark.slow
def test_layers_cost_no_time_to_compile():
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    seconds = {4: [], 24: []}
    for _ in range(3):
      for num_layers, taken in seconds.items():
        jax.clear_caches()
        start = time.perf_counter()
        _compiled_gradient(num_layers)
        taken.append(time.perf_counter() - start)
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
  assert min(seconds[24]) <= 1.5 * min(seconds[4])


def test_a_binding_of_flax_model_reaches_its_subclasses():
  import gin

  with gin.unlock_config():
    gin.parse_config(
      'FlaxModel.attention_fn = @make_fast_generalized_attention()\n'
      'FlaxModel.num_layers = 2'
    )
  try:
    for cls in (models.FlaxLM, models.FlaxBERT):
      model = cls(
        emb_dim=8, qkv_dim=8, mlp_dim=8, num_heads=1, rngs=nnx.Rngs(0)
      )
      assert model.attention_fns == (make_fast_generalized_attention(),)
      assert model.num_layers == 2
  finally:
    gin.clear_config()


def test_an_untrained_model_is_about_uniform_over_the_vocabulary():
  for options in OPTIONS.values():
    probabilities = jax.nn.softmax(make(**options)(random_tokens((2, 30))))
    entropy = -jnp.sum(probabilities * jnp.log(probabilities), -1).mean()
    assert jnp.exp(entropy) > 0.95 * vocab.SIZE


def test_training_redraws_features_and_evaluation_does_not(rng):
  model = make(
    attention_fn=make_fast_softmax_attention(nb_features=4), dropout_rate=0.0
  )
  tokens = random_tokens((1, 30))
  train = [
    model(tokens, rng=jax.random.fold_in(rng, i), deterministic=False)
    for i in (0, 0, 1)
  ]
  np.testing.assert_array_equal(train[0], train[1])
  assert np.abs(train[0] - train[2]).max() > 1e-5
  np.testing.assert_array_equal(model(tokens), model(tokens, rng=rng))


def test_dropout_changes_with_the_step_alone(rng):
  model = make(dropout_rate=0.5)
  tokens = random_tokens((1, 30))
  first, again, other = (
    model(tokens, rng=jax.random.fold_in(rng, i), deterministic=False)
    for i in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
  model = make(dtype='bfloat16')
  tokens = random_tokens((1, 30))
  assert model.hidden(tokens).dtype == jnp.bfloat16
  logits = model(tokens)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, make()(tokens), atol=0.05)


def test_learned_positions_start_from_the_sinusoid():
  from protein_lm.positions import sinusoid

  np.testing.assert_array_equal(
    make().position_table[...], sinusoid(jnp.arange(40), 16)
  )


@pytest.mark.parametrize(
  'options, has_biases',
  [
    ({}, True),
    ({'norm': 'rmsnorm'}, False),
    ({'norm': 'rmsnorm', 'use_bias': True}, True),
    ({'use_bias': False}, False),
  ],
)
def test_linear_layers_have_biases_by_their_norm(options, has_biases):
  model_cls = functools.partial(make, mlp='swiglu', **options)
  _, params = train_step.abstract_model(lambda rngs: model_cls())
  layers = [params['output'], *params['blocks'].values()]
  assert {'bias' in x for x in layers if 'kernel' in x} == {has_biases}


def test_exact_gelu_differs_from_its_approximation():
  tokens = random_tokens((1, 9))
  logits = [
    jax.jit(make(mlp=mlp, num_layers=1))(tokens)
    for mlp in ('gelu', 'gelu_exact')
  ]
  assert 1e-6 < np.abs(logits[0] - logits[1]).max() < 1e-2


@pytest.mark.parametrize(
  'cls, options, words',
  [
    (models.FlaxModel, {}, 'use FlaxLM'),
    (models.FlaxLM, {'qkv_dim': 15}, 'multiple of num_heads=2'),
    (models.FlaxLM, {'norm': 'batch'}, "layernorm, rmsnorm, got 'batch'"),
    (models.FlaxLM, {'num_layers': 0}, 'must be positive, got 0'),
    (models.FlaxLM, {'dropout_rate': 1.5}, r'in \[0, 1\), got 1.5'),
    (models.FlaxLM, {'norm_eps': 0}, 'norm_eps must be positive, got 0'),
    (models.FlaxLM, {'output_head': 'mlp'}, "linear, dense, got 'mlp'"),
    (models.FlaxLM, {'attention_fn': 3}, 'call the factory'),
    (
      models.FlaxLM,
      {'attention_fn': make_fast_softmax_attention(unidirectional=False)},
      'unidirectional=False; leave unidirectional unset',
    ),
    (
      models.FlaxBERT,
      {
        'attention_fn': (
          exact_attention(),
          exact_attention(unidirectional=True),
        )
      },
      'unidirectional=True; leave unidirectional unset',
    ),
    (
      models.FlaxLM,
      {
        'attention_fn': make_fast_softmax_attention(),
        'attention_dropout_rate': 0.1,
      },
      'needs @exact_attention',
    ),
  ],
)
def test_contradictions_are_refused_at_construction(cls, options, words):
  with pytest.raises(ValueError, match=words):
    make(cls, **options)


def test_more_tokens_than_learned_positions_are_refused():
  with pytest.raises(ValueError, match='ends at max_len=40, got 41'):
    make()(random_tokens((1, 41)))


def test_rotary_positions_take_any_length():
  model = make(position_embedding='rotary')
  assert np.isfinite(model(random_tokens((1, 100)))).all()


def test_training_without_rng_is_refused():
  with pytest.raises(ValueError, match='needs rng'):
    make()(random_tokens((1, 4)), deterministic=False)


@pytest.mark.slow
def test_the_tiny_softmax_kernel_approaches_exact_attention_with_features():
  tokens = random_tokens((4, 40))
  _, params = train_step.split_model(make())

  def logits(attention_fn):
    graphdef, _ = train_step.split_model(make(attention_fn=attention_fn))
    return train_step.merge_model(graphdef, params)(tokens)

  exact = logits(exact_attention())
  errors = [
    np.abs(logits(make_fast_softmax_attention(nb_features=m)) - exact).mean()
    for m in (16, 256, 4096)
  ]
  assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
