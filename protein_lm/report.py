"""A report to read: python -m protein_lm.report --work_dir=D

Scores one split (test, if there is one) and writes D/report.html, one file that
needs no network: learning curves with baselines; perplexity by length, position
and residue; confusions; calibration; similarity of amino acids beside BLOSUM62;
attention maps of one protein; the error of random features in each layer.
"""

import html
import os
import pathlib

import numpy as np
from absl import flags

from protein_lm import cli

FILE_NAME = 'report.html'
_NUM_PROTEINS = 24  # whose attention is looked at
_MAX_RESIDUES = 254  # of each of them: with BOS and EOS 256 tokens


def write_report(
  work_dir,
  step='latest',
  split=None,
  protein=None,
  gin_bindings=(),
  *,
  fasta=None,
  out=None,
):
  """Writes the report of a checkpoint.

  Args:
    work_dir: the folder of a run.
    step: a step, 'latest' or 'best'.
    split: that is scored; test if there is one, else another that is not train.
    protein: id of the protein of the split whose attention maps are drawn; the
      longest of up to 254 residues by default.
    gin_bindings: bindings on top of the run's, such as another attention.
    fasta: a file to score instead of a split.
    out: path of the page; report.html in work_dir by default.

  Returns:
    The path.

  Raises:
    ValueError: for a split or protein that does not exist.
    checkpoint.CheckpointError: without a good checkpoint.
  """
  from protein_lm import html_page, loading, report_facts
  from protein_lm.attention_name import describe
  from protein_lm.evaluator import Evaluator
  from protein_lm.scorer import Scorer

  loaded = loading.load(work_dir, step, gin_bindings)
  if split is None and fasta is None:
    names = [name for name in loaded.open_data().splits if name != 'train']
    split = 'test' if 'test' in names else (names or ['train'])[0]
  evaluator = Evaluator(loaded, splits=split and [split], fasta=fasta)
  ((split, proteins),) = evaluator.splits.items()
  chosen = report_facts.choose_proteins(
    proteins, _NUM_PROTEINS, _MAX_RESIDUES, evaluator.max_len - 2
  )
  shown = chosen[0] if chosen else None
  if protein is not None:
    shown = _find(protein, proteins, split)
  scorer = Scorer(loaded, data=evaluator.data)
  loaded = scorer.loaded
  print(f'{describe(loaded)}: scoring {split}', flush=True)
  scores = scorer.score(proteins)
  parts = [
    _heading(loaded, evaluator),
    *_perplexity(loaded, evaluator, split, scores),
    *_predictions(scores, proteins),
    *_attention(loaded, proteins, chosen, shown),
  ]
  title = f'{type(loaded.model).__name__} at step {loaded.step:,}'
  return html_page.write(
    pathlib.Path(out or pathlib.Path(loaded.work_dir, FILE_NAME)),
    html_page.page(title, parts),
  )


def _find(protein, proteins, split):
  if protein not in proteins.ids:
    raise ValueError(
      f'{protein!r} is no id of split {split!r}, whose first is '
      f'{proteins.ids[0]!r}; choose another --protein or --split'
    )
  return proteins.ids.index(protein)


def _heading(loaded, evaluator):
  from protein_lm import html_page, models
  from protein_lm.attention_name import describe

  name = describe(loaded)
  facts = [
    ('model', name),
    ('parameters', f'{models.num_params(loaded.params):,}'),
    ('trained to', 'predict masked residues from both sides')
    if loaded.model.objective == 'masked'
    else ('trained to', 'predict each residue from those before it'),
    ('data', evaluator.data_name),
    ('rows', f'{evaluator.max_len:,} tokens'),
    ('folder', loaded.work_dir),
  ]
  return f'<h1>{html.escape(name)}</h1>\n' + html_page.table((), facts, 2)


def _perplexity(loaded, evaluator, split, scores):
  """The headline, the learning curves, and where perplexity comes from."""
  from protein_lm import (
    evaluation,
    evaluation_figures,
    evaluation_table,
    html_page,
    metrics,
    report_facts,
    report_figures,
  )

  proteins, fitted = evaluator.splits[split], evaluator.fitted
  residue = 'masked residue' if evaluator.is_masked else 'residue'
  label = f'perplexity per {residue}'
  yield '<h2>Perplexity</h2>'
  value = evaluation.perplexity(
    scores.nll[scores.scored].astype(np.float64).mean()
  )
  yield (
    f'<p>On {html.escape(split)}, {len(proteins):,} proteins and '
    f'{scores.scored.sum():,} scored {residue}s: {label} '
    f'<b>{value:.3f}</b>.</p>'
  )
  rows = evaluation_table.read_rows(loaded.work_dir)
  if rows:
    header = ('split', 'objective', 'who', 'perplexity', 'bits', 'accuracy')
    yield html_page.table((*header, 'residues'), report_facts.headline(rows), 3)
  records = metrics.read(loaded.work_dir)
  if records:
    yield '<h2>Learning curves</h2>'
    yield html_page.figure(
      evaluation_figures.learning_curve(evaluator, records, residue),
      'Perplexity against training step, baselines as dashed lines.',
      'Perplexity while training; dashed, the baselines. A curve of validation '
      'that rises while that of train falls is overfitting.',
    )
  yield f'<h2>Where it comes from ({html.escape(split)})</h2>'
  shown = fitted[1:]  # not the uniform one
  for curve, x_label, caption in (
    (
      report_facts.by_length(scores, proteins, shown),
      'length of the protein',
      'Perplexity by length of the protein.',
    ),
    (
      report_facts.by_position(scores, proteins, shown),
      'position from the N-terminus',
      'Perplexity by position; the first residue, nearly always M, is left '
      'out. A model that uses context gets better along the protein.',
    ),
  ):
    yield html_page.figure(
      report_figures.perplexity_by_bin(curve, x_label, label), caption, caption
    )
  yield html_page.figure(
    report_figures.perplexity_by_residue(
      *report_facts.by_residue(scores, proteins), label
    ),
    'Bars of perplexity on each amino acid.',
    'Perplexity on each amino acid; orange, what guessing by frequency gets. '
    'Rare letters are hard.',
  )


def _predictions(scores, proteins):
  """Confusions and calibration."""
  from protein_lm import calibration, html_page, report_facts, report_figures

  yield '<h2>Confusions</h2>'
  yield html_page.figure(
    report_figures.confusion(report_facts.confusion(scores, proteins)),
    'Matrix of true against predicted amino acids.',
    'Which letter is predicted (column) where which one stands (row). A column '
    'that is dark throughout is a letter guessed by frequency; dark squares '
    'along the diagonal are groups that the model tells apart from the others.',
  )
  said = scores.confidence[scores.scored], scores.correct[scores.scored]
  error = calibration.expected_calibration_error(*said)
  yield '<h2>Calibration</h2>'
  yield html_page.figure(
    report_figures.reliability(calibration.reliability(*said)),
    'Accuracy against confidence in bins.',
    'How often a prediction of a given probability is right. Below the '
    'diagonal the model is too sure of itself. Expected calibration error '
    f'{error:.2%}.',
  )


def _attention(loaded, proteins, chosen, shown):
  """Similarity of letters, attention maps, error of the features."""
  if shown is None:
    yield '<h2>Attention</h2>\n<p>No protein fits into a row.</p>'
    return
  chosen = chosen or [shown]
  from protein_lm import html_page, report_facts, report_figures, similarity
  from protein_lm.attention_maps import attention_maps

  def residue_maps(p):
    weights_NHLL = attention_maps(loaded, report_facts.letters_of(proteins, p))
    return np.asarray(weights_NHLL)[:, :, 1:-1, 1:-1]  # no BOS, no EOS

  maps = []
  for p in chosen:
    start, end = proteins.offsets[p : p + 2]
    maps.append((proteins.residues[start:end], residue_maps(p)))
  by_attention = similarity.from_attention(maps, loaded.model.causal)
  by_output = similarity.from_output(loaded.model)
  told = []
  for matrix in (by_attention, by_output):
    pearson, spearman = similarity.correlations(matrix)
    told.append(f'r = {pearson:.2f}, rho = {spearman:.2f}')
  yield '<h2>Similarity of amino acids</h2>'
  yield html_page.figure(
    report_figures.similarities(
      {
        f'attention ({told[0]})': by_attention,
        f'output layer ({told[1]})': by_output,
        'BLOSUM62': similarity.BLOSUM62_AB,
      }
    ),
    'Three matrices of amino acids: attention, output layer, BLOSUM62.',
    f'Left: letters that the same heads attend to, over all heads and layers '
    f'and {len(chosen)} proteins. Middle: cosines of the vectors of the output '
    'layer. Right: BLOSUM62. With it, over the 190 pairs: attention '
    f'{told[0]}; output layer {told[1]} (Pearson, Spearman).',
  )
  name = proteins.ids[shown]
  drawn = (
    maps[chosen.index(shown)][1] if shown in chosen else residue_maps(shown)
  )
  yield f'<h2>Attention maps of {html.escape(name)}</h2>'
  yield html_page.figure(
    report_figures.attention_maps(drawn),
    'Attention weights of each head, or layer.',
    f'Queries from top to bottom, keys from left to right, {drawn.shape[-1]:,} '
    'residues; darker is more. Of fast attention, the matrix that it implies, '
    "phi(q) phi(k)', each row divided by its sum.",
  )
  sequences = [report_facts.letters_of(proteins, p) for p in chosen[:8]]
  yield from _kernel_error(loaded, sequences)


def _kernel_error(loaded, sequences):
  """Of the model's own random features, or of those it could be swapped to."""
  import jax

  from fast_attention import FastAttention, make_fast_softmax_attention
  from protein_lm import html_page, report_figures, residue_log_probs
  from protein_lm.attention_name import attention_name
  from protein_lm.kernel_error import kernel_errors

  rows = [residue_log_probs.with_ends(sequence) for sequence in sequences]
  tokens_BL = residue_log_probs.pad_rows(
    rows, len(rows), max(len(tokens) for tokens in rows)
  )
  attention_fns = loaded.model.attention_fns
  swapped = None
  if not any(isinstance(fn, FastAttention) for fn in attention_fns):
    swapped = make_fast_softmax_attention()
  error_NH, uniform_NH = jax.jit(kernel_errors, static_argnames='attention_fn')(
    loaded.model, tokens_BL, attention_fn=swapped
  )
  error_NH, uniform_NH = np.asarray(error_NH), np.asarray(uniform_NH)
  name = attention_name(attention_fns if swapped is None else (swapped,))
  yield '<h2>Error of random features</h2>'
  if swapped is not None:
    yield (
      f'<p>The model computes exact attention; this is the error that '
      f'{html.escape(name)} would make on its queries and keys.</p>'
    )
  labels = [f'{n}' for n in range(1, len(error_NH) + 1)]
  yield html_page.figure(
    report_figures.kernel_error(error_NH, uniform_NH, labels),
    'Error of each head by layer, beside that of equal weights.',
    f'{name}: L1 distance (0 to 2) of a row of attention to that of softmax '
    f'attention on the same queries and keys, mean over {len(sequences)} '
    'proteins. Equal weights on all keys are what attention is worth that '
    'looks at nothing. A kernel that is not softmax is far by design.',
  )
  yield html_page.table(
    ('layer', 'random features', 'equal weights'),
    [
      (label, f'{error_H.mean():.3f}', f'{uniform_H.mean():.3f}')
      for label, error_H, uniform_H in zip(
        labels, error_NH, uniform_NH, strict=True
      )
    ],
  )


def _main(argv):
  del argv
  args = flags.FLAGS
  path = write_report(
    os.path.abspath(os.path.expanduser(args.work_dir)),
    cli.parse_step(args.step),
    args.split,
    args.protein,
    args.gin_bindings,
    fasta=args.fasta and os.path.expanduser(args.fasta),
    out=args.out and os.path.expanduser(args.out),
  )
  print(f'wrote {path}')


def main():
  """Defines the flags and runs; the console script protein-lm-report."""
  cli.define_model_flags()
  flags.DEFINE_string('split', None, 'The split to score; test by default.')
  flags.DEFINE_string('fasta', None, 'Score the proteins of this file.')
  flags.DEFINE_string('protein', None, 'Id whose attention maps are drawn.')
  flags.DEFINE_string('out', None, 'The page; report.html in work_dir.')
  cli.run(_main)


if __name__ == '__main__':
  main()
