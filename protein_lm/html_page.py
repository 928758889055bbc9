"""Pages that need nothing else: figures lie in them, text is escaped."""

import base64
import html
import io
import os
import pathlib
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 54rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem;
  margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
td:first-child { min-width: 8rem; }
td.number, th.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
code { font-size: .85rem; }
.notes { background: #fff4e0; border-left: 4px solid #e0912f;
  padding: .6rem 1rem .6rem 2rem; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; color: #444; }
img { width: 100%; min-width: 30rem; height: auto; }
@media print { body { max-width: none; font-size: 11pt; }
  img { min-width: 0; max-width: 16cm; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""


def _cell(tag: str, text, numeric: bool) -> str:
  kind = ' class="number"' if numeric else ''
  return f'<{tag}{kind}>{html.escape(str(text))}</{tag}>'


def table(header: Sequence, rows: Sequence[Sequence], num_text=1) -> str:
  """A table; all columns but the first `num_text` are numbers."""
  lines = [
    '<tr>'
    + ''.join(_cell(tag, text, i >= num_text) for i, text in enumerate(row))
    + '</tr>'
    for tag, row in (('th', header), *(('td', row) for row in rows))
    if row
  ]
  rows = '\n'.join(lines)
  return f'<div class="wide"><table>\n{rows}\n</table></div>'


def figure(drawn: Figure, alt: str, caption: str) -> str:
  """A figure as an image that lies in the page itself."""
  return (
    f'<figure><div class="wide"><img alt="{html.escape(alt)}" '
    f'src="{data_url(drawn)}"></div>'
    f'<figcaption>{html.escape(caption)}</figcaption></figure>'
  )


def data_url(figure: Figure) -> str:
  """A figure as an SVG image in a URL; the same figure gives the same one."""
  buffer = io.BytesIO()
  with matplotlib.rc_context({'svg.hashsalt': 'protein_lm'}):
    figure.savefig(buffer, format='svg', metadata={'Date': None})
  data = base64.b64encode(buffer.getvalue()).decode()
  return f'data:image/svg+xml;base64,{data}'


def notes(texts: Sequence[str]) -> str:
  """A list that stands out; nothing if there are none."""
  items = ''.join(f'<li>{html.escape(text)}</li>' for text in texts)
  return f'<ul class="notes">{items}</ul>' if items else ''


def page(title: str, parts: Sequence[str]) -> str:
  """A page of HTML parts; empty ones are left out."""
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
    '<body>\n' + '\n'.join(filter(None, parts)) + '\n</body></html>\n'
  )


def write(path: os.PathLike | str, text: str) -> pathlib.Path:
  """Writes a page, whole or not at all.

  Raises:
    ValueError: it cannot be written.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.partial')
  try:
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, path)
  except OSError as error:
    raise ValueError(
      f'{path} cannot be written: {error.strerror or error}.'
    ) from error
  return path
