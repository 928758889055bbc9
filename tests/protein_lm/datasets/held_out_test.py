"""The held-out families, by the rule, on the table that ships."""

import pytest

from protein_lm.datasets import held_out
from protein_lm.datasets.held_out import Domain


def family(name, *proteins):
  return [Domain(protein, name, 1, 9) for protein in proteins]


def numbered(prefix, size):
  return [f'{prefix}{i}' for i in range(size)]


@pytest.fixture(scope='module')
def held():
  return held_out.hold_out(held_out.read_domains())


def test_the_table_is_whole():
  domains = held_out.read_domains()
  assert len(domains) == 12_582
  assert len({domain.family for domain in domains}) == 1_154
  assert len({domain.protein_id for domain in domains}) == 6_342


def test_the_rule_holds_out_what_is_published(held):
  assert len(held.groups) == 37 and len(held.families) == 114
  assert len(held.envelopes) == 1_001 and len(held.pure) == 915


def test_envelopes_are_those_of_held_out_families(held):
  expected = {
    (d.protein_id, (d.start, d.end))
    for d in held_out.read_domains()
    if d.family in held.families
  }
  found = {
    (id_, span) for id_, spans in held.envelopes.items() for span in spans
  }
  assert found == expected


def test_groups_outside_10_to_150_proteins_stay_in():
  for size, is_held in ((9, False), (10, True), (150, True), (151, False)):
    held = held_out.hold_out(family('PF1', *numbered('p', size)))
    assert bool(held.groups) == is_held


def test_families_that_share_half_of_the_smaller_one_are_one_group():
  domains = family('PF1', *numbered('p', 20))
  for shared, num_groups in ((5, 1), (4, 2)):
    other = numbered('p', shared) + numbered('q', 10 - shared)
    held = held_out.hold_out(domains + family('PF2', *other))
    assert len(held.groups) == num_groups


def test_a_protein_that_shares_a_family_outside_is_not_pure():
  domains = family('PF1', *numbered('p', 30))
  domains += family('PF2', 'p0', *numbered('q', 200))  # too large to hold out
  held = held_out.hold_out(domains)
  assert held.envelopes.keys() == set(numbered('p', 30))
  assert held.envelopes.keys() - held.pure == {'p0'}


def test_holding_out_stops_at_1000_proteins():
  domains = [
    d for i in range(30) for d in family(f'PF{i}', *numbered(f'{i}p', 99))
  ]
  assert len(held_out.hold_out(domains).groups) == 11
