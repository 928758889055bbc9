"""Exports weights: python -m protein_lm.export --work_dir=D --out=F.safetensors

Writes the parameters of a verified checkpoint, or their moving average, into
one safetensors file, with the run's configuration and step in its header.
"""

import os

from absl import flags

from protein_lm import cli


def _main(argv):
  del argv
  from protein_lm import weights_file

  args = flags.FLAGS
  if not args.out.endswith(weights_file.SUFFIX):
    raise ValueError(
      f'--out must end in {weights_file.SUFFIX}, got {args.out!r}'
    )
  step, num_params = weights_file.export(
    os.path.abspath(os.path.expanduser(args.work_dir)),
    os.path.expanduser(args.out),
    int(args.step) if args.step.isdecimal() else args.step,
    args.weights,
    args.overwrite,
  )
  print(f'wrote {num_params:,} parameters of step {step} to {args.out}')


def main():
  """Defines the flags and runs; the console script protein-lm-export."""
  flags.DEFINE_string('work_dir', None, 'Folder of the run.', required=True)
  flags.DEFINE_string('out', None, 'File to write.', required=True)
  flags.DEFINE_string('step', 'latest', 'A number, latest or best.')
  flags.DEFINE_enum(
    'weights',
    'params',
    ['params', 'ema_params'],
    'The parameters, or their moving average.',
  )
  flags.DEFINE_bool('overwrite', False, 'Replace a file that exists.')
  cli.run(_main)


if __name__ == '__main__':
  main()
