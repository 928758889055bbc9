"""A tiny model, as if it were loaded from a folder."""

import jax
import pytest


@pytest.fixture(scope='session')
def make_loaded():
  """A function of a model class and its options to a LoadedModel.

  Rows are of 48 tokens; the weights are far from those of a model that says
  that every token is alike.
  """
  from flax import nnx

  from fast_attention import make_fast_softmax_attention
  from protein_lm import models, objectives, train_step
  from protein_lm.loading import LoadedModel

  def make(cls=models.FlaxLM, **options):
    model = cls(
      **{
        'attention_fn': make_fast_softmax_attention(nb_features=8),
        'emb_dim': 16,
        'qkv_dim': 16,
        'mlp_dim': 16,
        'num_heads': 2,
        'num_layers': 1,
        'max_len': 48,
        'rngs': nnx.Rngs(0),
      }
      | options
    )
    graphdef, params = train_step.split_model(model)
    return LoadedModel(
      work_dir='runs/tiny',
      step=3,
      graphdef=graphdef,
      params=jax.tree.map(lambda x: 3 * x, params),  # far from uniform
      attention_stats=(),
      config='',
      data_arguments={'max_len': 48, 'batch_size': 2},
      objective=objectives.make_objective(model.objective),
      metadata={},
    )

  return make
