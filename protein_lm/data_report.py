"""A look at a prepared data set: one HTML page that needs nothing else.

What is measured is in `data_facts`, the figures are in `data_figures`.
Everything that comes from data is escaped.
"""

import collections
import datetime
import html
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from protein_lm import data_facts, data_figures, html_page, vocab
from protein_lm.data_facts import LEAK_SHARE, SplitFacts

_ROW_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)  # tokens
_CATALOG = 'https://www.tensorflow.org/datasets/catalog/'


def _heading(builder) -> str:
  info = builder.info
  homepage = html.escape(info.homepage or '')
  if homepage.startswith(_CATALOG):  # what TFDS says where nothing was said
    homepage = ''
  if homepage.startswith(('http://', 'https://')):
    homepage = f'<a href="{homepage}">{homepage}</a>'
  config = getattr(builder, 'builder_config', None)
  descriptions = (info.description, getattr(config, 'description', None))
  facts = {
    'Data set': html.escape(info.full_name),
    'Version': html.escape(str(info.version)),
    'Description': html.escape(' '.join(filter(None, descriptions))),
    'Source': homepage,
    'Licence': html.escape(info.redistribution_info.license or ''),
    'Prepared': _date_prepared(builder),
    'Lies in': f'<code>{html.escape(str(builder.data_dir))}</code>',
  }
  rows = ''.join(
    f'<tr><th>{name}</th><td>{text}</td></tr>'
    for name, text in facts.items()
    if text.strip()
  )
  return f'<h1>{html.escape(info.full_name)}</h1>\n<table>{rows}</table>'


def _date_prepared(builder) -> str:
  """The day on which the description was written, '' if unknown."""
  try:
    seconds = (
      pathlib.Path(builder.data_dir, 'dataset_info.json').stat().st_mtime
    )
  except OSError:
    return ''
  return f'{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d}'


def _splits_table(facts: Sequence[SplitFacts]) -> str:
  """One column for each split."""
  total = max(sum(split.num_residues for split in facts), 1)
  train = data_facts.find_train(facts)

  def share_of(letters):
    places = [vocab.RESIDUES.index(letter) for letter in letters]
    return lambda split: f'{split.letter_shares[places].sum():.4%}'

  def quantile(q):
    return lambda split: f'{np.quantile(split.proteins.lengths, q):,.0f}'

  def leaked(split):
    if split.name == 'train' or not len(split.train_shares):
      return '-'
    return f'{split.leaked:.1%}'

  def leaked_in_all(split):
    share = split.leaked_in_all
    return '-' if np.isnan(share) else f'{share:.1%}'

  def not_measured(split):
    missing = len(split.proteins) - len(split.train_shares)
    return '-' if split.name == 'train' else f'{missing:,}'

  def shift(split):
    if train in (None, split):
      return '-'
    return f'{data_facts.letter_shift(split, train):.1%}'

  rows = {
    'proteins': lambda split: f'{split.num_proteins:,}',
    'residues': lambda split: f'{split.num_residues:,}',
    'share of the residues': lambda split: f'{split.num_residues / total:.1%}',
    'length, shortest': quantile(0),
    'length, median': quantile(0.5),
    'length, mean': lambda split: f'{split.proteins.lengths.mean():,.0f}',
    'length, 95 %': quantile(0.95),
    'length, longest': quantile(1),
    'clusters': lambda split: f'{len(split.cluster_residues):,}',
    'residues in the largest cluster': (
      lambda split: f'{split.largest_cluster[1]:.1%}'
    ),
    'X (unknown)': share_of('X'),
    'B, O, U, Z': share_of('BOUZ'),
    'letters other than in train': shift,
    f'share {LEAK_SHARE:.0%} of their 8-mers with one of train': leaked,
    f'share {LEAK_SHARE:.0%} of their 8-mers with all of train': leaked_in_all,
    'not measured against train': not_measured,
    'content (sha256)': lambda split: split.sha256[:12],
  }
  return html_page.table(
    ['', *(split.name for split in facts)],
    [[name, *map(function, facts)] for name, function in rows.items()],
  )


def _fill_section(split: SplitFacts) -> str:
  fills = [
    data_facts.measure_fill(split.proteins.lengths, n) for n in _ROW_LENGTHS
  ]
  rows = [
    (f'{f.max_len:,}', f'{f.packed:.1%}', f'{f.padded:.1%}', f'{f.whole:.1%}')
    for f in fills
  ]
  figure = html_page.figure(
    data_figures.plot_fill(fills),
    'Lines: share of tokens that are not padding, packed and padded, and '
    'residues in proteins that fit, against the row length.',
    'Look for the shortest row in which most residues lie in whole proteins: '
    'of longer proteins a step sees only a window. With one protein a row, '
    'what is missing to 100 % is computed for nothing.',
  )
  header = ('tokens of a row', 'packed', 'one protein a row', 'fit whole')
  return (
    f'<h2>Rows of {html.escape(split.name)}</h2>'
    + figure
    + html_page.table(header, rows, 0)
  )


def _leakage_section(facts: Sequence[SplitFacts]) -> str:
  measured = [s for s in facts if s.name != 'train' and len(s.train_shares)]
  if not measured:
    return ''
  words = ', '.join(f'{s.name} {s.leaked:.1%}' for s in measured)
  return '<h2>What is shared with train</h2>' + html_page.figure(
    data_figures.plot_leakage(measured),
    "Histograms: largest share of a protein's 8-mers found in one protein of "
    f'train. {LEAK_SHARE:.0%} or more shared: {words}.',
    'Look right of the dashed line: there are close relatives of what is '
    'trained on, and scores there flatter the model. Remote relatives share no '
    '8-mers and are not seen here.',
  )


def _organisms_section(facts: Sequence[SplitFacts]) -> str:
  organisms = sum((s.organisms for s in facts), collections.Counter())
  if not organisms:
    return ''
  if len(organisms) == 1:
    (name,) = organisms
    return (
      f'<h2>Organisms</h2><p>All {organisms.total():,} counted records that '
      f'name an organism name {html.escape(name)}.</p>'
    )
  num_drawn = min(len(organisms), data_figures.NUM_ORGANISMS)
  return '<h2>Organisms</h2>' + html_page.figure(
    data_figures.plot_organisms(organisms),
    'Bars: shares of the most frequent organisms.',
    f'The {num_drawn} most frequent organisms of {len(organisms):,}, counted '
    f'in {organisms.total():,} records that name one. Look for '
    'one that stands for most of what is learned.',
  )


def _examples_section(split: SplitFacts) -> str:
  rows = []
  for record in split.examples:
    sequence = record['sequence'].decode()
    start = data_figures.shortened(sequence, 30)
    words = [record[key].decode() for key in ('id', 'description', 'organism')]
    rows.append((*words, start, f'{len(sequence):,}'))
  header = ('id', 'description', 'organism', 'sequence', 'length')
  return (
    f'<h2>Some records of {html.escape(split.name)}</h2>'
    + html_page.table(header, rows, 4)
  )


def _page(builder, facts: Sequence[SplitFacts]) -> str:
  main = data_facts.find_train(facts) or facts[0]
  counts = builder.info.metadata.get('counts', {})
  parts = [
    _heading(builder),
    html_page.notes(data_facts.find_notes(facts)),
    '<h2>Splits</h2>',
    _splits_table(facts),
    html_page.figure(
      data_figures.plot_sizes(facts),
      'Bars: proteins and residues of each split.',
      'Look whether validation and test are large enough: among few proteins '
      'one family decides the score.',
    ),
    '<h2>Read, changed and left out</h2>',
    html_page.table((), [(name, f'{n:,}') for name, n in counts.items()]),
    '<h2>Lengths</h2>',
    html_page.figure(
      data_figures.plot_lengths(facts),
      'Histograms of protein lengths, one for each split.',
      'Dashed: the lengths below which 5, 50 and 95 % of the proteins lie. '
      'Splits of one kind have one shape; a peak at one length may be '
      'fragments, or sequences cut off by whoever made the file.',
    ),
    '<h2>Residues</h2>',
    html_page.figure(
      data_figures.plot_letters(facts),
      'Bars of letter frequencies, the splits side by side.',
      'Bars of one letter should be about equal: a split that differs holds '
      'other proteins than train, such as one large repetitive family.',
    ),
    _fill_section(main),
    _leakage_section(facts),
    _organisms_section(facts),
    _examples_section(main),
  ]
  return html_page.page(builder.info.full_name, parts)


def write_report(builder, path: os.PathLike | str) -> pathlib.Path:
  """Writes a page that shows what is in a prepared data set.

  Args:
    builder: as `prepare.prepare` returns it.
    path: of the HTML file; replaced as a whole if it exists.

  Returns:
    The path.

  Raises:
    ValueError: a file of the data set is missing, damaged or changed, or the
      page cannot be written.
  """
  return html_page.write(path, _page(builder, data_facts.measure(builder)))
