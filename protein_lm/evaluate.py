"""Evaluates a trained model: python -m protein_lm.evaluate --work_dir=D

Scores every residue of test and ood (or of --splits) once, prints a table with
the baselines beside the model, and writes evaluation.json, evaluation.csv and
figures into the folder. Evaluating again, another step or attention

    --step=all --gin_bindings="FlaxModel.attention_fn = @exact_attention()"

adds its rows to what is there.
"""

import dataclasses
import inspect
import os
import pathlib
import re
import sys
import time

from absl import flags

from protein_lm import cli, evaluation_table

SPLITS = ('test', 'ood')
_CALIBRATION_BATCHES = 8
# Fields of a fast attention that change no evaluation.
_SILENT_FIELDS = (
  'qkv_dim',
  'unidirectional',
  'redraw_features',
  'lax_scan_unroll',
  'implementation',
)


def evaluate(work_dir, step='latest', splits=None, gin_bindings=()):
  """Scores checkpoints and baselines; writes rows and figures into work_dir.

  Args:
    work_dir: the folder of a run.
    step: a number, 'latest', 'best' or 'all'.
    splits: names of splits; None for those of test and ood that exist.
    gin_bindings: bindings on top of the run's, such as another attention.

  Returns:
    (rows of this evaluation and earlier ones on the same splits and steps,
    paths of the files written).

  Raises:
    ValueError: for a step or split that does not exist.
  """
  from protein_lm import baselines, config, evaluation, loading

  work_dir = pathlib.Path(work_dir)
  steps = (_good_steps(work_dir) or ['latest']) if step == 'all' else [step]
  loaded = loading.load(work_dir, steps[0], gin_bindings)
  if loaded.model.objective not in ('causal', 'masked'):
    raise ValueError(
      f'{work_dir} holds a {type(loaded.model).__name__}, of labels '
      'and not of residues: its metrics are in metrics.jsonl, and '
      'python -m protein_lm.predict writes its predictions.'
    )
  bound = '\n'.join(gin_bindings)
  if unused := [x for x in config.unused_bindings() if x in bound]:
    print(f'warning: nothing used {"; ".join(unused)}')
  data = loaded.open_data()
  _warn_of_other_data(loaded, data)
  splits = _choose_splits(splits, data)
  fitted = _fit(data, baselines)
  is_masked = loaded.model.objective == 'masked'
  if is_masked:  # the others see only what is on the left
    fitted = [baseline for baseline in fitted if baseline.context == 'none']

  evaluated, scores, score_step, graphdef = [], {}, None, None
  for number in steps:
    if number != steps[0]:
      loaded = loading.load(work_dir, number, gin_bindings)
    if loaded.graphdef != graphdef:  # a run may go on with another attention
      graphdef, score_step = loaded.graphdef, loaded.make_score_step()
    print(describe(loaded), flush=True)
    loaded = _calibrated(loaded, data)
    evaluated.append(loaded.step)
    new_rows = []
    for split in splits:
      proteins = data.proteins(split)
      mask_T = None
      if is_masked:
        mask_T = evaluation.masked_residues(proteins)
      batches = data.eval_batches(proteins)
      start = time.perf_counter()
      with _bar(split, len(batches)) as bar:
        scores[split] = evaluation.score_split(
          score_step,
          loaded.weights,
          batches,
          proteins,
          mask_T=mask_T,
          after_batch=lambda _, bar=bar: bar.update(),
        )
      print(
        f'{split}: {len(proteins.ids):,} proteins, {len(proteins.residues):,} '
        f'residues in {time.perf_counter() - start:.1f} s',
        flush=True,
      )
      new_rows += _rows(loaded, data, split, proteins, scores[split], fitted)
    rows = evaluation_table.merge_rows(work_dir, new_rows)
  paths = [work_dir / name for name in evaluation_table.FILE_NAMES]
  paths += _draw(work_dir, loaded, data, scores, fitted)
  keep = {None, *evaluated}
  rows = [
    row
    for row in rows
    if row['split'] in splits
    and row['step'] in keep
    and (row['data'], row['max_len']) == (data.name, data.max_len)
  ]
  return rows, paths


def _good_steps(work_dir):
  """The steps whose checkpoints verify; says which do not."""
  from protein_lm import checkpoint

  good = []
  for step in checkpoint.steps(work_dir):
    try:
      checkpoint.verify(work_dir, step)
      good.append(step)
    except checkpoint.CheckpointError as error:
      print(f'warning: step {step} is left out: {error}')
  return good


def _calibrated(loaded, data):
  """With statistics of training batches, if the attention asks for them."""
  if not loaded.needs_calibration:
    return loaded
  print(
    f'its attention needs statistics that this checkpoint lacks: measured on '
    f'{_CALIBRATION_BATCHES} training batches',
    flush=True,
  )
  return loaded.calibrate(
    data.train_batch(0, step) for step in range(_CALIBRATION_BATCHES)
  )


def _warn_of_other_data(loaded, data):
  saved = loaded.metadata.get('data_fingerprint')
  if saved not in (None, data.fingerprint):
    print(
      f'warning: {data.name} is not the data of training: its splits may hold '
      'proteins that the model has seen, and its train split fits the baselines'
    )


def _choose_splits(splits, data):
  if splits is None:
    splits = [split for split in SPLITS if split in data.splits]
    splits = splits or [split for split in data.splits if split != 'train']
  for split in splits:
    if split not in data.splits:
      raise ValueError(
        f'there is no split {split!r}; the splits are {", ".join(data.splits)}'
      )
  if not splits:
    raise ValueError(
      'there is no split to evaluate, choose with --splits from '
      f'{", ".join(data.splits)}'
    )
  return splits


def _fit(data, baselines):
  if 'validation' in data.splits:
    validation = data.proteins('validation')
    return baselines.fit_baselines(data.proteins('train'), validation)
  print('there is no validation split, so uniform and unigram alone are fitted')
  return [baselines.uniform(), baselines.fit_unigram(data.proteins('train'))]


def describe(loaded) -> str:
  """The model, its step and its attention."""
  model = loaded.model
  attention = attention_name(model.attention_fns)
  return f'{type(model).__name__}, step {loaded.step:,}, {attention} attention'


def attention_name(attention_fns) -> str:
  """A short name of a model's attention: its kind and what changes its scores.

  A hybrid's names are joined by +.
  """
  return ' + '.join(_attention_name(fn) for fn in attention_fns)


def _attention_name(fn):
  from fast_attention import FastAttention, factories, kernels

  if not isinstance(fn, FastAttention):
    name = getattr(fn, '__name__', type(fn).__name__)
    return re.sub('_?attention$', '', name.lower())
  if fn.kernel_fn is None:
    kind, factory = 'softmax', factories.make_fast_softmax_attention
    shown = [f'nb_features={fn.nb_features}']
  else:
    kind, factory = 'generalized', factories.make_fast_generalized_attention
    shown = [kernels.kernel_name(fn.kernel_fn)]
  usual = inspect.unwrap(factory)()  # what gin bindings have not changed
  for field in dataclasses.fields(fn):
    value = getattr(fn, field.name)
    is_told = field.name in (*_SILENT_FIELDS, 'kernel_fn')
    is_told |= field.name == 'nb_features' and kind == 'softmax'
    if not is_told and value != getattr(usual, field.name):
      shown.append(f'{field.name}={value}')
  return f'{kind}({", ".join(shown)})'


def _bar(split, num_batches):
  from tqdm import tqdm

  return tqdm(
    total=num_batches,
    desc=split,
    unit='batch',
    leave=False,
    disable=not sys.stderr.isatty(),
  )


def _rows(loaded, data, split, proteins, scores, fitted):
  """A row for each slice and each of the baselines and the model."""
  from protein_lm import evaluation

  entries = []
  for baseline in fitted:
    its = evaluation.baseline_scores(baseline, proteins, scores)
    entries.append((baseline.name, None, None, its))
  attention = attention_name(loaded.model.attention_fns)
  entries.append((type(loaded.model).__name__, loaded.step, attention, scores))
  rows = []
  for part, (where_T, where_P) in evaluation.slices(proteins).items():
    for name, step, kind, its in entries:
      values = (data.name, data.max_len, split, part)
      values += (name, step, kind, its.objective)
      row = dict(zip(evaluation_table.KEY, values, strict=True))
      row |= evaluation.summarize(its, proteins, where_T, where_P)
      rows.append(row)
  return rows


def _draw(work_dir, loaded, data, scores, fitted):
  """Draws the learning curve and each split's accuracies; returns the paths."""
  from protein_lm import evaluation, metrics, plots

  paths = []
  is_masked = loaded.model.objective == 'masked'
  residue = 'masked residue' if is_masked else 'residue'
  records = metrics.read(work_dir)
  if records:
    split = 'validation' if 'validation' in data.splits else next(iter(scores))
    proteins = data.proteins(split)
    scored_T = evaluation.counted_residues(proteins)
    if is_masked:
      scored_T &= evaluation.masked_residues(proteins)
    values = {}
    for baseline in fitted:
      nll_T = baseline.nll(proteins)[scored_T]
      values[baseline.name] = evaluation.perplexity(nll_T.mean())
    figure = plots.learning_curve(
      records,
      values,
      f'perplexity per {residue}',
      f'Learning curve, and baselines on {split} (dashed)',
    )
    paths.append(work_dir / 'learning_curve.png')
    plots.save(figure, paths[-1])
  attention = attention_name(loaded.model.attention_fns)
  for split, its in scores.items():
    accuracy, count = plots.accuracy_by_letter(its, data.proteins(split))
    figure = plots.accuracy_per_residue(
      accuracy,
      count,
      f'Accuracy per {residue} on {split}\n{describe(loaded)}',
    )
    slug = re.sub('[^a-z0-9]+', '-', attention.lower()).strip('-')
    paths.append(work_dir / f'accuracy_{split}_{slug}.png')
    plots.save(figure, paths[-1])
  return paths


def _one_pass(work_dir, step, id_or_path, gin_bindings):
  from protein_lm import loading, one_pass

  loaded = loading.load(work_dir, step, gin_bindings)
  data = loaded.open_data()
  loaded = _calibrated(loaded, data)
  protein = one_pass.find_protein(id_or_path, data)
  print(describe(loaded), flush=True)
  return one_pass.score_one_pass(
    loaded.make_score_step(),
    loaded.weights,
    protein,
    is_masked=loaded.model.objective == 'masked',
  )


def _main(argv):
  del argv
  args = flags.FLAGS
  work_dir = os.path.abspath(os.path.expanduser(args.work_dir))
  step = args.step
  if step not in ('latest', 'best', 'all'):
    if not step.isdecimal():
      raise ValueError(f'--step is a number, latest, best or all, got {step!r}')
    step = int(step)
  if args.one_pass:
    print(_one_pass(work_dir, step, args.one_pass, args.gin_bindings))
    return
  rows, paths = evaluate(work_dir, step, args.splits, args.gin_bindings)
  print('\n' + evaluation_table.format_table(rows) + '\n')
  for path in paths:
    print(f'wrote {path}')


def main():
  """Defines the flags and runs; the console script protein-lm-evaluate."""
  flags.DEFINE_string('work_dir', None, 'Folder of the run.', required=True)
  flags.DEFINE_string('step', 'latest', 'A number, latest, best or all.')
  flags.DEFINE_list('splits', None, 'Such as test,ood (those, by default).')
  flags.DEFINE_string(
    'one_pass',
    None,
    'Score one protein without windows instead: an id of any split, or a FASTA '
    'file, whose longest protein is taken.',
  )
  flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    "Bindings on top of the run's, such as "
    '"FlaxModel.attention_fn = @exact_attention()".',
  )
  cli.run(_main)


if __name__ == '__main__':
  main()
