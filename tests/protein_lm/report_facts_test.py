"""Numbers of a report against loops over residues."""

import dataclasses

import numpy as np
import pytest

from protein_lm import baselines, report_facts, vocab
from protein_lm.proteins import from_sequences
from protein_lm.scores import Scores

PROTEINS = from_sequences({'a': 'MACD' * 30, 'b': 'MKX' * 20, 'c': 'W' * 7})
T = len(PROTEINS.residues)


@pytest.fixture
def scores():
  rng = np.random.default_rng(0)
  return Scores(
    rng.uniform(1, 3, T).astype(np.float32),
    PROTEINS.residues < 20,
    predicted=rng.integers(0, 29, T).astype(np.int8),
  )


@pytest.fixture(autouse=True)
def _small_bins(monkeypatch):
  monkeypatch.setattr(report_facts, 'MIN_RESIDUES', 1)


def test_perplexity_by_length_is_that_of_the_proteins_so_long(scores):
  curve = report_facts.by_length(scores, PROTEINS, [baselines.uniform()])
  assert curve.labels == ['1-49', '50-99', '100-199']
  assert curve.counts.tolist() == [7, 40, 120]
  assert curve.values['model'][2] == pytest.approx(
    np.exp(scores.nll[:120].mean())
  )
  assert curve.values['uniform'] == pytest.approx(25)


def test_perplexity_by_position_leaves_the_first_residue_out(scores):
  curve = report_facts.by_position(scores, PROTEINS, [])
  assert curve.labels[0] == '2-4' and curve.counts[0] == 3 + 2 + 3
  first = [1, 2, 3, 121, 123, 181, 182, 183]
  assert curve.values['model'][0] == pytest.approx(
    np.exp(scores.nll[first].mean())
  )


def test_bins_of_few_residues_are_left_out(scores, monkeypatch):
  monkeypatch.setattr(report_facts, 'MIN_RESIDUES', 41)
  curve = report_facts.by_length(scores, PROTEINS, [])
  assert curve.labels == ['100-199'] and len(curve.values['model']) == 1


def test_perplexity_by_residue(scores):
  perplexity_A, count_A = report_facts.by_residue(scores, PROTEINS)
  w = vocab.STANDARD_RESIDUES.index('W')
  assert count_A[w] == 7 and count_A.sum() == scores.scored.sum()
  assert perplexity_A[w] == pytest.approx(np.exp(scores.nll[-7:].mean()))
  assert np.isnan(perplexity_A[vocab.STANDARD_RESIDUES.index('Y')])


def test_confusion_counts_pairs(scores):
  share_AA = report_facts.confusion(scores, PROTEINS)
  w = vocab.STANDARD_RESIDUES.index('W')
  for a in range(20):
    assert share_AA[w, a] == pytest.approx((scores.predicted[-7:] == a).mean())
  assert np.isnan(share_AA[vocab.STANDARD_RESIDUES.index('Y')]).all()


def test_one_protein_of_a_cluster_is_chosen_and_the_longest_that_fits():
  proteins = dataclasses.replace(PROTEINS, clusters=['x', 'y', 'y'])
  assert report_facts.choose_proteins(proteins, 5, 100, 510) == [1]
  assert report_facts.choose_proteins(proteins, 5, 200, 510) == [0, 1]
  assert report_facts.choose_proteins(PROTEINS, 2, 200, 510) == [0, 1]
  assert report_facts.choose_proteins(PROTEINS, 2, 3, 510) == [2]
  assert report_facts.choose_proteins(PROTEINS, 2, 3, 6) == []


def test_letters_of_a_protein():
  assert report_facts.letters_of(PROTEINS, 1) == 'MKX' * 20
