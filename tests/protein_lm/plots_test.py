"""Figures show what they are given."""

import numpy as np

from protein_lm import evaluation, plots
from protein_lm.proteins import from_sequences

RECORDS = [
  {'step': 1, 'train/perplexity': 24.0},
  {'step': 2, 'train/perplexity': 20.0, 'validation/residue_perplexity': 19.0},
  {'step': 2, 'train/perplexity': 21.0},
]


def test_learning_curve_draws_each_split_and_names_each_baseline():
  lines = {'unigram': 18.09, 'trigram': 17.59, '5-gram': 17.23}
  (axes,) = plots.learning_curve(RECORDS, lines).axes
  labels = [text.get_text() for text in axes.get_legend().get_texts()]
  assert labels == ['train (EOS included)', 'validation']
  np.testing.assert_array_equal(axes.lines[0].get_ydata(), [24, 21])
  texts = {text.get_text() for text in axes.texts}
  assert texts == {'unigram 18.09', 'trigram 17.59', '5-gram 17.23'}


def test_learning_curve_without_records_or_baselines_is_drawn(tmp_path):
  plots.save(plots.learning_curve([], {}), tmp_path / 'empty.png')
  assert (tmp_path / 'empty.png').read_bytes().startswith(b'\x89PNG')


def test_labels_keep_apart_and_move_little():
  places = plots._spread([1.0, 1.1, 1.2, 9.0], 1.0)
  np.testing.assert_allclose(places, [0.1, 1.1, 2.1, 9.0])


def test_accuracy_by_letter_counts_scored_residues():
  proteins = from_sequences({'a': 'AACX'})
  scored, correct = np.array([1, 1, 1, 0], bool), np.array([1, 0, 1, 1], bool)
  scores = evaluation.Scores(np.zeros(4), scored, correct)
  accuracy, count = plots.accuracy_by_letter(scores, proteins)
  np.testing.assert_array_equal(accuracy[:3], [0.5, 1, np.nan])
  assert count.tolist()[:3] == [2, 1, 0] and count.sum() == 3


def test_accuracy_figure_orders_letters_by_frequency(tmp_path):
  count = np.zeros(25, int)
  count[[0, 9, 15]] = 5, 50, 20  # A, L, S
  figure = plots.accuracy_per_residue(np.full(25, 0.1), count, 'title')
  (axes,) = figure.axes
  assert [t.get_text() for t in axes.get_xticklabels()] == ['L', 'S', 'A']
  plots.save(figure, tmp_path / 'accuracy.png')
  assert [path.name for path in tmp_path.iterdir()] == ['accuracy.png']


def test_similarity_groups_proteins_by_their_share():
  proteins = from_sequences({f'P{i}': 'AC' for i in range(8)})
  proteins.nearest_train_share[:] = [0, 0, 0, 0.03, 0.03, 0.04, 0.3, np.nan]
  nll = np.repeat([1.0, 2, 3, 1, 1, 4, 2, 9], 2)
  scores = evaluation.Scores(nll, np.ones(16, bool), np.ones(16, bool))
  (axes,) = plots.perplexity_by_share([scores], proteins, 'title').axes
  assert len(axes.lines[0].get_xdata()) == 7
  middles = [bar.lines[0].get_ydata()[0] for bar in axes.containers]
  np.testing.assert_allclose(np.log(middles), [2, 2, 2])


def test_no_figure_where_no_share_is_known():
  proteins = from_sequences({'a': 'AC'})
  scores = evaluation.Scores(np.ones(2), np.ones(2, bool), np.ones(2, bool))
  assert plots.perplexity_by_share([scores], proteins, 'title') is None
