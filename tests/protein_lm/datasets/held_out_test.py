"""The held-out families, by the rule, on the table that ships and others."""

import gzip

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


# --- collections of less than 10,000 proteins


@pytest.mark.parametrize(
  'num_proteins, size, num_held', [(9, 1, 1), (50, 2, 6), (9_999, 100, 1_000)]
)
def test_a_tenth_of_a_small_collection_is_held_out(
  num_proteins, size, num_held
):
  domains = [
    d for i in range(30) for d in family(f'PF{i}', *numbered(f'{i}p', size))
  ]
  # Groups are whole, so the last one may pass the tenth.
  assert len(held_out.hold_out(domains, num_proteins).envelopes) == num_held


def test_groups_larger_than_a_tenth_of_a_small_collection_stay_in():
  domains = family('PF1', *numbered('p', 6)) + family('PF2', *numbered('q', 5))
  held = held_out.hold_out(domains, 50)
  assert held.families == {'PF2'} and len(held.envelopes) == 5


# --- a table of the user's own


@pytest.fixture
def read(tmp_path):
  """Writes a table and reads it: (protein, family, start, end) of a line."""

  def read(text, name='table.csv'):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [
      (d.protein_id, d.family, d.start, d.end)
      for d in held_out.read_domains(path)
    ]

  return read


@pytest.mark.parametrize(
  'text',
  [
    'P1,PF1,3,20\nP2,PF2,1,9\n',
    'P1\tPF1\t3\t20\nP2\tPF2\t1\t9',
    'accession,pfam,start,end\nP1,PF1,3,20\nP2,PF2,1,9\n',
    'ID\tscore\tFamily\tEnd\tStart\nP1\t5\tPF1\t20\t3\nP2\t\tPF2\t9\t1\n',
    '\ufeffaccession,pfam,start,end\r\nP1,PF1,3,20\r\nP2,PF2,1,9\r\n',
    'P1,PF1,3,20\n\nP2,PF2,1,9,and,more\n\n',
    'sp|P1|A_HUMAN, PF1 ,3,20\ntr|P2|B_HUMAN,PF2,1,9\n',
    '"P1","PF1","3","20"\n"P2","PF2","1","9"\n',
  ],
)
def test_a_table_may_be_written_in_many_ways(read, text):
  expected = [('P1', 'PF1', 3, 20), ('P2', 'PF2', 1, 9)]
  assert read(text) == expected
  assert read(gzip.compress(text.encode()), 'table.tsv.gz') == expected


@pytest.mark.parametrize(
  'text',
  ['P1,PF1\n', 'P1,PF1,,\n', 'protein_id,pfam_id\nP1,PF1\n', 'P1,PF1,0,0\n'],
)
def test_a_table_may_have_no_coordinates(read, text):
  assert read(text) == [('P1', 'PF1', 0, 0)]
  held = held_out.hold_out([Domain('P1', 'PF1', 0, 0)], 10)
  assert held.envelopes == {'P1': ()} and held.pure == {'P1'}


@pytest.mark.parametrize(
  'line',
  [
    'P1',
    'P1,',
    ',PF1',
    'P1,PF1,three,20',
    'P1,PF1,20,3',
    'P1,PF1,3',
    'P1,PF1,,20',
    'P1,PF1,-1,20',
    'P1,PF1,1.5,20',
    '   ',
  ],
)
@pytest.mark.parametrize('header', ['', 'accession,pfam,start,end\n'])
def test_a_bad_line_is_told(read, header, line):
  number = 3 if header else 2
  with pytest.raises(ValueError, match=rf'table\.csv:{number} holds .*is not'):
    read(f'{header}P0,PF1,3,20\n{line}\n')


@pytest.mark.parametrize('text', ['', '\n\n', 'accession,pfam\n'])
def test_a_table_without_a_domain_is_refused(read, text):
  with pytest.raises(ValueError, match=r'table\.csv holds no domain'):
    read(text)


def test_a_damaged_table_is_refused(read):
  text = gzip.compress(b'P1,PF1,3,20\n' * 1_000)
  with pytest.raises(ValueError, match='truncated or damaged gzip'):
    read(text[:-9], 'table.csv.gz')


def test_an_absent_table_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'no\.csv cannot be read'):
    held_out.read_domains(tmp_path / 'no.csv')


def test_a_stray_quote_is_told_with_its_line(tmp_path):
  path = tmp_path / 't.csv'
  path.write_text('p1,"PF1,1,20\np2,PF2,1,3\n')
  with pytest.raises(ValueError, match='t.csv:1 holds'):
    held_out.read_domains(path)
