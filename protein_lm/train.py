"""Trains a protein language model: python -m protein_lm.train --work_dir=D ...

Run it again to go on with an interrupted run. Everything but the folder comes
from gin; with --work_dir alone, from the configuration saved in the folder.
"""

import os

from absl import flags

from protein_lm import allocator, cli, distributed


def train(argv):
  """Parses and checks the configuration, then runs the experiment."""
  del argv
  from protein_lm import checkpoint, config, profiler

  profile_steps = profiler.parse(flags.FLAGS.profile_steps)
  work_dir = os.path.abspath(os.path.expanduser(flags.FLAGS.work_dir))
  if not flags.FLAGS.gin_files and checkpoint.steps(work_dir):
    config.register()
    saved = checkpoint.config(work_dir, checkpoint.choose(work_dir))
    config.parse_text(saved, source=f'{work_dir}: config', trusted=False)
  elif not flags.FLAGS.gin_files and not flags.FLAGS.gin_bindings:
    raise ValueError(
      f'there is no run in {work_dir} to go on with: name a configuration, '
      'such as --gin_files=quickstart.gin.'
    )
  cli.parse_gin_flags()

  from protein_lm import compilation, cores
  from protein_lm.experiment import run_experiment

  compilation.enable_cache()
  with distributed.initialize():
    cores.make_devices()
    distributed.check_shared(work_dir)
    run_experiment(
      work_dir, dry_run=flags.FLAGS.dry_run, profile_steps=profile_steps
    )


def main():
  """Defines the flags and runs; the console script protein-lm-train."""
  allocator.take()
  flags.DEFINE_string(
    'work_dir', None, 'Folder of the run; made if absent.', required=True
  )
  flags.DEFINE_bool(
    'dry_run', False, 'Print what the run would take; train nothing.'
  )
  flags.DEFINE_string(
    'profile_steps',
    None,
    'Two numbers, such as 100,110: the steps between them are traced, to look '
    'at with xprof.',
  )
  distributed.define_flags()
  cli.define_gin_flags()
  cli.run(train)


if __name__ == '__main__':
  main()
