"""The alphabet: fixed ids, and no silent wrap of what is outside."""

import jax.numpy as jnp
import numpy as np
import pytest

from protein_lm import vocab


def test_ids_are_as_published():
  assert vocab.TOKENS == 'ACDEFGHIKLMNPQRSTVWYBOUXZ<>_*'
  assert vocab.SIZE == 29
  special = vocab.BOS_ID, vocab.EOS_ID, vocab.PAD_ID, vocab.MASK_ID
  assert special == (25, 26, 27, 28)
  assert vocab.decode(vocab.UNCOUNTED_IDS) == 'BXZ'


def test_encode_and_decode_are_inverse():
  ids_L = vocab.encode(vocab.RESIDUES)
  assert ids_L.dtype == np.uint8
  np.testing.assert_array_equal(ids_L, np.arange(25))
  assert vocab.decode(ids_L) == vocab.RESIDUES


def test_encode_of_nothing_is_empty():
  assert vocab.encode('').shape == (0,)
  assert vocab.decode([]) == ''


@pytest.mark.parametrize('letter', list('aJ*-.<>_ 7\n\0é\xa0Ａ🧬\udc80'))
def test_encode_names_letter_and_position(letter):
  with pytest.raises(ValueError) as error:
    vocab.encode('AC' + letter + 'D')
  assert f'{letter!r} at position 3' in str(error.value)


@pytest.mark.parametrize('wrong', [-1, 29, 256 + 5])
def test_decode_names_id_and_position(wrong):
  with pytest.raises(ValueError, match=f'{wrong} at position 2'):
    vocab.decode([0, wrong])


def test_decode_takes_special_tokens_of_a_jax_array():
  assert vocab.decode(jnp.array([25, 10, 26, 27, 28])) == '<M>_*'


@pytest.mark.parametrize('ids', [[0.5], [[1, 2]], [True]])
def test_decode_refuses_what_is_no_row_of_integers(ids):
  with pytest.raises(ValueError, match='one row of integers'):
    vocab.decode(ids)
