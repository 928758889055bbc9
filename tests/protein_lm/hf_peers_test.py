"""Pretrained weights in and out, beside transformers itself."""

import jax
import numpy as np
import pytest
from flax import nnx

from protein_lm import (
  checkpoint,
  config,
  esm,
  export,
  hf_folder,
  import_esm,
  llama,
  models,
  train_step,
  vocab,
)

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

# Each residue, those that nobody can predict too, and lengths from 1 on.
PROTEINS = [
  'MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ',
  'A',
  'ACDEFGHIKLMNPQRSTVWYBOUXZ',
]
ESM_KINDS = [
  {},
  {'token_dropout': False, 'tie_word_embeddings': False},
  {'position_embedding_type': 'absolute', 'emb_layer_norm_before': True},
  {'layer_norm_eps': 1e-12, 'num_attention_heads': 4},
]
LLAMA_KINDS = [
  {'qkv_dim': 32, 'use_bias': True, 'tie_embeddings': True},
  {},
  {'tie_embeddings': True, 'scale_embeddings': False, 'norm_eps': 1e-5},
  {'lora_rank': 2, 'lora_targets': ('query', 'mlp_gate')},
]


@pytest.fixture(autouse=True)
def clean():
  """An import leaves its bindings."""
  yield
  config.clear()


def first_is_fast(kinds):
  return [
    kinds[0],
    *(pytest.param(x, marks=pytest.mark.slow) for x in kinds[1:]),
  ]


def make_esm(**config):
  torch.manual_seed(0)
  model = transformers.EsmForMaskedLM(
    transformers.EsmConfig(
      **{
        'vocab_size': 33,
        'mask_token_id': 32,
        'pad_token_id': 1,
        'hidden_size': 16,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'intermediate_size': 32,
        'position_embedding_type': 'rotary',
        'token_dropout': True,
        'layer_norm_eps': 1e-5,
        **config,
      }
    )
  )
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  return model.eval()


def our_tokens(proteins, masked=()):
  """[B, L] with BOS and EOS; (row, position) of `masked` read as MASK."""
  rows = [[vocab.BOS_ID, *vocab.encode(x), vocab.EOS_ID] for x in proteins]
  length = max(map(len, rows))
  tokens = np.array([r + [vocab.PAD_ID] * (length - len(r)) for r in rows])
  for place in masked:
    tokens[place] = vocab.MASK_ID
  return tokens.astype(np.int32)


def logits_of(model, tokens_BL):
  return np.asarray(jax.jit(lambda tokens: model(tokens))(tokens_BL))


def their_logits(model, ids_BL, pad_id):
  ids_BL = torch.tensor(np.asarray(ids_BL))
  with torch.no_grad():
    mask_BL = (ids_BL != pad_id).long()
    return model(input_ids=ids_BL, attention_mask=mask_BL).logits.numpy()


@pytest.mark.parametrize('kind', first_is_fast(ESM_KINDS))
def test_esm_comes_in_with_its_logits_and_goes_out_bit_for_bit(kind, tmp_path):
  hf = make_esm(**kind)
  hf.save_pretrained(tmp_path / 'hf')
  loaded = import_esm.import_esm(tmp_path / 'hf', tmp_path / 'run')

  tokens_BL = our_tokens(PROTEINS, [(0, 3), (0, 17), (0, 18), (2, 5)])
  ids = esm.token_ids(esm.TOKENS, '')
  ours = logits_of(loaded.model, tokens_BL)
  theirs = their_logits(hf, ids[tokens_BL], 1)[..., ids]
  read = tokens_BL != vocab.PAD_ID
  np.testing.assert_allclose(ours[read], theirs[read], atol=1e-4)

  export.export(tmp_path / 'run', tmp_path / 'out', 'esm')
  there, back = (
    hf_folder.open_weights(tmp_path / name) for name in ('hf', 'out')
  )
  assert there.shapes == back.shapes and there.dtypes == back.dtypes
  for name in there.shapes:
    assert there.read(name).tobytes() == back.read(name).tobytes(), name
  again, told = transformers.AutoModelForMaskedLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(told.values())
  state = again.state_dict()
  for name, tensor in hf.state_dict().items():
    assert torch.equal(state[name], tensor), name


def save(work_dir, model_cls, text):
  """A checkpoint of random weights, none of them zero; returns the model."""
  graphdef, params = train_step.split_model(model_cls(rngs=nnx.Rngs(0)))
  generator = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * generator.normal(size=x.shape).astype(np.float32),
    params,
  )
  checkpoint.save(work_dir, 0, {'params': params}, config=text, metadata={})
  return train_step.merge_model(graphdef, params)


def make_ours(work_dir, cls, options):
  options = {
    'emb_dim': 16,
    'qkv_dim': 16,
    'mlp_dim': 24,
    'num_layers': 2,
    'num_heads': 2,
    'max_len': 64,
    **options,
  }
  text = f'experiment.model_cls = @{cls.__name__}\n' + '\n'.join(
    f'FlaxModel.{name} = {value!r}' for name, value in options.items()
  )
  return save(work_dir, lambda rngs: cls(**options, rngs=rngs), text)


@pytest.mark.parametrize('kind', first_is_fast(LLAMA_KINDS))
def test_llama_loads_with_our_ids_and_our_logits(kind, tmp_path):
  options = {'norm': 'rmsnorm', 'mlp': 'swiglu', 'position_embedding': 'rotary'}
  model = make_ours(tmp_path / 'run', models.FlaxLM, {**options, **kind})
  export.export(tmp_path / 'run', tmp_path / 'out', 'llama')
  hf, told = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert type(hf).__name__ == 'LlamaForCausalLM' and not any(told.values())
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  tokens_BL = our_tokens(PROTEINS)
  tokens_BL = np.where(tokens_BL == vocab.EOS_ID, vocab.PAD_ID, tokens_BL)
  ids_BL = tokenizer(PROTEINS, padding=True, return_tensors='np')['input_ids']
  np.testing.assert_array_equal(ids_BL, tokens_BL[:, :-1])
  theirs = their_logits(hf.eval(), ids_BL, vocab.PAD_ID)
  read = ids_BL != vocab.PAD_ID
  np.testing.assert_allclose(
    logits_of(model, ids_BL)[read], theirs[read], atol=1e-4
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind',
  [
    {'position_embedding': 'rotary', 'vocab_size': 33, 'token_dropout': True},
    {'position_embedding': 'learned', 'tie_embeddings': True},
    {'tie_embeddings': True, 'scale_embeddings': False},
  ],
)
def test_our_masked_model_loads_as_esm(kind, tmp_path):
  options = {'mlp': 'gelu_exact', 'output_head': 'dense'}
  model = make_ours(tmp_path / 'run', models.FlaxBERT, {**options, **kind})
  export.export(tmp_path / 'run', tmp_path / 'out', 'esm')
  hf, told = transformers.AutoModelForMaskedLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert type(hf).__name__ == 'EsmForMaskedLM' and not any(told.values())
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  masked = [PROTEINS[0].replace('Y', '<mask>'), *PROTEINS[1:]]
  ids_BL = tokenizer(masked, padding=True, return_tensors='np')['input_ids']
  tokens_BL = our_tokens(PROTEINS, [(0, 5)])
  ids = esm.token_ids(esm.TOKENS, '')[: model.vocab_size]
  np.testing.assert_array_equal(ids_BL, ids[tokens_BL])
  theirs = their_logits(hf.eval(), ids_BL, 1)
  read = tokens_BL != vocab.PAD_ID
  np.testing.assert_allclose(
    logits_of(model, tokens_BL)[read], theirs[..., ids][read], atol=1e-4
  )
  # A token that ours has not is never predicted.
  rest = np.setdiff1d(np.arange(33), ids)
  assert np.all(theirs[..., rest] < -1e8)


def test_the_tokenizer_of_llama_reads_what_people_write(tmp_path):
  files = llama.hf_tokenizer.lm_files()
  (tmp_path / 'tokenizer.json').write_text(files['tokenizer.json'])
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tmp_path / 'tokenizer.json')
  )
  ids = tokenizer('mk T\nJ-').input_ids
  assert ids == [vocab.BOS_ID, *vocab.encode('MKTXX')]
  assert tokenizer.decode(ids) == '<MKTXX'
  assert tokenizer.decode(ids, skip_special_tokens=True) == 'MKTXX'
