"""Figures of a prepared data set draw what data may hold."""

import collections

import pytest

from protein_lm import data_facts, data_figures, html_page
from protein_lm.proteins import from_sequences


@pytest.mark.parametrize('name', ['lengths', 'letters', 'sizes'])
def test_one_protein_of_one_residue_is_drawn(name):
  proteins = from_sequences({'a': 'M'})
  split = data_facts.SplitFacts('train', 1, 1, 'ab' * 32, proteins)
  plot = getattr(data_figures, f'plot_{name}')
  assert html_page.data_url(plot([split])).startswith('data:image/svg')


def test_any_name_of_an_organism_is_drawn():
  names = collections.Counter({'$\N{CJK UNIFIED IDEOGRAPH-4E00}\n^' * 30: 1})
  assert html_page.data_url(data_figures.plot_organisms(names))
