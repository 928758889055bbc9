"""Human Swiss-Prot as prepared from promb's file, once for this module."""

import hashlib
import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from protein_lm import data, prepare
from protein_lm.datasets import clusters, held_out, human_swissprot
from protein_lm.packing import plan_rows

needs_promb = pytest.mark.skipif(
  importlib.util.find_spec('promb') is None, reason='promb is not installed'
)


@pytest.fixture(scope='module')
def human(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp('tfds')
  return data.open_data(data_dir, data_dir=str(data_dir))


@pytest.fixture(scope='module')
def splits(human):
  return {split: human.proteins(split) for split in human.splits}


@needs_promb
def test_splits_have_the_published_sizes(human):
  assert human.splits == {
    'train': (16_896, 9_542_322),
    'validation': (924, 551_501),
    'test': (940, 522_117),
    'ood': (981, 623_547),
  }


@needs_promb
def test_every_entry_is_kept_or_counted(human):
  counts = human.builder.info.metadata['counts']
  assert counts['records read'] == 20_417
  assert counts['uncertain dropped'] == 583
  assert counts['duplicates dropped'] == 71
  assert counts['neighbours of ood dropped'] == 22
  assert counts['kept'] == sum(n for n, _ in human.splits.values())


@needs_promb
def test_no_cluster_is_in_two_splits(splits):
  names = [
    name for members in splits.values() for name in set(members.clusters)
  ]
  assert len(names) == len(set(names))


@needs_promb
def test_clusters_are_hashed_into_their_split(splits):
  for split in ('train', 'validation', 'test'):
    assert {clusters.split_of(c) for c in splits[split].clusters} == {split}


@needs_promb
def test_no_sequence_is_in_two_places(splits):
  seen = [
    members.residues[a:b].tobytes()
    for members in splits.values()
    for a, b in zip(members.offsets, members.offsets[1:], strict=False)
  ]
  assert len(seen) == len(set(seen)) == 19_741


@needs_promb
def test_ood_is_all_held_out_proteins_that_are_kept(splits):
  held = held_out.hold_out(held_out.read_domains())
  ood = splits['ood']
  assert set(ood.ids) < held.envelopes.keys()
  assert len(held.envelopes) - len(ood.ids) == 16 + 4  # uncertain, duplicates
  for split in ('train', 'validation', 'test'):
    assert not held.envelopes.keys() & set(splits[split].ids)
    assert not splits[split].held_out.any() and not splits[split].pure.any()
  assert {id_ for id_, pure in zip(ood.ids, ood.pure, strict=True) if pure} == (
    held.pure & set(ood.ids)
  )


@needs_promb
def test_envelopes_mark_their_residues(splits):
  held = held_out.hold_out(held_out.read_domains())
  ood = splits['ood']
  for index in (0, 500, 980):
    mask = np.zeros(ood.lengths[index], bool)
    for start, end in held.envelopes[ood.ids[index]]:
      mask[start - 1 : end] = True
    a, b = ood.offsets[index : index + 2]
    np.testing.assert_array_equal(ood.held_out[a:b], mask)


@needs_promb
@pytest.mark.parametrize('max_len, fill', [(512, 0.97), (1024, 0.99)])
def test_packing_fills_rows(splits, max_len, fill):
  lengths = np.minimum(splits['train'].lengths + 2, max_len)
  plan = plan_rows(lengths, max_len)
  assert plan.num_tokens / (plan.num_rows * max_len) > fill


@needs_promb
def test_titin_is_evaluated_in_one_window(human, splits):
  name = next(s for s, p in splits.items() if 'Q8WZ42' in p.ids)
  proteins = splits[name]
  titin = proteins.ids.index('Q8WZ42')
  batches = human.eval_batches(proteins, batch_size=1, max_len=34_352)
  assert any((batch.protein_BL == titin).sum() == 34_352 for batch in batches)


@needs_promb
def test_tensorflow_is_never_imported(splits):
  assert 'tensorflow' not in sys.modules


def test_an_absent_package_is_named_with_the_ways_out(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError) as error:
    prepare.prepare('human_swissprot', tmp_path)
  told = str(error.value)
  assert 'pip install promb==1.0.2' in told and 'quickstart' in told
  assert "data.source = 'my.fasta.gz'" in told and '\n' not in told


@pytest.mark.parametrize('content', [None, b'>sp|P1|X\nMKV\n'])
def test_another_file_of_promb_is_refused(monkeypatch, tmp_path, content):
  path = tmp_path / 'resources' / human_swissprot.HumanSwissprot.FILE
  path.parent.mkdir()
  if content:
    path.write_bytes(content)
  spec = importlib.util.spec_from_loader('promb', None, is_package=True)
  spec.submodule_search_locations = [str(tmp_path)]
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
  told = hashlib.sha256(content).hexdigest() if content else 'missing'
  with pytest.raises(ValueError, match=f'{path}.*{told}.*pip install'):
    prepare.prepare('human_swissprot', tmp_path)
  assert not list(pathlib.Path(tmp_path).glob('human_swissprot/*.*.*'))
