"""Embeddings in memory: vectors of residues, whatever the batch."""

import jax
import numpy as np
import pytest
from flax import nnx

from protein_lm import embedding, embedding_arrays, models, train_step, vocab
from protein_lm.loading import LoadedModel

LETTERS = list(vocab.STANDARD_RESIDUES)
SEQUENCES = [
  ''.join(np.random.default_rng(n).choice(LETTERS, n)) for n in (1, 30, 7, 14)
]


def load_fake(cls, **options):
  """What protein_lm.load gives, of a model that was not trained."""
  model = cls(
    emb_dim=8,
    qkv_dim=8,
    mlp_dim=8,
    num_heads=2,
    num_layers=2,
    max_len=16,
    rngs=nnx.Rngs(0),
    **options,
  )
  graphdef, params = train_step.split_model(model)
  data_arguments = {'max_len': 16, 'batch_size': 2}
  return LoadedModel(
    'run', 1, graphdef, params, (), 'a = 1', data_arguments, None, {}
  )


@pytest.fixture(scope='module')
def bert():
  return load_fake(models.FlaxBERT, position_embedding='rotary')


@pytest.fixture(scope='module')
def lm():
  return load_fake(models.FlaxLM)


def tokens_of(sequence):
  return [vocab.BOS_ID, *vocab.encode(sequence).tolist(), vocab.EOS_ID]


def hidden_of(loaded, rows):
  """The last layer's output of rows of tokens."""
  longest = max(map(len, rows))
  rows = [row + [vocab.PAD_ID] * (longest - len(row)) for row in rows]
  hidden = jax.jit(lambda model, tokens: model.hidden(tokens))
  return np.asarray(hidden(loaded.model, np.array(rows, np.int32)))


@pytest.fixture(scope='module')
def embedded(bert):
  include = ('mean', 'max', 'last', 'bos', 'per_tok')
  return embedding.embed(bert, SEQUENCES, include=include)


def test_vectors_are_of_residues_alone(bert, embedded):
  x_BLD = hidden_of(bert, [tokens_of(sequence) for sequence in SEQUENCES])
  for x_LD, sequence, found in zip(x_BLD, SEQUENCES, embedded, strict=True):
    x_LD = x_LD[: len(sequence) + 2]
    for key, expected in {
      'representations': x_LD[1:-1],
      'mean_representations': x_LD[1:-1].mean(axis=0),
      'max_representations': x_LD[1:-1].max(axis=0),
      'last_representations': x_LD[-2],
      'bos_representations': x_LD[0],
    }.items():
      np.testing.assert_allclose(found[key][-1], expected, atol=2e-5)


def test_results_are_in_order(embedded):
  assert [x['id'] for x in embedded] == ['0', '1', '2', '3']
  assert [x['length'] for x in embedded] == [1, 30, 7, 14]


def test_a_protein_gives_the_same_alone(bert, embedded):
  (alone,) = embedding.embed(bert, {'x': SEQUENCES[3]}, batch_size=1)
  assert alone['id'] == 'x'
  np.testing.assert_allclose(
    alone['mean_representations'][-1],
    embedded[3]['mean_representations'][-1],
    atol=2e-5,
  )


def test_windows_of_a_learned_table_are_put_together(lm):
  # Tokens 0-15 and, taken from 16 on, 8-23 and 16-31 of BOS, 30 residues, EOS.
  tokens = tokens_of(SEQUENCES[1])
  rows = hidden_of(lm, [tokens[i : i + 16] for i in (0, 8, 16)])
  x_LD = np.concatenate([rows[0][1:], rows[1][8:], rows[2][8:15]])
  include = ('mean', 'max', 'last', 'per_tok')
  (found,) = embedding.embed(lm, [SEQUENCES[1]], include=include)
  for key, expected in {
    'representations': x_LD,
    'mean_representations': x_LD.mean(axis=0),
    'max_representations': x_LD.max(axis=0),
    'last_representations': x_LD[-1],
  }.items():
    np.testing.assert_allclose(found[key][-1], expected, atol=2e-5)


def test_layers_are_keyed_as_asked_for(lm):
  (found,) = embedding.embed(lm, ['ACD'], repr_layers=(0, -1, 2))
  vectors = found['mean_representations']
  assert list(vectors) == [0, -1, 2]
  np.testing.assert_array_equal(vectors[-1], vectors[2])


@pytest.mark.parametrize(
  'options, message',
  [
    ({'include': ('bos',)}, 'FlaxLM is causal, its BOS sees no residue'),
    ({'include': ('median',)}, "bos or per_tok, got 'median'"),
    ({'include': ()}, 'include must list some'),
    ({'include': ('mean', 'mean')}, 'names mean twice'),
    ({'repr_layers': (3,)}, 'there is no layer 3: this model has 2'),
    ({'repr_layers': (-4,)}, 'there is no layer -4'),
    ({'repr_layers': ()}, 'names no layer'),
    ({'repr_layers': (1, 1)}, 'names 1 twice'),
    ({'repr_layers': (0.5,)}, 'whole numbers, got 0.5'),
    ({'batch_size': 0}, 'batch_size must be a whole number, at least 1'),
    ({'max_len': 17}, 'max_len=17 is beyond the 16 tokens'),
  ],
)
def test_what_cannot_be_given_is_refused(lm, options, message):
  with pytest.raises(ValueError, match=message):
    embedding.embed(lm, ['ACD'], **options)


@pytest.mark.parametrize(
  'sequences, message',
  [
    ('ACD', r'write \[sequence\]'),
    (['ACD', 'A-C'], "sequence 1: '-' at position 2"),
    ({'x': ''}, "sequence 'x' holds no residue"),
  ],
)
def test_what_is_no_protein_is_refused(lm, sequences, message):
  with pytest.raises(ValueError, match=message):
    embedding.embed(lm, sequences)


def test_letters_are_read_as_in_a_file():
  residues = embedding.encode('x', 'acj*')
  np.testing.assert_array_equal(residues, vocab.encode('ACX'))


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_an_error(lm):
  params = jax.tree.map(lambda x: x * np.nan, lm.params)
  broken = LoadedModel(
    *('run', 1, lm.graphdef, params, (), '', lm.data_arguments, None, {})
  )
  with pytest.raises(ValueError, match='not finite for x'):
    embedding.embed(broken, {'x': 'ACD'})


def test_what_float16_cannot_hold_is_refused():
  with pytest.raises(ValueError, match='1e.05 does not fit into float16'):
    embedding_arrays.to_dtype(np.array([1e5], np.float32), 'float16')
