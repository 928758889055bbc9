"""Imports ESM-2: python -m protein_lm.import_esm --hf=DIR --work_dir=D

DIR is an EsmForMaskedLM in the layout of Hugging Face (config.json and
model.safetensors). D becomes the folder of a run with one verified checkpoint,
of step 0, from which evaluate and the other commands start; the weights are a
FlaxBERT with exact attention. D/config.gin trains such a model further:

    python -m protein_lm.train --work_dir=D2 --gin_files=D/config.gin \\
        --gin_bindings="experiment.init_from = 'D'" \\
        --gin_bindings="experiment.num_train_steps = 100"

Prints the kernel error of fast softmax attention on its queries and keys.
"""

import glob
import os
import pathlib
import tempfile

from absl import flags

from protein_lm import cli

_CONFIGS = ('base.gin', 'attention_exact.gin', 'objective_masked.gin')
_BATCH_SIZE = 8  # rows of 1,024 tokens
_LEARNING_RATE, _WARMUP_STEPS = 1e-4, 100  # of fine-tuning


def import_esm(hf, work_dir, data_source='human_swissprot', gin_bindings=()):
  """Makes the work_dir of a FlaxBERT with the weights of an ESM-2.

  Clears the gin configuration of the process and puts that of the model in its
  place.

  Args:
    hf: folder of an EsmForMaskedLM with safetensors, whole or in shards.
    work_dir: folder to make; it exists completely or not at all.
    data_source: `data.source` of the configuration, which evaluate reads.
    gin_bindings: bindings on top of the configuration, such as
      'FlaxModel.attention_fn = @make_fast_softmax_attention()'.

  Returns:
    The loading.LoadedModel.

  Raises:
    FileExistsError: work_dir exists and is not empty.
    ValueError: hf holds no such model, a damaged one, or one that FlaxBERT
      cannot be; one sentence, and nothing is written.

  Example:
    loaded = import_esm.import_esm('esm2_t6_8M_UR50D', 'runs/esm2')
    logits_BLV = loaded.model(tokens_BL)
  """
  from protein_lm import (
    checkpoint,
    config,
    esm,
    esm_weights,
    hf_folder,
    loading,
  )

  hf = pathlib.Path(os.path.expanduser(hf))
  data_source = _checked_source(data_source)
  work_dir = _check_free(work_dir)
  source_config = hf_folder.read_config(hf)
  full = esm.complete(source_config, str(hf))
  ids = _token_ids(hf)
  esm.check_special_ids(full, ids, str(hf))
  weights, stored = esm_weights.renamed(hf_folder.open_weights(hf))
  names = esm_weights.check(full, weights, str(hf))
  spare = esm_weights.spare_arrays(full, weights, names, str(hf))
  options = {
    **esm.options(full),
    'rotary_dtype': esm_weights.rotary_dtype(full, spare, str(hf)),
  }
  text, shapes = _configure(options, data_source, gin_bindings)
  params = esm_weights.to_params(full, weights, shapes, ids)
  metadata = {
    'config': source_config,
    'tokens': [esm.OUR_TOKENS[i] for i in ids.argsort()],
    'names': stored,
    'dtypes': {k: v for k, v in weights.dtypes.items() if v != 'F32'},
  }
  work_dir.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{work_dir.name}-', dir=work_dir.parent
  ) as scratch:
    partial = pathlib.Path(scratch, 'run')
    with checkpoint.Saver(partial, keep=None) as saver:
      saver.save(
        0,
        {'params': params, 'hf': spare},
        config=text,
        metadata={'hf': metadata},
      )
      saver.wait()  # here an interrupt still lets its threads end
    (partial / 'config.gin').write_text(text, encoding='utf-8')
    os.replace(partial, work_dir)
  config.clear()
  return loading.load(work_dir)


def _check_free(work_dir):
  path = pathlib.Path(os.path.abspath(os.path.expanduser(work_dir)))
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise FileExistsError(f'{path} exists; choose another name')
  return path


def _checked_source(source):
  """The source of data, a path made absolute, if there is such a one."""
  from protein_lm import datasets, prepare

  path = os.path.abspath(os.path.expanduser(source))
  if glob.glob(path):
    return path
  if prepare.is_file_source(source):
    raise FileNotFoundError(f'--data_source: there is no file {source!r}')
  if source.partition('/')[0] not in datasets.BUILDERS:
    raise ValueError(
      f'--data_source={source!r} is neither a file nor one of '
      f'{", ".join(sorted(datasets.BUILDERS))}'
    )
  return source


def _token_ids(hf):
  """For each of our ids the id there, from vocab.txt if there is one."""
  from protein_lm import esm

  path = hf / 'vocab.txt'
  if not path.exists():
    return esm.token_ids(esm.TOKENS, str(hf))
  lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
  return esm.token_ids(lines, str(path))


def _configure(options, data_source, gin_bindings):
  """The configuration as text, and path name -> shape of its parameters."""
  from protein_lm import config

  config.register()
  config.clear()
  max_len = options.pop('max_len')
  bindings = [
    f'MAX_LEN = {max_len}',
    f'data.source = {data_source!r}',
    f'data.batch_size = {_BATCH_SIZE}',
    f'make_optimizer.learning_rate = {_LEARNING_RATE}',
    f'make_optimizer.warmup_steps = {_WARMUP_STEPS}',
    *(f'FlaxModel.{name} = {value!r}' for name, value in options.items()),
  ]
  config.parse(_CONFIGS, bindings)
  shapes = _shapes()
  config.parse((), gin_bindings)
  if changed := sorted(set(_shapes().items()) ^ set(shapes.items())):
    raise ValueError(
      f'gin_bindings change the parameter {changed[0][0]}, and the '
      'architecture is that of the imported weights; leave it as it is.'
    )
  return config.config_str(), shapes


def _shapes():
  """Path name -> shape of the parameters of the model that is bound."""
  import gin

  from protein_lm import hf_tensor
  from protein_lm import train_step as steps

  model_cls = gin.get_bindings('experiment')['model_cls']
  _, abstract_params = steps.abstract_model(model_cls)
  leaves = hf_tensor.flattened(abstract_params)
  return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def _main(argv):
  del argv
  args = flags.FLAGS
  loaded = import_esm(
    args.hf, args.work_dir, args.data_source, args.gin_bindings
  )
  from fast_attention import make_fast_softmax_attention
  from protein_lm import evaluate, kernel_report, models

  print(
    f'imported {models.num_params(loaded.params):,} parameters into '
    f'{loaded.work_dir}, step {loaded.step}',
    flush=True,
  )
  attention_fn = make_fast_softmax_attention()
  name = evaluate.attention_name((attention_fn,))
  print(f'{name} attention in place of its own, on three human proteins:')
  print(kernel_report.report(loaded.model, attention_fn))


def main():
  """Defines the flags and runs; the console script protein-lm-import-esm."""
  flags.DEFINE_string('hf', None, 'Folder of the ESM-2.', required=True)
  flags.DEFINE_string('work_dir', None, 'Folder to make.', required=True)
  flags.DEFINE_string(
    'data_source',
    'human_swissprot',
    'Proteins that evaluate reads: a name, or a FASTA file.',
  )
  flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    'Bindings on top of the configuration, such as '
    '"FlaxModel.attention_fn = @make_fast_softmax_attention()".',
  )
  cli.run(_main)


if __name__ == '__main__':
  main()
