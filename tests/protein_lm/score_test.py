"""The command around a fake model: what it writes, prints and refuses."""

import csv
import re
import types

import numpy as np
import pytest
from absl import flags

from protein_lm import cli, loading, score, scoring
from protein_lm.exact_attention import exact_attention

WILD = 'MKTAYIAK'
TABLE = f"""mutant,mutated_sequence,DMS_score
K2R,MRTAYIAK,3
T3A:Y5F,MKAAFIAK,1
WT,{WILD},2
"""


@pytest.fixture
def use(monkeypatch):
  """Stands for a checkpoint; a sequence has the log-likelihood -its A's."""

  def use(objective='causal'):
    kind = types.SimpleNamespace if objective == 'causal' else FakeBERT
    loaded = types.SimpleNamespace(
      step=7,
      work_dir='run',
      needs_calibration=False,
      data_arguments={},
      model=kind(
        objective=objective,
        causal=objective == 'causal',
        attention_fns=(exact_attention(),),
      ),
    )
    monkeypatch.setattr(loading, 'load', lambda *args: loaded)
    monkeypatch.setattr(scoring.likelihoods, 'log_likelihoods', fake)

  use()
  return use


class FakeBERT(types.SimpleNamespace):
  pass


def fake(loaded, sequences, shape, progress=iter):
  totals = np.array([-float(x.count('A')) for x in progress(sequences)])
  return totals, np.zeros_like(totals)


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture
def files(tmp_path):
  (tmp_path / 'dms.csv').write_text(TABLE)
  (tmp_path / 'in.fasta').write_text('>a first\nMKA\n>b\nMKA\n>a\nAAXA\n')
  return tmp_path


def test_every_record_has_a_row(use, files):
  score.score_fasta('run', files / 'in.fasta', files / 'out.csv')
  rows = read(files / 'out.csv')
  assert [row['id'] for row in rows] == ['a', 'b', 'a']
  assert [row['log_likelihood'] for row in rows] == [
    '-1.000000',
    '-1.000000',
    '-3.000000',
  ]
  assert (rows[2]['length'], rows[2]['num_scored']) == ('4', '3')


def test_variants_keep_their_columns(use, files):
  (row,) = score.score_mutations('run', files / 'dms.csv', files / 'out.csv')
  rows = read(files / 'out.csv')
  assert list(rows[0]) == [
    *TABLE.split('\n')[0].split(','),
    'score',
    'strategy',
  ]
  assert [float(row['score']) for row in rows] == [0, -1, 0]
  assert {row['strategy'] for row in rows} == {'likelihood'}
  assert (row['num_scored'], row['num_measured']) == (3, 3)


def test_metrics_are_told_and_columns_of_scores_stay(use, files):
  (files / 'dms.csv').write_text(
    'mutant,score,DMS_score,DMS_score_bin\nA4G,x,3,1\nK2A,y,1,0\nWT,z,2,1\n'
  )
  summary = score.score_mutations(
    'run', files / 'dms.csv', files / 'out.csv', wild_type=WILD
  )
  rows = read(files / 'out.csv')
  assert [row['score'] for row in rows] == ['x', 'y', 'z']
  assert [float(row['score_2']) for row in rows] == [1, -1, 0]
  assert summary[0]['spearman'] == pytest.approx(1)
  lines = score.score_tables.format_summary(summary).splitlines()
  assert lines[0].split() == [
    'file',
    'scored',
    *['Spearman', 'NDCG', 'AUC', 'fit', 'are'],
  ]
  assert lines[1].split() == ['dms.csv', '3', *['1.000'] * 3, 'DMS_score_bin']


def test_a_folder_gives_a_folder_and_a_summary(use, files):
  (files / 'in').mkdir()
  for name, last in (('a.csv', 'A4G,9'), ('b.csv', 'A4G,0')):
    text = f'mutant,DMS_score\nK2A,1\nWT,2\n{last}\n'
    (files / 'in' / name).write_text(text)
  summary = score.score_mutations(
    'run', files / 'in', files / 'out', wild_type=WILD
  )
  names = sorted(path.name for path in (files / 'out').iterdir())
  assert names == ['a.csv', 'b.csv', 'summary.csv']
  assert [row['file'] for row in summary] == ['a.csv', 'b.csv', 'mean']
  rows = read(files / 'out' / 'summary.csv')
  values = [float(row['spearman']) for row in rows]
  assert values == [1, -0.5, 0.25]
  assert 'mean' in score.score_tables.format_summary(summary)


def test_indels_without_wild_type_are_log_likelihoods(use, files, capsys):
  (files / 'dms.csv').write_text('mutated_sequence\nMKAA\nMKA\n')
  score.score_mutations('run', files / 'dms.csv', files / 'out.csv')
  rows = read(files / 'out.csv')
  assert [float(row['score']) for row in rows] == [-2, -1]
  assert rows[0]['strategy'] == 'likelihood without wild type'
  assert '--wild_type gives ratios' in capsys.readouterr().out


def test_bad_rows_are_listed_if_asked(use, files, capsys):
  (files / 'dms.csv').write_text('mutant\nA4G\nA5G\n')
  score.score_mutations(
    'run', files / 'dms.csv', files / 'out.csv', wild_type=WILD, skip_bad=True
  )
  rows = read(files / 'out.csv')
  assert [row['score'] for row in rows] == ['1.000000', '']
  assert rows[1]['problem'].startswith("'A5G' expects A at position 5")
  assert '1 rows have no score' in capsys.readouterr().out


def test_a_table_is_whole_or_not_there(use, files, monkeypatch):
  def fail(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(score.score_tables, '_cell', fail)
  before = sorted(files.iterdir())
  for function, name in (
    (score.score_mutations, 'dms.csv'),
    (score.score_fasta, 'in.fasta'),
  ):
    with pytest.raises(KeyboardInterrupt):
      function('run', files / name, files / 'out.csv')
  assert sorted(files.iterdir()) == before


def test_what_exists_is_kept(use, files):
  (files / 'out.csv').write_text('mine')
  with pytest.raises(FileExistsError, match='or --overwrite'):
    score.score_mutations('run', files / 'dms.csv', files / 'out.csv')
  assert (files / 'out.csv').read_text() == 'mine'
  score.score_mutations(
    'run', files / 'dms.csv', files / 'out.csv', overwrite=True
  )
  assert (files / 'out.csv').read_text().startswith('mutant')


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the command with these flags; its exit status and last error."""
  before = set(flags.FLAGS)
  monkeypatch.setattr(cli, 'run', lambda main: None)
  score.main()

  def run(*args):
    flags.FLAGS(['score', *args])
    try:
      cli.exits_cleanly(score._main)(['score'])
    except SystemExit as error:
      return error.code, capsys.readouterr().err
    return 0, capsys.readouterr().out

  yield run
  flags.FLAGS.unparse_flags()
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def test_the_command_tells_strategy_cost_and_metrics(use, files, command):
  code, out = command(
    '--work_dir=run',
    f'--mutations={files / "dms.csv"}',
    f'--out={files / "out.csv"}',
  )
  assert code == 0
  assert 'step 7, exact attention, likelihood' in out
  assert 'dms.csv: 3 variants, 3 passes' in out
  assert 'Spearman' in out and out.endswith(f'variants to {files}/out.csv\n')


@pytest.mark.parametrize(
  'objective, text, options, message',
  [
    ('causal', 'mutant\nA2G\n', [], 'dms.csv:2 .*expects A at position 2'),
    ('causal', 'mutant\nA20G\n', [], 'dms.csv:2 .*lies out of range'),
    ('causal', 'mutant\nA4J\n', [], 'dms.csv:2 .*unknown letter'),
    ('causal', 'mutant\nA4\n', [], 'dms.csv:2 .*is no mutation'),
    ('causal', '', [], 'dms.csv is empty'),
    ('causal', 'variant\nA4G\n', [], 'lacks a column'),
    (
      'masked',
      'mutated_sequence\nMKT\n',
      [],
      'dms.csv:2 .*use --strategy=pseudo-likelihood',
    ),
    ('causal', 'mutant\nA4G\n', ['--strategy=masked-marginal'], 'choose from'),
    ('causal', 'mutant\nA4G\n', ['--fasta=x'], 'one of them'),
    ('causal', 'mutant\nA4G\n', ['--wild_type=M1'], 'nor a sequence'),
  ],
)
def test_what_is_wrong_is_one_line(
  use, files, command, objective, text, options, message
):
  use(objective)
  (files / 'dms.csv').write_text(text)
  before = sorted(files.iterdir())
  code, error = command(
    '--work_dir=run',
    f'--mutations={files / "dms.csv"}',
    f'--wild_type={WILD}',
    f'--out={files / "out.csv"}',
    *options,
  )
  assert code == 1
  assert error.startswith('error: ') and error.count('\n') == 1
  assert re.search(message, error)
  assert sorted(files.iterdir()) == before


def test_a_work_dir_without_checkpoint_is_one_line(files, command):
  code, error = command(
    f'--work_dir={files}',
    f'--fasta={files / "in.fasta"}',
    f'--out={files / "out.csv"}',
  )
  assert code == 1 and 'checkpoint' in error and error.count('\n') == 1
  assert not (files / 'out.csv').exists()


@pytest.mark.parametrize(
  'text, message',
  [
    ('', 'holds no protein'),
    ('>a\nMK-A\n', r"in.fasta:2: '-' in record a: correct it, or pass"),
    ('>a\n>b\nMK\n', 'in.fasta:1: empty record a: correct it, or pass'),
  ],
)
def test_a_bad_fasta_is_refused(use, files, text, message):
  (files / 'in.fasta').write_text(text)
  with pytest.raises(ValueError, match=message):
    score.score_fasta('run', files / 'in.fasta', files / 'out.csv')


def test_bad_records_are_left_out_if_asked(use, files, capsys):
  (files / 'in.fasta').write_text('>a\nMK-A\n>b\nMK\n')
  score.score_fasta('run', files / 'in.fasta', files / 'out.csv', skip_bad=True)
  assert [row['id'] for row in read(files / 'out.csv')] == ['b']
  assert '1 records skipped' in capsys.readouterr().out
