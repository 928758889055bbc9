"""A length split between devices gives what one device gives."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fast_attention import (
  make_fast_generalized_attention,
  make_fast_softmax_attention,
  sequence_parallel,
)

N = 4  # shards


def softmax(**kwargs):
  return make_fast_softmax_attention(nb_features=24, **kwargs)


RELU = make_fast_generalized_attention()
COS = make_fast_generalized_attention(
  kernel_fn='jcos', features_type='iid', nb_features=24
)
EXP = make_fast_generalized_attention(kernel_fn='jexp')

# Lengths of the segments of a row of 4 x 20 positions.
ROWS = {
  'crosses every edge': [13, 17, 25, 3, 22],
  'spans whole shards': [7, 66, 7],
  'ends at an edge': [20, 40, 20],
  'one': [80],
  'several in a shard': [1, 2, 30, 1, 5, 20, 1, 20],
}


def segment_ids(*names):
  """Ids that repeat, so that runs are told from ids; one row for each name."""
  ids = [np.repeat(np.arange(len(ROWS[n])) % 2, ROWS[n]) for n in names]
  return jnp.asarray(np.stack(ids), jnp.int32)


def make_mesh(*sizes, names=('data', 'sequence')):
  auto = (jax.sharding.AxisType.Auto,) * len(sizes)
  devices = jax.devices()[: np.prod(sizes)]
  return jax.make_mesh(sizes, names, axis_types=auto, devices=devices)


def split(attention, mesh=None, **kwargs):
  """The attention, with its length split over `sequence`."""
  mesh = make_mesh(1, N) if mesh is None else mesh
  rows = P('data', 'sequence')

  def attend(q, k, v, ids=None, mask=None, **kwargs):
    def shard(q, k, v, ids, mask):
      return attention(
        q,
        k,
        v,
        segment_ids=ids,
        mask=None if mask is None else mask[:, None, None],
        axis_name='sequence',
        **kwargs,
      )

    specs = (
      rows,
      rows,
      rows,
      *(None if x is None else rows for x in (ids, mask)),
    )
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=rows)(
      q, k, v, ids, mask
    )

  return attend


def whole(attention):
  def attend(q, k, v, ids=None, mask=None, **kwargs):
    if mask is not None:
      kwargs['mask'] = mask[:, None, None]
    return attention(q, k, v, segment_ids=ids, **kwargs)

  return attend


@pytest.mark.parametrize(
  'attention, is_causal, is_packed',
  [
    (softmax(), True, True),
    (softmax(), False, True),
    (softmax(), False, False),
    (RELU, True, True),
    (RELU, True, False),
    *[
      pytest.param(*case, marks=pytest.mark.slow)
      for case in [
        (softmax(), True, False),
        (softmax(renormalize_attention=False), False, True),
        (softmax(nonnegative_features=False), True, True),
        (softmax(features_type='hyperbolic'), True, False),
        (RELU, False, False),
        (COS, False, True),
        (EXP, True, True),
      ]
    ],
  ],
)
def test_matches_one_device(
  attention, is_causal, is_packed, qkvg, run_with_gradients, assert_close
):
  # Signed features want small norms: else denominators vanish.
  inputs = qkvg(len(ROWS), 80, 2, 8, std=0.3)
  kwargs = dict(is_causal=is_causal)
  if is_packed:
    kwargs['ids'] = segment_ids(*ROWS)
    kwargs['mask'] = jnp.tile(jnp.arange(80) < 76, (len(ROWS), 1))
  actual = run_with_gradients(split(attention), inputs, **kwargs)
  expected = run_with_gradients(whole(attention), inputs, **kwargs)
  assert_close(actual, expected)


@pytest.mark.parametrize('attention', [softmax(), RELU])
def test_later_shards_leave_earlier_outputs_bit_equal(attention, qkvg):
  q, k, v, _ = qkvg(1, 80, 2, 8)
  attend = jax.jit(lambda *x: split(attention)(*x, is_causal=True))
  before = attend(q, k, v)
  for t in (45, 60):
    changed = [x.at[:, t:].multiply(1e3) for x in (k, v)]
    np.testing.assert_array_equal(attend(q, *changed)[:, :t], before[:, :t])


def test_huge_keys_of_other_segments_do_not_underflow(qkvg, assert_close):
  q, k, v, _ = qkvg(1, 80, 2, 8)
  k = k.at[:, :30].multiply(1e3)
  ids = jnp.asarray(np.repeat([0, 1], [30, 50])[None])
  actual = jax.jit(split(softmax()))(q, k, v, ids)
  expected = jax.jit(whole(softmax()))(q, k, v, ids)
  assert_close([actual], [expected])


def test_masked_shards_hold_nothing(qkvg, run_with_gradients, assert_close):
  """A padding tail of a shard and a half; one row is padding alone."""
  inputs = qkvg(2, 80, 2, 8)
  mask = jnp.arange(80)[None] < jnp.asarray([[51], [0]])
  kwargs = dict(is_causal=True, mask=mask)
  actual = run_with_gradients(split(softmax()), inputs, **kwargs)
  expected = run_with_gradients(whole(softmax()), inputs, **kwargs)
  assert_close(actual, expected)
  assert not np.any(actual[0][1])


def test_only_states_are_sent(qkvg):
  """No device receives queries, keys or values: 128 positions of width 8."""
  q, k, v, _ = qkvg(1, 128 * N, 2, 8)

  def loss(*x):
    return jnp.sum(split(softmax())(*x, is_causal=True) ** 2)

  grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  text = grad.lower(q, k, v).as_text()
  sent = re.findall(r'"stablehlo.all_gather".*?-> tensor<([0-9x]+)xf32>', text)
  assert sent
  assert all(math.prod(map(int, s.split('x'))) <= N * 2 * 9 * 24 for s in sent)
  assert 'all_to_all' not in text and 'collective_permute' not in text


def test_runs_reach_through_shards_of_one_run():
  first = jnp.asarray([[0, 1, 1, 1], [0, 1, 1, 1]]).T
  last = jnp.asarray([[1, 1, 1, 2], [1, 1, 1, 2]]).T
  is_one_run = jnp.asarray(
    [[False, True, True, False], [False, True, False, True]]
  )
  edges = sequence_parallel.Edges(first, last, is_one_run.T)
  reaches = [sequence_parallel.reaches(edges, i).T.tolist() for i in range(N)]
  no, yes = False, True
  assert reaches == [
    [[no] * 4, [no] * 4],
    [[yes, no, no, no], [yes, no, no, no]],
    [[yes, yes, no, no], [yes, yes, no, no]],
    [[yes, yes, yes, no], [no, no, yes, no]],
  ]


@pytest.mark.parametrize('implementation', ['scan', 'reference'])
def test_other_implementations_are_refused(implementation, qkvg):
  q, k, v, _ = qkvg(1, 8, 2, 8)
  attention = softmax(implementation=implementation)
  with pytest.raises(ValueError, match='split over the mesh axis'):
    split(attention)(q, k, v, is_causal=True)


def test_keys_of_other_positions_are_refused(qkvg):
  q, k, v, _ = qkvg(1, 8, 2, 8)
  with pytest.raises(ValueError, match='needs queries and keys of the same'):
    split(softmax())(q[:, :4], k, v)


@pytest.mark.slow
@pytest.mark.parametrize('is_packed', [True, False])
def test_long_causal_matches_one_device(
  is_packed, qkvg, run_with_gradients, assert_close
):
  L = 16_384
  inputs = qkvg(1, L, 2, 32)
  attention = make_fast_softmax_attention(nb_features=64)
  kwargs = dict(is_causal=True)
  if is_packed:
    kwargs['ids'] = jnp.asarray(
      np.repeat(np.arange(5), [300, 3000, 9700, 1, L - 13_001])[None]
    )
  actual = run_with_gradients(split(attention), inputs, **kwargs)
  expected = run_with_gradients(whole(attention), inputs, **kwargs)
  assert_close(actual, expected, tolerance=1e-5)
