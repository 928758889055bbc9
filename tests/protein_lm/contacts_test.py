"""Contacts against the loop over residues and amino acids."""

import jax
import numpy as np
import pytest
from flax import nnx

from protein_lm import contacts, loading, models, objectives, train_step, vocab

SEQUENCE = 'MKXAY'


def make_loaded(cls):
  model = cls(
    emb_dim=16,
    qkv_dim=16,
    mlp_dim=16,
    num_heads=2,
    num_layers=1,
    max_len=8,
    rngs=nnx.Rngs(0),
  )
  graphdef, params = train_step.split_model(model)
  params = jax.tree.map(lambda x: 3 * x, params)
  objective = objectives.make_objective(cls.objective)
  arguments = {'max_len': 8, 'batch_size': 4}
  return loading.LoadedModel(
    'run', 1, graphdef, params, (), '', arguments, objective, {}
  )


@pytest.mark.parametrize('cls', [models.FlaxLM, models.FlaxBERT])
def test_jacobian_is_that_of_a_loop(cls):
  loaded = make_loaded(cls)
  found = contacts.categorical_jacobian(loaded, SEQUENCE, batch_size=7)
  ids = np.array([vocab.encode(f'{SEQUENCE}')], np.int32)
  tokens = np.pad(ids, ((0, 0), (1, 1)))
  tokens[0, 0], tokens[0, -1] = vocab.BOS_ID, vocab.EOS_ID
  first = 0 if cls.causal else 1

  @jax.jit
  def logits(tokens):
    return loaded.model(tokens)[0, first : first + 5, :20]

  for i, a in ((0, 3), (2, 0), (4, 19)):
    mutated = tokens.copy()
    mutated[0, i + 1] = a
    expected = logits(mutated) - logits(tokens)
    np.testing.assert_allclose(found[i, a], expected, atol=1e-4)
  if cls.causal:
    assert not found[2, :, :3].any() and found[2, :, 3:].any()


def test_contacts_are_the_corrected_norm_of_the_centred_jacobian():
  jacobian = np.random.default_rng(0).normal(size=(4, 20, 4, 20))
  centred = jacobian.copy()
  for axis in range(4):
    centred = centred - centred.mean(axis, keepdims=True)
  centred = (centred + centred.transpose(2, 3, 0, 1)) / 2
  norm = np.linalg.norm(centred, axis=(1, 3)) * (1 - np.eye(4))
  corrected = norm - np.outer(norm.sum(1), norm.sum(0)) / norm.sum()
  expected = corrected * (1 - np.eye(4))
  found = contacts.contacts_from_jacobian(jacobian)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(found, found.T, atol=1e-6)


def test_the_correction_leaves_rows_that_sum_to_zero():
  x = np.random.default_rng(0).random((6, 6))
  corrected = contacts.average_product_correction(x)
  np.testing.assert_allclose(corrected.sum(axis=0), 0, atol=1e-12)
  np.testing.assert_allclose(corrected.sum(axis=1), 0, atol=1e-12)


def test_two_coupled_residues_stand_out():
  jacobian = 0.01 * np.random.default_rng(0).normal(size=(8, 20, 8, 20))
  jacobian[2, :, 6] += np.eye(20)
  for is_causal in (False, True):
    found = contacts.contacts_from_jacobian(jacobian.copy(), is_causal)
    assert np.unravel_index(found.argmax(), found.shape) == (2, 6)


@pytest.mark.parametrize(
  'sequence, message',
  [('', 'empty'), ('MK1', 'no residue'), ('A' * 2049, 'cut out a domain')],
)
def test_refused(sequence, message):
  with pytest.raises(ValueError, match=message):
    contacts.contacts(None, sequence)
