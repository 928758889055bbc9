"""The command probe: features without a model, reports, refusals."""

import csv
import json

import numpy as np
import pytest

from protein_lm import probe, probe_features, probing, vocab

LETTERS = list(vocab.STANDARD_RESIDUES)
RANDOM = np.random.default_rng(0)
SEQUENCES = {
  f'P{i}': ''.join(RANDOM.choice(LETTERS, 20 + i % 7)) for i in range(40)
}
VECTORS = RANDOM.normal(size=(40, 3))


@pytest.fixture
def files(tmp_path, monkeypatch):
  """FASTA, labels that follow the vectors, and a file of these."""
  monkeypatch.setattr(probing, 'PENALTIES', (1e-3, 1.0))  # faster
  fasta, labels = tmp_path / 'in.fasta', tmp_path / 'labels.csv'
  fasta.write_text(''.join(f'>{id_}\n{x}\n' for id_, x in SEQUENCES.items()))
  lines = [
    f'{id_},{x}\n' for id_, x in zip(SEQUENCES, VECTORS[:, 0], strict=True)
  ]
  labels.write_text('id,label\n' + ''.join(lines) + 'Q,5\n')
  embeddings = tmp_path / 'x.npz'
  ids = np.array([*SEQUENCES, 'other'])
  np.savez(
    embeddings, **{'ids': ids, 'mean_-1': np.vstack([VECTORS, [[0] * 3]])}
  )
  return {'fasta': fasta, 'labels': labels, 'embeddings': embeddings}


def test_vectors_that_hold_the_label_win(files, tmp_path, capsys):
  report = probe.probe(**files, folds=4, out=tmp_path / 'r.json')
  r2 = {kind: x['r2']['mean'] for kind, x in report['results'].items()}
  assert list(r2) == ['embedding', 'composition', '3-mers']
  assert r2['embedding'] > 0.99 > 0.5 > r2['composition']
  assert report['num_labels_without_sequence'] == 1
  assert '1 labels without a sequence left out' in capsys.readouterr().out
  assert json.loads((tmp_path / 'r.json').read_text()) == report


def test_predictions_are_written_a_row_a_protein(files, tmp_path):
  probe.probe(**files, folds=4, out=tmp_path / 'r.csv')
  with open(tmp_path / 'r_predictions.csv') as file:
    rows = list(csv.DictReader(file))
  assert [row['id'] for row in rows] == list(SEQUENCES)
  found = [float(row['embedding']) for row in rows]
  np.testing.assert_allclose(found, VECTORS[:, 0], atol=0.1)
  assert (tmp_path / 'r.csv').read_text().startswith('features,metric,mean')


def test_classes_are_counted(files, tmp_path):
  lines = [f'{id_}\t{"ab"[i % 4 == 0]}\n' for i, id_ in enumerate(SEQUENCES)]
  files['labels'].write_text('id\tkind\n' + ''.join(lines))
  out = tmp_path / 'r.json'
  report = probe.probe(**files, column='kind', folds=2, out=out)
  assert report['classes'] == {'a': 30, 'b': 10}
  assert report['largest_class_share'] == 0.75
  header = (tmp_path / 'r_predictions.csv').read_text().split('\n')[0]
  assert header.startswith('id,cluster,fold,label,embedding,embedding prob')


@pytest.mark.parametrize(
  'options, message',
  [
    ({'embeddings': None}, 'give either --work_dir or --embeddings'),
    ({'work_dir': 'run'}, 'give either --work_dir or --embeddings'),
    (
      {'embeddings': None, 'work_dir': 'run', 'features': 'x'},
      'such as mean_-1',
    ),
    ({'features': 'max_-1'}, "no array 'max_-1'; it has mean_-1"),
    ({'task': 'guess'}, "got 'guess'"),
    ({'column': 'x'}, 'labels.csv:1 must name the columns'),
    ({'folds': 41}, 'in 40 clusters, fewer than --folds=41'),
    ({'out': 'r.txt'}, '--out must end in .json or .csv'),
    ({'out': 'none/r.csv'}, 'none is no folder'),
  ],
)
def test_a_wrong_argument_writes_nothing(files, tmp_path, options, message):
  before = set(tmp_path.iterdir())
  with pytest.raises(ValueError, match=message):
    probe.probe(**files | {'out': tmp_path / 'r.csv'} | options)
  assert set(tmp_path.iterdir()) == before


def test_ids_that_do_not_meet_are_refused(files):
  files['labels'].write_text('id,label\nX1,1\nX2,2\nX3,3\n')
  with pytest.raises(ValueError, match="the first is 'X1'.*the first is 'P0'"):
    probe.probe(**files)


def test_a_file_that_lacks_proteins_is_refused(files):
  np.savez(files['embeddings'], **{'ids': ['P0'], 'mean_-1': VECTORS[:1]})
  with pytest.raises(ValueError, match="lacks 39 of 40 .* first 'P1'"):
    probe.probe(**files)


def test_a_report_that_exists_is_kept(files, tmp_path):
  (tmp_path / 'r_predictions.csv').write_text('mine')
  with pytest.raises(FileExistsError, match='--overwrite'):
    probe.probe(**files, out=tmp_path / 'r.csv')
  assert not (tmp_path / 'r.csv').exists()


def test_composition_is_shares_and_log_length():
  (row,) = probe_features.composition(['AACX'])
  np.testing.assert_allclose(row[:3], [0.5, 0.25, 0])
  np.testing.assert_allclose(row[-1], np.log(4), rtol=1e-6)


def test_equal_lengths_are_one_hot_where_they_differ():
  name, rows = probe_features.one_hot(['ACD', 'ACE', 'AYE'])
  assert name == 'one-hot'
  np.testing.assert_array_equal(
    rows, [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]
  )


def test_other_lengths_are_counted_in_3_mers():
  name, rows = probe_features.one_hot(['ACDACD', 'ACDA', 'AC'])
  assert name == '3-mers'
  np.testing.assert_allclose(rows.sum(axis=1), [1, 1, 0])
  assert sorted(rows[0][rows[0] > 0]) == [0.25, 0.25, 0.5]


def test_equal_and_similar_proteins_are_one_cluster():
  long = SEQUENCES['P6'] * 2
  sequences = ['ACD', 'ACD', long, long[:-2], 'ACE']
  found = probe_features.clusters_of(list('vwxyz'), sequences)
  assert found == ['v', 'v', 'x', 'x', 'z']


def test_clusters_come_from_a_table(tmp_path):
  path = tmp_path / 'cluster.tsv'
  path.write_text('a\ta\na\tb\n')
  assert probe_features.clusters_of(['b', 'a'], ['A', 'C'], path) == ['a', 'a']
  with pytest.raises(ValueError, match="has no line for 'c' and 0 more of 1"):
    probe_features.clusters_of(['c'], ['A'], path)


def test_no_clusters_are_as_many_as_proteins():
  assert probe_features.clusters_of(['a', 'b'], ['A', 'A'], 'none') == [
    'a',
    'b',
  ]
