"""The figures of an evaluation, as files in the folder of the run."""

import pathlib

from protein_lm import evaluation, metrics, plots
from protein_lm.attention_name import attention_name, describe, slug


def draw(work_dir, findings, evaluator) -> list[pathlib.Path]:
  """Draws the learning curve, accuracies, and perplexity against similarity.

  Args:
    work_dir: folder of the run.
    findings: evaluation_files.Findings of the last step.
    evaluator: the Evaluator.

  Returns:
    The paths.
  """
  work_dir = pathlib.Path(work_dir)
  residue = 'masked residue' if evaluator.is_masked else 'residue'
  figures = {}
  if records := metrics.read(work_dir):
    curve = learning_curve(evaluator, records, residue)
    figures['learning_curve'] = curve
  for loaded, all_scores in findings.scores:
    name = slug(attention_name(loaded.model.attention_fns))
    for split, scores in all_scores.items():
      proteins = evaluator.splits[split]
      figures[f'accuracy_{split}_{name}'] = plots.accuracy_per_residue(
        *plots.accuracy_by_letter(scores[0], proteins),
        f'Accuracy per {residue} on {split}\n{describe(loaded)}',
      )
      figures[f'similarity_{split}_{name}'] = plots.perplexity_by_share(
        scores,
        proteins,
        f'Perplexity per {residue} on {split}, by similarity to train\n'
        f'{describe(loaded)}',
      )
  paths = []
  for name, figure in figures.items():
    if figure is not None:
      paths.append(work_dir / f'{name}.png')
      plots.save(figure, paths[-1])
  return paths


def learning_curve(evaluator, records, residue):
  """The run's metrics, and baselines on validation (or the first split)."""
  split, proteins = next(iter(evaluator.splits.items()))
  if evaluator.data is not None and 'validation' in evaluator.data.splits:
    split, proteins = 'validation', evaluator.data.proteins('validation')
  scored_T = evaluation.counted_residues(proteins)
  mask_T = None
  if evaluator.is_masked:
    mask_T = evaluation.masked_residues(proteins)
    scored_T &= mask_T
  shown = evaluation.Scores(scored_T, scored_T, mask=mask_T)
  values = {}
  for baseline in evaluator.fitted:
    nll_T = evaluation.baseline_scores(baseline, proteins, shown).nll
    values[baseline.name] = evaluation.perplexity(nll_T[scored_T].mean())
  return plots.learning_curve(
    records,
    values,
    f'perplexity per {residue}',
    f'Learning curve, and baselines on {split} (dashed)',
  )
