"""A copy of the log for Weights & Biases, if installed and asked for."""

import os
import pathlib
import uuid

_ID_FILE = 'wandb_run_id'


def start(project: str, work_dir: str | os.PathLike, config_text: str = ''):
  """Starts, or goes on with, the run of a work_dir.

  The run's id stands in work_dir, so a resumed run goes on in the same charts;
  wandb ignores steps that it has seen.

  Args:
    project: name of the project.
    work_dir: folder of the run; wandb's own files go into its `wandb`.
    config_text: the run's gin configuration, shown beside the charts.

  Returns:
    The wandb.Run: `log(metrics, step=)`, `finish(exit_code=)`.

  Raises:
    ValueError: wandb is not installed.
  """
  try:
    import wandb
  except ImportError as error:
    raise ValueError(
      f'experiment.wandb_project is {project!r} and wandb is not installed: '
      'pip install wandb, or leave the binding out.'
    ) from error

  path = pathlib.Path(work_dir) / _ID_FILE
  if not path.exists():
    path.write_text(uuid.uuid4().hex[:8])
  return wandb.init(
    project=project,
    id=path.read_text().strip(),
    resume='allow',
    dir=str(work_dir),
    config={'gin': config_text},
  )
