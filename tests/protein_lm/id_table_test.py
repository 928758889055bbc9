"""Tables of ids: quotes, tabs, gzip, other columns, UniProt's names."""

import gzip

from protein_lm import id_table


def test_cells_may_be_quoted_and_columns_in_any_order(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('\ufeffnote,Label,ID\r\n"x, y",1,sp|P12345|NAME_HUMAN\r\n\n')
  assert id_table.read(path, 'label') == {
    'P12345': id_table.Row('1', f'{path}:2')
  }


def test_tabs_and_gzip(tmp_path):
  path = tmp_path / 'a.tsv.gz'
  path.write_bytes(gzip.compress(b'id\tweight\na b,c\t2\n'))
  assert id_table.read(path, 'weight') == {'a': id_table.Row('2', f'{path}:2')}
