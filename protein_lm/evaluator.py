"""Evaluates checkpoints of one run on its splits, or on the user's proteins.

Axes: T residues of a split, P proteins.
"""

import contextlib
import sys
import time

import numpy as np

from protein_lm import (
  attention_comparison,
  baselines,
  evaluation,
  evaluation_table,
  per_sequence,
  projection_draws,
  pseudo_perplexity,
  subset,
  two_sided_ngram,
)
from protein_lm.attention_name import attention_name, describe
from protein_lm.evaluation_proteins import choose_proteins
from protein_lm.scorer import DEFAULT_MAX_LEN, Scorer, check_objective


class Evaluator:
  """The proteins and fitted baselines, for one checkpoint after another.

  Attributes:
    data: Data of the run; None where a FASTA file is evaluated and it is gone.
    data_name: of the rows.
    splits: name -> Proteins.
    fitted: baselines, of those that know what the model may know.
    is_masked: whether the run's models are.
    max_len: tokens of a row.
  """

  def __init__(
    self,
    loaded,
    *,
    splits=None,
    fasta=None,
    num_projections=None,
    num_pseudo=None,
    batch_size=None,
    num_devices=None,
  ):
    """Reads proteins and fits baselines; see evaluate.evaluate.

    Raises:
      ValueError: an unknown split, a model of labels, a causal model whose
        pseudo-perplexity is asked for.
    """
    check_objective(loaded)
    self.is_masked = loaded.model.objective == 'masked'
    if num_pseudo is not None:
      pseudo_perplexity.check(loaded)
    self._num_projections, self._num_pseudo = num_projections, num_pseudo
    self._options = dict(batch_size=batch_size, num_devices=num_devices)
    self.max_len = loaded.data_arguments.get('max_len') or DEFAULT_MAX_LEN
    self.data, self.data_name, self.splits = choose_proteins(
      loaded, splits, fasta
    )
    self.fitted = _fit(self.data, self.is_masked)

  def evaluate(self, loaded, findings, with_kernel_error=False) -> None:
    """Scores all splits with a checkpoint.

    Args:
      loaded: LoadedModel.
      findings: evaluation_files.Findings, which takes what is found.
      with_kernel_error: measure the kernel error of each layer too.
    """
    scorer = self._scorer(loaded)
    loaded = scorer.loaded
    print(describe(loaded), flush=True)
    run = {
      'step': loaded.step,
      'attention': attention_name(loaded.model.attention_fns),
      'data': self.data_name,
      'max_len': scorer.max_len,
    }
    all_scores = {}
    for split, proteins in self.splits.items():
      scores = all_scores[split] = _score(scorer, split, proteins)
      findings.rows += self._rows(scorer, split, proteins, scores, run)
      rows = per_sequence.rows(scores, proteins)
      findings.sequences.append(
        (split, per_sequence.add_columns(rows, proteins, **run))
      )
    findings.scores.append((loaded, all_scores))
    if with_kernel_error:
      split, proteins = next(iter(self.splits.items()))
      errors = attention_comparison.kernel_error_rows(scorer, proteins)
      print(attention_comparison.format_errors(scorer, errors), flush=True)
      named = {name: run[name] for name in ('data', 'step', 'attention')}
      findings.kernel_errors += [
        {**named, 'split': split, **row} for row in errors
      ]

  def rows_of(self, work_dir, steps) -> list[dict]:
    """All rows of evaluation.json on these proteins, of some steps."""
    where = (self.data_name, self.max_len)
    return [
      row
      for row in evaluation_table.read_rows(work_dir)
      if row['split'] in self.splits
      and row['step'] in {None, *steps}
      and (row['data'], row['max_len']) == where
    ]

  def _scorer(self, loaded):
    return Scorer(loaded, data=self.data, **self._options)

  def _rows(self, scorer, split, proteins, scores, run):
    """Rows of a split, for baselines and model."""
    extra = {None: {}, **{baseline: {} for baseline in self.fitted}}
    extra[None] |= self._projections(scorer, split, proteins, scores)
    if self._num_pseudo is not None:
      for key, values in self._pseudo(scorer, split, proteins).items():
        extra[key] |= values
    entries = [
      (
        (baseline.name, None, None),
        [evaluation.baseline_scores(baseline, proteins, x) for x in scores],
        extra[baseline],
      )
      for baseline in self.fitted
    ]
    model = scorer.loaded.model
    who = (type(model).__name__, run['step'], run['attention'])
    entries.append((who, scores, extra[None]))
    rows = []
    for part, (where_T, where_P) in evaluation.slices(proteins).items():
      for who, its, more in entries:
        values = (run['data'], run['max_len'], split, part)
        values += (*who, model.objective)
        row = dict(zip(evaluation_table.KEY, values, strict=True))
        row |= evaluation.summarize(its, proteins, where_T, where_P)
        rows.append(row | more if part == 'all' else row)
    return rows

  def _projections(self, scorer, split, proteins, scores):
    """Mean and spread over draws of the projection, of the whole or a part."""
    attention_fns = scorer.loaded.model.attention_fns
    number = self._num_projections
    is_sample = number is None
    number = projection_draws.NUM_DRAWS if is_sample else number
    is_drawn = projection_draws.has_projection(attention_fns)
    if number < 2 or not is_drawn or not any(x.scored.any() for x in scores):
      return {}
    numbers = np.arange(len(proteins))
    if is_sample:
      numbers = projection_draws.sample(proteins)
    part = subset.take(proteins, numbers)
    where_P = np.isin(np.arange(len(proteins)), numbers)
    where_T = np.repeat(where_P, proteins.lengths)
    found = [_perplexity(scores, where_T)]
    for draw in range(1, number):
      other = self._scorer(projection_draws.redraw(scorer.loaded, draw))
      found.append(_perplexity([other.score(part, k=k) for k in other.masks]))
    values = projection_draws.summarize(found, len(part.residues))
    which = 'the whole split'
    if len(part) < len(proteins):
      which = (
        f'{len(part):,} of {len(proteins):,} proteins, a fixed sample '
        f'(--num_projections={number} takes all)'
      )
    listed = ' '.join(f'{x:.3f}' for x in found)
    print(
      f'{split}: perplexity over {number} draws of the projection, its own '
      f'first: {listed}; mean {values["projection_perplexity_mean"]:.3f}, '
      f'standard deviation {values["projection_perplexity_std"]:.3f}, on '
      f'{which}',
      flush=True,
    )
    if projection_draws.is_fixed(attention_fns):
      print(
        '  redraw_features is False: training may have adapted to its own draw',
        flush=True,
      )
    if self.is_masked:
      return {f'masked_{name}': value for name, value in values.items()}
    return values

  def _pseudo(self, scorer, split, proteins):
    """None -> metrics of the model, baseline -> its own."""
    plan = pseudo_perplexity.plan(scorer, proteins, split, self._num_pseudo)
    print(plan.text, flush=True)
    part = plan.proteins
    with _bar(f'{split} pseudo', plan.num_batches) as bar:
      scores = pseudo_perplexity.score(scorer, part, lambda _: bar.update())
    estimates = pseudo_perplexity.one_pass(scorer, part)
    found = {
      baseline: pseudo_perplexity.summarize_baseline(baseline, scores, part)
      for baseline in self.fitted
    }
    found[None] = pseudo_perplexity.summarize(scores, estimates, part)
    return found


def _score(scorer, split, proteins):
  """Scores under each mask; a line of how fast."""
  batches = scorer.batches(proteins)
  num_passes = len(batches) * len(scorer.masks)
  if num_passes:
    scorer.seconds_per_batch(proteins)  # compiles
  num_read = batches.num_tokens * len(scorer.masks)
  done = []

  def after_batch(num_tokens):
    done.append(num_tokens)
    bar.update()

  start = time.perf_counter()
  with _bar(split, num_passes) as bar:
    scores = [
      scorer.score(proteins, k=k, after_batch=after_batch) for k in scorer.masks
    ]
  seconds = max(time.perf_counter() - start, 1e-9)
  times = f' x {len(scores)} masks' if len(scores) > 1 else ''
  print(
    f'{split}: {len(proteins):,} proteins, {len(proteins.residues):,} residues'
    f'{times} in {seconds:.1f} s: {sum(done) / seconds:,.0f} tokens/s scored, '
    f'{num_read / seconds:,.0f} read (windows of long proteins overlap)',
    flush=True,
  )
  return scores


def _perplexity(scores, where_T=None):
  nll = [
    one.nll[one.scored if where_T is None else one.scored & where_T]
    for one in scores
  ]
  nll = np.concatenate(nll)
  return evaluation.perplexity(nll.mean(dtype=np.float64))


@contextlib.contextmanager
def _bar(name, num_batches):
  from tqdm import tqdm

  with tqdm(
    total=num_batches,
    desc=name,
    unit='batch',
    leave=False,
    disable=not sys.stderr.isatty(),
  ) as bar:
    yield bar


def _fit(data, is_masked):
  """The baselines that know what the model may know."""
  if data is None:
    return [baselines.uniform()]
  train = data.proteins('train')
  if 'validation' not in data.splits:
    print(
      'there is no validation split, so uniform and unigram alone are fitted'
    )
    return [baselines.uniform(), baselines.fit_unigram(train)]
  validation = data.proteins('validation')
  if not is_masked:
    return baselines.fit_baselines(train, validation)
  unigram = baselines.fit_unigram(train)
  two_sided = two_sided_ngram.fit(train, validation, unigram)
  return [baselines.uniform(), unigram, two_sided]
