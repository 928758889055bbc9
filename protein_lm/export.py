"""Exports weights: python -m protein_lm.export --work_dir=D --out=F

With --format=safetensors, the default, writes the parameters of a verified
checkpoint, or their moving average, into one file, with the run's configuration
and step in its header. With --format=esm (a FlaxBERT) or llama (a FlaxLM) makes
F a folder that transformers loads as EsmForMaskedLM or LlamaForCausalLM, with a
tokenizer; these attend exactly.
"""

import os

from absl import flags

from protein_lm import cli

FORMATS = ('safetensors', 'esm', 'llama')


def export(
  work_dir,
  out,
  format='safetensors',
  step='latest',
  weights='params',
  overwrite=False,
  gin_bindings=(),
):
  """Writes a checkpoint for other tools.

  Args:
    work_dir: folder of the run.
    out: the .safetensors file, or the folder; it exists completely or not at
      all.
    format: 'safetensors', 'esm' or 'llama'.
    step: a step, 'latest' or 'best'.
    weights: of 'safetensors', 'params' or 'ema_params', their moving average;
      the others take the average where the run kept one.
    overwrite: replace what is there.
    gin_bindings: of a folder, bindings on top of the run's.

  Returns:
    (step, number of parameters).

  Raises:
    FileExistsError: out exists, and overwrite is False.
    ValueError: for a model that the format cannot hold, with the bindings that
      it needs.

  Example:
    export.export('runs/masked', 'for_transformers', format='esm')
  """
  from protein_lm import weights_file

  if format not in FORMATS:
    raise ValueError(f'format must be one of {FORMATS}, got {format!r}.')
  if format == 'safetensors':
    if not str(out).endswith(weights_file.SUFFIX):
      raise ValueError(
        f'--out must end in {weights_file.SUFFIX}, got {str(out)!r}'
      )
    if gin_bindings:
      raise ValueError(
        '--gin_bindings is of --format=esm and llama: a .safetensors file '
        'holds the parameters as they are.'
      )
    return weights_file.export(work_dir, out, step, weights, overwrite)
  if weights != 'params':
    raise ValueError(
      f'--weights={weights} is of --format=safetensors; {format} takes the '
      'average where the run kept one.'
    )
  return _export_folder(work_dir, out, format, step, overwrite, gin_bindings)


def _export_folder(work_dir, out, format, step, overwrite, gin_bindings):
  from protein_lm import (
    checkpoint,
    esm_export,
    hf_folder,
    hf_tensor,
    llama,
    loading,
    lora,
    models,
  )

  out = hf_folder.check_free(out, overwrite)
  loaded = loading.load(work_dir, step, gin_bindings)
  model = loaded.model
  params = hf_tensor.flattened(lora.merge(loaded.params, model.lora_alpha))
  if format == 'llama':
    tensors, texts = llama.export(model, params)
  else:
    metadata = loaded.metadata.get('hf')
    if metadata:
      spare = checkpoint.read_arrays(work_dir, loaded.step, 'hf/')
      metadata = {**metadata, 'spare': spare}
    tensors, texts = esm_export.export(model, params, metadata)
    if not metadata:
      print('the contact head, which no training here reaches, is zeros')
  if not _is_exact(model):
    _warn(loaded)
  hf_folder.write(out, tensors, texts, overwrite)
  return loaded.step, models.num_params(params)


def _is_exact(model):
  from protein_lm.exact_attention import ExactAttention

  return all(isinstance(fn, ExactAttention) for fn in model.attention_fns)


def _warn(loaded):
  """Says how far the model is from itself with exact attention."""
  from protein_lm import evaluate, kernel_report

  name = evaluate.attention_name(loaded.model.attention_fns)
  print(
    f'warning: the model attends with {name} and what is exported attends '
    'exactly, so that its logits differ; on three human proteins:',
    flush=True,
  )
  if loaded.needs_calibration:
    print(
      '  not measured: its attention needs statistics it was not saved with'
    )
  else:
    print(kernel_report.report(loaded.model), flush=True)


def _main(argv):
  del argv
  args = flags.FLAGS
  step, num_params = export(
    os.path.abspath(os.path.expanduser(args.work_dir)),
    os.path.expanduser(args.out),
    args.format,
    cli.parse_step(args.step),
    args.weights,
    args.overwrite,
    args.gin_bindings,
  )
  print(f'wrote {num_params:,} parameters of step {step} to {args.out}')


def main():
  """Defines the flags and runs; the console script protein-lm-export."""
  flags.DEFINE_string('work_dir', None, 'Folder of the run.', required=True)
  flags.DEFINE_string('out', None, 'File or folder to write.', required=True)
  flags.DEFINE_enum(
    'format',
    'safetensors',
    FORMATS,
    'One file of our parameters, or a folder for transformers.',
  )
  flags.DEFINE_string('step', 'latest', 'A number, latest or best.')
  flags.DEFINE_enum(
    'weights',
    'params',
    ['params', 'ema_params'],
    'The parameters, or their moving average.',
  )
  flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    "Of a folder, bindings on top of the run's, such as "
    '"FlaxModel.attention_fn = @exact_attention()".',
  )
  flags.DEFINE_bool('overwrite', False, 'Replace what an export wrote.')
  cli.run(_main)


if __name__ == '__main__':
  main()
