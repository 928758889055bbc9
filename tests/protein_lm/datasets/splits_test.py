"""Every rule for splits, on families of synthetic proteins.

f<family>_<member> share most of their 8-mers; no two families share any.
"""

import gzip
import itertools
import pathlib

import numpy as np
import pytest

from protein_lm import prepare
from protein_lm.datasets import clusters, splits
from protein_lm.datasets.splits import SplitRule

SIZES = pytest.mark.parametrize('max_sequences', [10, 100_000])


def header(id_):
  """Families 0 to 3 are of yeast, 4 and 5 of human, the others of none."""
  family = int(id_[1:].partition('_')[0])
  if family < 4:
    return (
      f'{id_} protein OS=Saccharomyces cerevisiae (strain ATCC 204508 / S288c)'
      ' OX=559292 PE=1'
    )
  return f'{id_} protein OS=Homo sapiens OX=9606' if family < 6 else id_


@pytest.fixture(scope='module')
def sequences(make_families):
  return make_families(40, 3)


@pytest.fixture(scope='module')
def fasta(tmp_path_factory, sequences, write_fasta):
  path = tmp_path_factory.mktemp('families') / 'families.fasta'
  return write_fasta(path, sequences, header)


@pytest.fixture
def split(fasta, tmp_path, read_splits):
  """Prepares by a rule: {split: {id: record}}, counts."""

  def split(path=fasta, **rule):
    builder = prepare.prepare(str(path), tmp_path, rule=SplitRule(**rule))
    return read_splits(builder), builder.info.metadata['counts']

  return split


@pytest.fixture
def write(tmp_path):
  def write(lines, name='table'):
    path = tmp_path / name
    path.write_text(''.join(f'{line}\n' for line in lines))
    return str(path)

  return write


@pytest.fixture
def by_family(sequences, write):
  """A table of clusters: two families each."""
  return write(
    f'f{int(id_[1:].partition("_")[0]) // 2 * 2}_0\t{id_}' for id_ in sequences
  )


def families(members):
  return {id_.partition('_')[0] for id_ in members}


def words(sequence):
  return {sequence[i : i + 8] for i in range(len(sequence) - 7)}


def check_counts(found, counts):
  """Each protein is in one split, and nothing is lost without a count."""
  ids = [id_ for members in found.values() for id_ in members]
  assert len(ids) == len(set(ids)) == counts['kept']
  left_out = ('empty skipped', 'duplicates dropped')
  lost = sum(counts[kind] for kind in left_out)
  lost += counts.get('neighbours of ood dropped', 0)
  assert counts['records read'] == counts['kept'] + lost


def test_by_default_families_stay_together(split):
  found, counts = split()
  assert found.keys() == {'train', 'validation', 'test'}
  for one, other in itertools.combinations(found.values(), 2):
    assert not families(one) & families(other)
  assert counts['clusters'] == 40
  check_counts(found, counts)


def test_a_small_collection_without_links_is_split(
  split, tmp_path, make_families, write_fasta
):
  path = write_fasta(tmp_path / 'few.fasta', make_families(3, 1))
  found, counts = split(path)
  assert [len(members) for members in found.values()] == [1, 1, 1]
  check_counts(found, counts)


def test_fractions_are_those_of_the_clusters(split):
  found, counts = split(fractions=(0.5, 0.0, 0.5))
  assert found.keys() == {'train', 'test'}
  assert 30 < len(found['test']) < 90
  check_counts(found, counts)


def test_a_train_of_nothing_is_left_out(split):
  found, _ = split(fractions=(0.0, 0.5, 0.5))
  assert found.keys() == {'validation', 'test'}


@pytest.mark.parametrize(
  'fractions', [(0.9, 0.1), (0.9, 0.2, 0.1), (1.1, -0.1, 0), (0.9, 0.05, 0.0)]
)
def test_fractions_that_are_none_are_refused(fractions):
  with pytest.raises(ValueError, match='splits.fractions must be three shares'):
    SplitRule(fractions=fractions)


# --- nearest_train_share


@SIZES
def test_shares_are_a_count_with_sets(
  split, write, tmp_path, sequences, write_fasta, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  mixed = dict(sequences)  # members of another family in each third protein
  for i in range(0, 117, 3):
    mixed[f'f{i // 3}_2'] = (
      sequences[f'f{i // 3}_2'][:40] + (sequences[f'f{i // 3 + 1}_0'][:30])
    )
  path = write_fasta(tmp_path / 'mixed.fasta', mixed)
  table = write(f'{id_[:-1]}0\t{id_}' for id_ in sequences)
  found, _ = split(path, clusters=table, fractions=(0.6, 0.2, 0.2))
  train = [words(sequence) for sequence in map(mixed.get, found['train'])]
  shares = []
  for name in ('validation', 'test'):
    for id_, record in found[name].items():
      own = words(mixed[id_])
      share = max(len(own & other) for other in train) / len(own)
      assert record['nearest_train_share'] == np.float32(share)
      shares.append(share)
  assert len({*shares}) > 3 and max(shares) > 0.2


def test_the_share_of_train_is_1(split):
  found, _ = split()
  assert {r['nearest_train_share'] for r in found['train'].values()} == {1}


# --- splits.clusters


@SIZES
def test_clusters_of_a_table_stay_together(
  split, by_family, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  found, counts = split(
    clusters=by_family, fractions=(0.5, 0.25, 0.25), max_cluster_fraction=0.1
  )
  pairs = [{int(f[1:]) // 2 for f in families(m)} for m in found.values()]
  assert len(pairs) == 3 and sum(map(len, pairs)) == 20
  assert counts['clusters'] == 20
  assert found['train'] and all(
    record['cluster'].decode() == f'f{int(id_[1:].split("_")[0]) // 2 * 2}_0'
    for id_, record in found['train'].items()
  )
  check_counts(found, counts)


@SIZES
def test_both_sizes_split_a_table_alike(
  split, by_family, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  found, _ = split(clusters=by_family, fractions=(0.5, 0.25, 0.25))
  for name, members in found.items():
    for record in members.values():
      cluster = record['cluster'].decode()
      share = {'train': 0.5, 'validation': 0.25, 'test': 0.25}
      assert clusters.split_of(cluster, share) == name


@SIZES
def test_an_id_without_a_cluster_is_named(
  split, sequences, write, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  table = write(f'{id_}\t{id_}' for id_ in sequences if id_ != 'f7_1')
  with pytest.raises(ValueError, match="table has no line for 'f7_1'"):
    split(clusters=table)


@SIZES
@pytest.mark.parametrize('line', ['f1_0 f1_1', 'f1_0\tf1_1\t3'])
def test_a_line_that_is_no_pair_is_told(
  split, sequences, write, monkeypatch, max_sequences, line
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  lines = [f'{id_}\t{id_}' for id_ in sequences]
  with pytest.raises(ValueError, match='table:4 holds .* not a representative'):
    split(clusters=write([*lines[:3], line, *lines[3:]]))


@SIZES
def test_a_table_may_be_compressed(
  split, by_family, tmp_path, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  table = tmp_path / 'cluster.tsv.gz'
  table.write_bytes(gzip.compress(pathlib.Path(by_family).read_bytes()))
  assert split(clusters=str(table))[1]['clusters'] == 20


def test_a_truncated_table_is_told(split, by_family, tmp_path):
  table = tmp_path / 'cluster.tsv.gz'
  table.write_bytes(gzip.compress(pathlib.Path(by_family).read_bytes())[:-9])
  with pytest.raises(ValueError, match='cluster.tsv.gz is a truncated'):
    split(clusters=str(table))


@SIZES
def test_an_id_in_two_clusters_is_refused(
  split, sequences, write, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  lines = [f'{id_}\t{id_}' for id_ in sequences]
  with pytest.raises(ValueError, match=r"two clusters, 'f1_0' and 'f2_0'"):
    split(clusters=write([*lines, 'f2_0\tf1_0']))


@SIZES
def test_a_second_sequence_of_an_id_has_no_cluster(
  split, fasta, tmp_path, by_family, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  path = tmp_path / 'again.fasta'
  path.write_text(fasta.read_text() + '>f0_0\nMKVLAACDEFGHIKLMNPQ\n')
  with pytest.raises(ValueError, match='1 ids stand for a second sequence'):
    split(path, clusters=by_family)


def test_headers_of_uniprot_in_a_table_are_read(
  split, tmp_path, sequences, write, write_fasta
):
  path = write_fasta(
    tmp_path / 'sp.fasta', sequences, lambda id_: f'sp|{id_}|N_X name'
  )
  table = write(f'sp|{id_[:-1]}0|N_X\tsp|{id_}|N_X' for id_ in sequences)
  _, counts = split(path, clusters=table)
  assert counts['clusters'] == 40


@SIZES
def test_a_cluster_above_a_twentieth_is_refused_with_its_share(
  split, sequences, write, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  table = write(
    f'{"f0_0" if int(id_[1:].split("_")[0]) < 4 else id_}\t{id_}'
    for id_ in sequences
  )
  message = r'the cluster of f0_0 holds 10\.0% of all residues, more than 5%'
  with pytest.raises(ValueError, match=message):
    split(clusters=table)
  found, counts = split(clusters=table, max_cluster_fraction=1)
  assert any({'f0', 'f1', 'f2', 'f3'} <= families(m) for m in found.values())
  check_counts(found, counts)


@SIZES
def test_a_cluster_above_a_twentieth_is_train(
  split, sequences, write, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  names = (f'r{i}' for i in itertools.count())
  name = next(name for name in names if clusters.split_of(name) == 'test')
  table = write(
    f'{name if int(id_[1:].split("_")[0]) < 4 else id_}\t{id_}'
    for id_ in sequences
  )
  found, counts = split(clusters=table, max_cluster_fraction=0.2)
  assert {'f0', 'f1', 'f2', 'f3'} <= families(found['train'])
  check_counts(found, counts)


def test_8_mers_that_link_more_than_a_twentieth_are_refused(
  split, tmp_path, make_families, write_fasta
):
  chained = make_families(60, 1) | {
    f'f{60 + i}_0': sequence
    for i, sequence in enumerate(make_families(1, 40, seed=1).values())
  }
  path = write_fasta(tmp_path / 'chained.fasta', chained)
  with pytest.raises(ValueError, match=r'the cluster of f60_0 holds .*%'):
    split(path)
  found, counts = split(path, max_cluster_fraction=1)
  assert {f'f{60 + i}_0' for i in range(40)} <= found['train'].keys()
  check_counts(found, counts)


def test_less_than_100_proteins_are_split_as_they_are(
  split, tmp_path, make_families, write_fasta
):
  found, _ = split(write_fasta(tmp_path / 'f.fasta', make_families(3, 33)))
  assert [len(families(members)) for members in found.values()] == [1, 1, 1]


# --- splits.ids


@SIZES
def test_ids_that_no_list_has_are_train(
  split, write, monkeypatch, max_sequences
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  found, counts = split(
    ids=(
      f'test={write(["f0_0", ">f1_0 name", "", "sp|f2_0|X"], "t")}',
      f'validation={write(["f0_1"], "v")}',
    )
  )
  assert found['test'].keys() == {'f0_0', 'f1_0', 'f2_0'}
  assert found['validation'].keys() == {'f0_1'}
  assert len(found['train']) == 116
  assert 'listed ids not found' not in counts
  check_counts(found, counts)


@SIZES
def test_listed_ids_that_are_not_found_are_counted(
  split, write, monkeypatch, max_sequences, capsys
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  _, counts = split(
    ids=(
      f'test={write(["f0_0", "no", "nowhere"], "t")}',
      f'train={write(["f1_0", "absent"], "n")}',
    )
  )
  assert counts['listed ids not found'] == 3
  assert '3 listed ids are not in the collection' in capsys.readouterr().out


def test_a_list_in_another_encoding_has_strangers(split, tmp_path):
  path = tmp_path / 'ids.txt'
  path.write_bytes('\ufefff0_0\r\nf1_0\r\n'.encode() + b'Prote\xedna\r\n')
  found, counts = split(ids=(f'test={path}',))
  assert found['test'].keys() == {'f0_0', 'f1_0'}
  assert counts['listed ids not found'] == 1


def test_an_id_in_two_lists_is_refused(split, write):
  ids = (
    f'test={write(["f0_0", "f1_0"], "t")}',
    f'train={write(["f9_0", "f1_0"], "n")}',
  )
  with pytest.raises(ValueError, match=r"n:2 puts 'f1_0' in train, .* test"):
    split(ids=ids)


def test_a_list_of_strangers_is_refused(split, write):
  with pytest.raises(ValueError, match="gives to 'test', such as 'P1'"):
    split(ids=(f'test={write(["P1", "P2"])}',))


@pytest.mark.parametrize('prefix', ['', 'tset=', '='])
def test_a_list_of_no_split_is_refused(split, write, prefix):
  with pytest.raises(ValueError, match=r'split_ids.* must be like test=\.\.\.'):
    split(ids=(f'{prefix}{write(["f0_0"])}',))


def test_a_list_without_ids_is_refused(split, write):
  with pytest.raises(ValueError, match='lists no id for test'):
    split(ids=(f'test={write(["", " "])}',))


def test_fractions_say_nothing_beside_ids():
  with pytest.raises(ValueError, match='splits.fractions.*leave them out'):
    SplitRule(ids=('test=a',), fractions=(0.8, 0.1, 0.1))


def test_rules_that_differ_have_names_that_differ(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'ids').write_text('a')
  rules = [SplitRule(ids=(f'{split}=ids',)) for split in ('test', 'validation')]
  assert rules[0].identity() != rules[1].identity()


def test_an_absent_list_is_named(split):
  with pytest.raises(ValueError, match='no/ids.txt cannot be read'):
    split(ids=('test=no/ids.txt',))


def test_lists_beside_families_count_what_is_found(split, write):
  found, counts = split(
    ids=(f'test={write(["f0_0", "f1_0", "no"], "t")}',),
    family_table=write(['f5_0,PF1', 'f6_0,PF1'], 'families'),
  )
  assert counts['listed ids not found'] == 1
  assert found['test'].keys() == {'f0_0', 'f1_0'}
  assert found['ood'].keys() == {'f5_0', 'f6_0'}


# --- splits.organisms


@SIZES
@pytest.mark.parametrize(
  'organism',
  [
    '559292',
    'saccharomyces cerevisiae',
    'Saccharomyces cerevisiae (strain ATCC 204508 / S288c)',
  ],
)
def test_an_organism_is_found_by_id_or_name(
  split, monkeypatch, max_sequences, organism
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', max_sequences)
  found, counts = split(organisms=(f'test={organism}', 'validation=9606'))
  assert families(found['test']) == {'f0', 'f1', 'f2', 'f3'}
  assert families(found['validation']) == {'f4', 'f5'}
  assert len(found['train']) == 102
  check_counts(found, counts)


def test_an_organism_that_is_not_there_is_refused(split):
  with pytest.raises(ValueError, match="gives to 'test', such as 'mus"):
    split(organisms=('test=Mus musculus',))


def test_an_organism_in_two_splits_is_refused(split):
  with pytest.raises(ValueError, match="puts '9606' in test and in validation"):
    split(organisms=('validation=9606', 'test=9606'))


def test_a_collection_of_one_organism_may_be_all_test(
  split, tmp_path, sequences, write_fasta
):
  path = write_fasta(
    tmp_path / 'human.fasta', sequences, lambda id_: f'{id_} p OS=Human OX=9606'
  )
  found, _ = split(path, organisms=('test=9606',))
  assert found.keys() == {'test'} and len(found['test']) == 120
  shares = {r['nearest_train_share'] for r in found['test'].values()}
  assert shares == {0}


def test_ids_and_organisms_contradict():
  with pytest.raises(ValueError, match='cannot both be given'):
    SplitRule(ids=('test=a',), organisms=('test=9606',))


# --- splits.family_table


def test_neighbours_of_ood_are_in_no_split(split, write):
  table = write(['f5_0,PF1,3,20', 'f6_1,PF1,1,64'])
  found, counts = split(family_table=table)
  assert found['ood'].keys() == {'f5_0', 'f6_1'}
  for name in ('train', 'validation', 'test'):
    assert not families(found[name]) & {'f5', 'f6'}
  assert counts['neighbours of ood dropped'] == 4
  check_counts(found, counts)


def test_neighbours_by_a_table_are_in_no_split(
  split, write, by_family, monkeypatch
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', 10)
  found, counts = split(
    family_table=write(['f5_0,PF1'], 'families'),
    clusters=by_family,
    max_cluster_fraction=0.1,
  )
  assert found['ood'].keys() == {'f5_0'}
  assert counts['neighbours of ood dropped'] == 5  # of families 4 and 5
  check_counts(found, counts)


def test_a_worker_that_keeps_what_it_loaded_sees_the_neighbours(
  split, write, by_family, monkeypatch
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', 10)
  monkeypatch.setattr(splits._load_splitter, 'cache_clear', lambda: None)
  _, counts = split(
    family_table=write(['f5_0,PF1'], 'families'), clusters=by_family
  )
  assert counts['neighbours of ood dropped'] == 5


def test_many_proteins_without_a_table_have_no_neighbours(
  split, write, monkeypatch
):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', 10)
  found, counts = split(family_table=write(['f5_0,PF1']))
  assert found['ood'].keys() == {'f5_0'}
  assert counts['neighbours of ood dropped'] == 0
  check_counts(found, counts)


def test_a_family_may_leave_nothing_else(
  split, tmp_path, write, make_families, write_fasta
):
  path = write_fasta(tmp_path / 'one.fasta', make_families(1, 3))
  found, counts = split(path, family_table=write(['f0_0,PF1']))
  assert {name: list(m) for name, m in found.items()} == {'ood': ['f0_0']}
  check_counts(found, counts)


def test_records_of_ood_have_their_domains(split, write):
  table = write(
    ['f5_0,PF1,30,40', 'f5_0,PF1,3,20', 'f6_1,PF1,1,9', 'f7_0,PF1,1,9']
    + ['f6_1,PF2,1,9']
    + [f'f{i}_0,PF2,1,9' for i in range(10, 40)]
  )
  ood = split(family_table=table)[0]['ood']
  assert ood['f5_0']['envelopes'].tolist() == [[3, 20], [30, 40]]
  assert ood['f5_0']['pure'] and not ood['f6_1']['pure']


def test_a_domain_beyond_its_protein_is_refused(split, write):
  with pytest.raises(ValueError, match="domain 3-99 of 'f5_0', which has 64"):
    split(family_table=write(['f5_0,PF1,3,99']))


def test_families_of_other_proteins_are_refused(split, write):
  with pytest.raises(ValueError, match='its first column must hold the ids'):
    split(family_table=write(['P1,PF1', 'P2,PF1']))


def test_families_too_large_to_hold_out_are_refused(split, write, sequences):
  table = write(f'{id_},PF1' for id_ in sequences)
  with pytest.raises(ValueError, match='small enough to hold out of 120'):
    split(family_table=table)
