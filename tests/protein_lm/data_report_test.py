"""The page about a data set: whole, self-contained, escaped, and right."""

import base64
import html.parser

import numpy as np
import pytest

from protein_lm import data_report, prepare, vocab

FIGURES = ('protein', 'length', 'letter', 'padding', '8-mers', 'organisms')


class Page(html.parser.HTMLParser):
  """The tags, their attributes and the text of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.text = [], [], ''
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('meta', 'img', 'link', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data

  def attributes(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope='module')
def builder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('report')
  path = folder / 'my<b>.fasta'
  rng = np.random.default_rng(0)
  sequences = [vocab.decode(rng.integers(0, 20, 80)) for _ in range(300)]
  path.write_text(
    ''.join(
      f'>p<b>{i} an <i>odd</i> one OS=Yeast $x$ <u>{i % 3} OX=1\n{sequence}\n'
      for i, sequence in enumerate(sequences)
    )
  )
  return prepare.prepare(str(path), folder / 'data')


@pytest.fixture(scope='module')
def page(builder, tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'report.html'
  assert data_report.write_report(builder, path) == path
  return Page(path.read_text(encoding='utf-8'))


def test_every_tag_is_closed(page):
  assert page.open == [] and page.attributes('html') == [{'lang': 'en'}]


def test_the_page_needs_nothing_else(page):
  assert not page.attributes('script') and not page.attributes('link')
  for attrs in page.attributes('img'):
    kind, data = attrs['src'].split(',')
    assert kind == 'data:image/svg+xml;base64'
    assert base64.b64decode(data).startswith(b'<?xml')


def test_every_figure_is_there_with_words_for_it(page):
  alts = [attrs['alt'] for attrs in page.attributes('img')]
  assert len(alts) == page.tags.count(('figcaption', {})) == len(FIGURES)
  for alt, word in zip(alts, FIGURES, strict=True):
    assert word in alt


def test_what_comes_from_data_is_text(page):
  assert not {'b', 'i', 'u'} & {tag for tag, _ in page.tags}
  for text in ('p<b>', 'an <i>odd</i> one', 'Yeast $x$ <u>'):
    assert text in page.text


def test_counts_and_sizes_are_those_of_the_metadata(page, builder):
  metadata = builder.info.metadata
  for text in metadata['counts']:
    assert text in page.text
  for content in metadata['content'].values():
    assert f'{content["num_residues"]:,}' in page.text
    assert content['sha256'][:12] in page.text


def test_the_same_data_gives_the_same_page(builder, tmp_path):
  pages = [
    data_report.write_report(builder, tmp_path / name).read_bytes()
    for name in 'ab'
  ]
  assert pages[0] == pages[1]


def test_a_path_that_cannot_be_written_is_named(builder, tmp_path):
  with pytest.raises(ValueError, match='no/report.html cannot be written'):
    data_report.write_report(builder, tmp_path / 'no' / 'report.html')
