"""Clusters are connected components of shared 8-mers; splits are whole ones."""

import collections

import numpy as np
import pytest

from protein_lm.datasets import clusters


def random_sequence(rng, length):
  return ''.join(rng.choice(list('ACDEFGHIKLMNPQRSTVWY'), length))


def partition(labels):
  groups = collections.defaultdict(set)
  for index, label in enumerate(labels):
    groups[label].add(index)
  return {frozenset(group) for group in groups.values()}


def link_by_pairs(sequences):
  """The definition: compares every pair, then joins what is linked."""
  words = [{s[i : i + 8] for i in range(len(s) - 7)} for s in sequences]
  label = list(range(len(sequences)))
  for a in range(len(sequences)):
    for b in range(a):
      shared = len(words[a] & words[b])
      if shared >= 5 and shared >= 0.1 * min(len(words[a]), len(words[b])):
        old, new = label[a], label[b]
        label = [new if value == old else value for value in label]
  return label


@pytest.mark.parametrize('max_pairs', [1, 50, 10**6])
def test_components_match_the_definition(monkeypatch, max_pairs):
  monkeypatch.setattr(clusters, '_MAX_PAIRS', max_pairs)
  rng = np.random.default_rng(0)
  pieces = [random_sequence(rng, n) for n in (11, 12, 13, 40, 60)]
  sequences = ['', 'ACDEFGH', 'ACDEFGHI']
  for _ in range(120):
    chosen = rng.choice(pieces, rng.integers(0, 3))
    own = random_sequence(rng, rng.integers(0, 150))
    sequences.append(own + ''.join(chosen))
  found = clusters.link_by_words(sequences)
  assert 20 < len(set(found.tolist())) < 100
  assert partition(found.tolist()) == partition(link_by_pairs(sequences))


@pytest.mark.parametrize('shared, linked', [(11, False), (12, True)])
def test_five_words_link_and_four_do_not(shared, linked):
  rng = np.random.default_rng(1)
  piece = random_sequence(rng, shared)
  a, b = (piece + random_sequence(rng, 20) for _ in range(2))
  labels = clusters.link_by_words([a, b])
  assert (labels[0] == labels[1]) == linked


@pytest.mark.parametrize('length, linked', [(57, True), (58, False)])
def test_a_tenth_of_the_shorter_links(length, linked):
  rng = np.random.default_rng(2)  # 5 shared words of 50, or of 51
  piece = random_sequence(rng, 12)
  a, b = (piece + random_sequence(rng, n) for n in (length - 12, 300))
  labels = clusters.link_by_words([a, b])
  assert (labels[0] == labels[1]) == linked


def test_a_large_family_is_one_cluster_in_little_time():
  rng = np.random.default_rng(3)
  wild = list(random_sequence(rng, 60))
  family = []
  for _ in range(2 * clusters.MAX_OWNERS):
    variant = wild.copy()
    variant[rng.integers(60)] = 'A'
    family.append(''.join(variant))
  assert len(set(clusters.link_by_words(family).tolist())) == 1


def test_a_common_tag_links_nothing():
  rng = np.random.default_rng(4)
  tag = 'MGSSHHHHHHSSGLVPRGSH'
  tagged = [tag + random_sequence(rng, 200) for _ in range(300)]
  assert len(set(clusters.link_by_words(tagged).tolist())) == 300


def test_a_cluster_is_named_by_its_smallest_id():
  rng = np.random.default_rng(5)
  a, b = random_sequence(rng, 50), random_sequence(rng, 50)
  names = clusters.name_clusters(['z', 'y', 'x'], [a, b, a + b[:5]])
  assert names == ['x', 'y', 'x']


def test_many_sequences_are_named_by_themselves(monkeypatch):
  monkeypatch.setattr(clusters, 'MAX_SEQUENCES', 1)
  names = clusters.name_clusters(['a', 'b'], ['M' * 20, 'M' * 21])
  assert len(set(names)) == 2 and not {'a', 'b'} & set(names)


def test_split_of_is_90_5_5_and_fixed():
  count = collections.Counter(clusters.split_of(f'c{i}') for i in range(10_000))
  assert abs(count['train'] - 9000) < 150
  assert abs(count['validation'] - 500) < 110
  assert clusters.split_of('c3') == clusters.split_of('c3')


@pytest.mark.parametrize(
  'fractions', [(0.6, 0.3, 0.1), (0.5, 0.0, 0.5), (0.0, 0.7, 0.3), (1.0, 0, 0)]
)
def test_split_of_follows_fractions(fractions):
  wanted = dict(zip(('train', 'validation', 'test'), fractions, strict=True))
  count = collections.Counter(
    clusters.split_of(f'c{i}', wanted) for i in range(10_000)
  )
  for split, fraction in wanted.items():
    assert abs(count[split] - 10_000 * fraction) <= 200 * bool(fraction)


def test_fractions_that_sum_to_less_by_rounding_lose_no_cluster():
  wanted = {'train': 0.3, 'validation': 0.3, 'test': 0.0}
  found = {clusters.split_of(f'c{i}', wanted) for i in range(100)}
  assert found == {'train', 'validation'}


@pytest.mark.parametrize('num_clusters', [1, 2, 3, 4, 20, 1000])
def test_three_clusters_fill_three_splits(num_clusters):
  sizes = {f'c{i}': 10 + i for i in range(num_clusters)}
  split = clusters.split_clusters(sizes)
  assert split.keys() == sizes.keys()
  order = ['train', 'validation', 'test'][: min(num_clusters, 3)]
  assert sorted(set(split.values())) == sorted(order)
  assert split == clusters.split_clusters(dict(reversed(sizes.items())))


@pytest.mark.parametrize('size, is_large', [(50, False), (51, True)])
def test_clusters_above_a_twentieth_go_to_train(size, is_large):
  sizes = {f'small{i}': 1 for i in range(1_000 - 5 * size)}
  sizes |= {f'large{i}': size for i in range(5)}
  split = clusters.split_clusters(sizes, {'train': 0.0, 'test': 1.0})
  expected = 'train' if is_large else 'test'
  assert [split[f'large{i}'] for i in range(5)] == [expected] * 5
  assert {split[name] for name in sizes if 'small' in name} == {'test'}


@pytest.mark.parametrize('num_clusters', [1, 2, 3, 20, 1000])
def test_a_split_of_nothing_stays_empty(num_clusters):
  sizes = {f'c{i}': 10 + i for i in range(num_clusters)}
  fractions = {'train': 0.5, 'validation': 0.0, 'test': 0.5}
  found = set(clusters.split_clusters(sizes, fractions).values())
  assert found == ({'train'} if num_clusters == 1 else {'train', 'test'})


def test_even_collections_are_split_by_hash_alone():
  sizes = {f'c{i}': 100 for i in range(500)}
  assert clusters.split_clusters(sizes) == {
    c: clusters.split_of(c) for c in sizes
  }
