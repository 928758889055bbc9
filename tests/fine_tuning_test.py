"""Fine-tuning on a small FASTA: from a run's weights, in part, to labels."""

import dataclasses
from typing import Any

import gin
import jax
import numpy as np
import pytest

from protein_lm import (
  attention_swap,
  checkpoint,
  config,
  data,
  init_from,
  label_evaluation,
  label_objectives,
  labels,
  lora,
  objectives,
  optimizer,
  vocab,
)
from protein_lm import train_step as steps
from protein_lm.evaluation import evaluate_batches

EXACT = 'FlaxModel.attention_fn = @exact_attention()'
GENERALIZED = 'FlaxModel.attention_fn = @make_fast_generalized_attention()'


@pytest.fixture(autouse=True)
def _clear_gin():
  config.register()
  yield
  config.clear()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """120 proteins in my.fasta, with tables beside it.

  The share of A differs from protein to protein: it is the label in share.csv.
  Whether a residue is A is the label of residues in is_a.csv.
  """
  generator = np.random.default_rng(0)
  folder = tmp_path_factory.mktemp('tuning')
  fasta, share, is_a, weights = [], ['id,label'], ['id,label'], ['id,weight']
  for i in range(120):
    p = generator.uniform(0.05, 0.7)
    length = int(generator.integers(20, 90))
    shares = [p, *[(1 - p) / 19] * 19]
    letters = list(vocab.STANDARD_RESIDUES)
    sequence = ''.join(generator.choice(letters, length, p=shares))
    fasta.append(f'>P{i}\n{sequence}\n')
    share.append(f'P{i},{sequence.count("A") / length:.4f}')
    is_a.append(f'P{i},{"".join("y" if x == "A" else "n" for x in sequence)}')
    weights.append(f'P{i},{i % 3}')
  (folder / 'my.fasta').write_text(''.join(fasta))
  for name, rows in (('share', share), ('is_a', is_a), ('weights', weights)):
    (folder / f'{name}.csv').write_text('\n'.join(rows) + '\n')
  return folder


@dataclasses.dataclass
class Run:
  """A run of the tiny model as far as a test wants it."""

  graphdef: Any
  objective: Any
  data: Any
  state: Any
  report: Any

  def evaluate(self, evaluate=evaluate_batches):
    """Metrics of the whole of validation."""
    batches = self.data.eval_batches(self.data.proteins('validation'))
    return evaluate(self.score_step, steps.weights_of(self.state), batches)

  @property
  def score_step(self):
    return steps.make_score_step(self.graphdef, self.objective)


def train(folder, *bindings, num_steps=6, source=None, labelled=None):
  """Trains as run_experiment does, without its log and its checkpoints."""
  config.clear()
  every = ["data.source = '%s'" % (folder / 'my.fasta'), EXACT]
  every.append('splits.fractions = (0.75, 0.25, 0.0)')
  if labelled:
    every.append("data.labels = '%s'" % (folder / labelled))
  config.parse(['configs/tiny.gin'], [*every, *bindings])
  model_cls = gin.get_bindings('experiment')['model_cls']
  graphdef, abstract = steps.abstract_model(model_cls)
  objective = objectives.make_objective(model_cls.objective)
  tx, _ = optimizer.make_optimizer(num_steps)
  train_step = steps.make_train_step(graphdef, tx, objective)
  opened = data.open_data(folder)
  label_objectives.check(steps.merge_model(graphdef, abstract), opened)
  rng = jax.random.key(3)

  @jax.jit
  def make_state():
    return steps.init_state(steps.init_params(model_cls, rng), tx, graphdef)

  state, report = make_state(), None
  if source is not None:
    state, report = init_from.start(source, 'latest', state, config.operative())
  for step in range(num_steps):
    batch = opened.train_batch(0, step)
    state, _ = train_step(state, batch, jax.random.fold_in(rng, step))
  return Run(graphdef, objective, opened, state, report)


@pytest.fixture(scope='module')
def source(folder):
  """The folder of a language model with a checkpoint."""
  config.register()
  run = train(folder, 'make_optimizer.learning_rate = 1e-2')
  checkpoint.save(
    folder / 'lm', 6, run.state, config=config.config_str(), metadata={}
  )
  config.clear()
  return folder / 'lm'


def stored(source):
  return checkpoint.read_arrays(source)


def by_name(params):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x)
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]
  }


@pytest.mark.slow
def test_lora_learns_while_the_base_stays_bit_for_bit(folder, source):
  run = train(
    folder,
    'FlaxModel.lora_rank = 2',
    "make_optimizer.trainable = ('*/lora_?',)",
    'make_optimizer.learning_rate = 1e-2',
    source=source,
  )
  found, before = by_name(run.state.params), stored(source)
  for name, array in before.items():
    np.testing.assert_array_equal(found[name], array)
  factors = found.keys() - before.keys()
  assert len(factors) == 4 and set(run.report.new) == factors
  assert all(found[name].any() for name in factors)
  moments = jax.tree.leaves(run.state.opt_state)
  assert sum(x.size for x in moments) < sum(x.size for x in before.values())
  assert not lora.has_factors(lora.merge(run.state.params, 16.0))


@pytest.mark.slow
def test_frozen_layers_stay_bit_for_bit(folder, source):
  run = train(folder, 'make_optimizer.frozen_layers = 1', source=source)
  found, before = by_name(run.state.params), stored(source)
  assert found.keys() == before.keys()
  for name, array in before.items():
    if name.startswith('blocks/'):
      np.testing.assert_array_equal(found[name][0], array[0])
      # A key's bias moves no softmax, so it need not move.
      assert name == 'blocks/key/bias' or (found[name][1] != array[1]).any()
    elif name.startswith(('embed/', 'position_table')):
      np.testing.assert_array_equal(found[name], array)
    else:
      assert (found[name] != array).any()


@pytest.mark.slow
def test_weights_of_proteins_weigh_their_gradients(folder):
  """The loss is the weighted mean of the losses of the proteins."""
  run = train(
    folder,
    "data.sequence_weights = '%s'" % (folder / 'weights.csv'),
    "data.layout = 'padded'",
    'FlaxModel.dropout_rate = 0.0',
    num_steps=0,
  )
  batch = run.data.train_batch(0, 0)
  weight_B = batch.weights.max(1)
  assert len(set(weight_B)) > 1

  def loss(params, weights_BL):
    model = steps.merge_model(run.graphdef, params)
    scores = run.objective.train_scores(
      model, batch._replace(weights=weights_BL), None
    )
    sums = objectives.sums(scores, batch.tokens)
    return sums['loss'], sums['num_tokens']

  grad = jax.jit(jax.grad(loss, has_aux=True))
  total, num_tokens = grad(run.state.params, batch.weights)
  counts_BL = (batch.weights > 0) | (weight_B[:, None] == 0)
  rows = []
  for row in range(len(weight_B)):
    alone_BL = np.zeros_like(batch.weights)
    alone_BL[row] = counts_BL[row] * (batch.segment_ids[row] > 0)
    rows.append(grad(run.state.params, alone_BL)[0])
  expected = jax.tree.map(
    lambda *g: sum(w * x for w, x in zip(weight_B, g, strict=True)), *rows
  )
  assert num_tokens == pytest.approx((batch.weights[:, 1:]).sum())
  for a, b in zip(*map(jax.tree.leaves, (total, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_a_head_learns_the_share_of_a_residue(folder, source):
  run = train(
    folder,
    'experiment.model_cls = @FlaxRegressor',
    'make_optimizer.learning_rate = 1e-2',
    'make_optimizer.schedule = "constant"',
    'FlaxModel.dropout_rate = 0.0',
    num_steps=60,
    source=source,
    labelled='share.csv',
  )
  assert run.report.new == ('head/bias', 'head/kernel')
  metrics = run.evaluate(label_evaluation.make_evaluate(run.data))
  assert metrics['pearson'] > 0.9 and metrics['spearman'] > 0.85
  assert metrics['loss'] < 0.3
  num_labels = len(run.data.proteins('validation'))
  assert metrics['num_labels'] == num_labels


@pytest.mark.slow
def test_a_head_tells_which_residues_are_a(folder):
  run = train(
    folder,
    'experiment.model_cls = @FlaxClassifier',
    "FlaxClassifier.classes = ('n', 'y')",
    "FlaxClassifier.head_pooling = 'token'",
    "data.label_classes = ('n', 'y')",
    "data.labels_per = 'residue'",
    'make_optimizer.learning_rate = 1e-2',
    num_steps=20,
    labelled='is_a.csv',
  )
  metrics = run.evaluate(label_evaluation.make_evaluate(run.data))
  assert metrics['accuracy'] > 0.99
  proteins = run.data.proteins('validation')
  assert metrics['num_labels'] == len(proteins.residues)


@pytest.mark.slow
def test_predictions_of_a_long_protein_are_the_mean_of_its_windows(folder):
  run = train(
    folder,
    'experiment.model_cls = @FlaxRegressor',
    'data.max_len = 16',
    num_steps=0,
    labelled='share.csv',
  )
  proteins = run.data.proteins('validation')
  batches = run.data.eval_batches(proteins)
  weights = steps.weights_of(run.state)
  found = label_evaluation.predict(
    run.score_step, weights, batches, proteins, 'protein'
  )
  windows = [[] for _ in proteins.ids]
  for batch in batches:
    outputs = np.asarray(run.score_step(weights, batch.batch, None))
    pairs = np.stack([batch.protein_BL, batch.batch.segment_ids], -1)
    for b in range(len(pairs)):
      for protein, segment in np.unique(pairs[b], axis=0):
        inside = batch.batch.segment_ids[b] == segment
        if segment:
          windows[protein].append(outputs[b][inside][-1, 0])
  assert max(map(len, windows)) > 3
  np.testing.assert_allclose(
    found[:, 0], [np.mean(x) for x in windows], rtol=1e-5
  )


@pytest.mark.slow
def test_a_swap_of_attention_is_measured_before_and_after(folder, source):
  run = train(folder, GENERALIZED, num_steps=0, source=source)
  text = config.config_str()
  batches = run.data.eval_batches(run.data.proteins('validation'))
  weights = steps.weights_of(run.state)
  report, why = attention_swap.swap_report(
    source, 'latest', run.graphdef, weights, run.score_step, batches
  )
  assert config.config_str() == text and why == ''
  after = run.evaluate()
  assert report.after == after
  exact = train(folder, num_steps=0, source=source)
  assert report.before == exact.evaluate()
  assert report.metrics == {
    'swap/loss_before': report.before['loss'],
    'swap/accuracy_before': report.before['accuracy'],
    'swap/loss_after': after['loss'],
    'swap/accuracy_after': after['accuracy'],
  }
  assert report.before['loss'] != after['loss']
  assert str(report).startswith('swap of attention on validation: exact acc')
  same = attention_swap.swap_report(
    source, 'latest', exact.graphdef, weights, exact.score_step, batches
  )
  assert same == (None, '')


def test_labels_of_residues_follow_their_protein(folder):
  table = labels.LabelTable(folder / 'is_a.csv', 'residue', ('n', 'y'))
  proteins = data.open_data(folder, str(folder / 'my.fasta')).proteins('train')
  values = table.of(proteins.ids, proteins.lengths).values
  np.testing.assert_array_equal(
    values, proteins.residues == vocab.RESIDUES.index('A')
  )
