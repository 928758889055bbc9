"""Hurts a training run again and again, and compares how it ends.

    python scripts/soak.py --faults=200

trains a tiny model twice: once left alone, once with a fault after every few
steps (killed at a random moment, asked to stop, its newest checkpoint cut or a
bit of it flipped, its disk full, a second trainer beside it, ...), each time
started again with the same command. Ends with the hash of both runs:
parameters, optimizer and every logged metric that no clock enters. Exit code 1
if they differ, or if a fault was not met as the README promises.

Trainers are forks of this process, which has imported everything and never
starts a JAX backend of its own: a start costs a second, not five.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time

TIMEOUT = 300  # seconds that a trainer may take to reach a step, or to end
LETTERS = 'ACDEFGHIKLMNPQRSTVWY'
BINDINGS = (
  'experiment.log_every_steps = 3',
  'experiment.eval_every_steps = 20',
  'experiment.checkpoint_every_steps = 5',
  'FlaxModel.attention_fn = @make_fast_softmax_attention()',
  'make_fast_softmax_attention.nb_features = 8',
  'FlaxModel.dropout_rate = 0.1',
  'make_train_step.num_microbatches = 2',
  'experiment.ema_decay = 0.9',
)
_fork = multiprocessing.get_context('fork')


class Trainer:
  """One process that runs the training command, its output in a file."""

  def __init__(self, run, *bindings, max_file_bytes=None):
    self._run = run
    self.out = run.folder / f'{run.num_starts}.out'
    run.num_starts += 1
    arguments = [
      'train',
      f'--work_dir={run.work_dir}',
      '--gin_files=tiny.gin',
      *(f'--gin_bindings={b}' for b in (*run.bindings, *bindings)),
    ]
    self._process = _fork.Process(
      target=_train, args=(arguments, self.out, max_file_bytes)
    )
    self._process.start()

  def reached(self, step: int) -> bool:
    """Waits until a step is logged; False if the run ended before."""
    return self._wait(lambda: self._run.logged_step() >= step)

  def said(self, text: str) -> bool:
    """Waits until the output holds a text; False if the run ended before."""
    return self._wait(lambda: text in self.text)

  def saving(self) -> bool:
    """Waits for unfinished work among the checkpoints; False if it ended."""
    folder = self._run.work_dir / 'checkpoints'
    return self._wait(lambda: any(folder.glob('.writing-*')))

  def _wait(self, condition) -> bool:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
      if not self._process.is_alive():
        return condition()
      if time.monotonic() > deadline:
        raise Unmet(f'no progress within {TIMEOUT} s; see {self.out}')
      time.sleep(0.002)
    return True

  @property
  def text(self) -> str:
    return self.out.read_text() if self.out.exists() else ''

  def send(self, number: int) -> None:
    if self._process.is_alive():
      os.kill(self._process.pid, number)

  def end(self) -> int:
    """Waits for the end; the exit code, negative for a signal."""
    self._process.join(TIMEOUT)
    if self._process.exitcode is None:
      self._process.kill()
      raise Unmet(f'the trainer did not end within {TIMEOUT} s; see {self.out}')
    return self._process.exitcode

  def kill(self) -> None:
    self.send(signal.SIGKILL)
    self.end()


class Run:
  """A work_dir, the command that trains in it, and what is there."""

  def __init__(self, folder: pathlib.Path, bindings):
    folder.mkdir()
    self.folder, self.bindings = folder, bindings
    self.work_dir = folder / 'run'
    self.num_starts = 0

  def logged_step(self) -> int:
    """The last step in metrics.jsonl, 0 before the first."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
      text = (self.work_dir / 'metrics.jsonl').read_bytes()
      lines = text[: text.rindex(b'\n')].splitlines()
      return json.loads(lines[-1])['step']
    return 0

  def good_steps(self) -> list[int]:
    """Steps whose checkpoint verifies."""
    from protein_lm import checkpoint

    good = []
    for step in checkpoint.steps(self.work_dir):
      with contextlib.suppress(checkpoint.CheckpointError):
        checkpoint.verify(self.work_dir, step)
        good.append(step)
    return good

  def checkpoint_files(self, step: int) -> list[pathlib.Path]:
    folder = self.work_dir / 'checkpoints' / str(step)
    return sorted(p for p in folder.rglob('*') if p.is_file())


class Unmet(AssertionError):
  """A fault was not met as it should be."""


def expect(condition: bool, what: str) -> None:
  if not condition:
    raise Unmet(what)


# Faults: each starts the trainer (again) and ends with no trainer running.


def kill_at_a_step(run, step, rng):
  trainer = Trainer(run)
  trainer.reached(step)
  time.sleep(rng.random() * 0.03)
  trainer.kill()


def kill_in_a_start(run, step, rng):
  trainer = Trainer(run)
  time.sleep(rng.random() * 2)
  trainer.kill()


def kill_in_a_save(run, step, rng):
  trainer = Trainer(run)
  trainer.saving()
  time.sleep(rng.random() * 0.05)
  trainer.kill()


def _stop(number):
  def stop(run, step, rng):
    trainer = Trainer(run)
    trainer.said('parameters on')  # before, a signal ends it at once
    trainer.reached(step)
    trainer.send(number)
    code = trainer.end()
    expect(code == 0, f'exit code {code} after {number.name}; {trainer.out}')
    text = trainer.text
    expect(
      'interrupted' in text or 'done' in text or 'is finished' in text,
      f'no word of what was saved in {trainer.out}',
    )

  stop.__name__ = f'stop_by_{number.name}'
  return stop


def stop_twice(run, step, rng):
  trainer = Trainer(run)
  trainer.said('parameters on')
  trainer.reached(step)
  trainer.send(signal.SIGTERM)
  time.sleep(rng.random() * 0.01)
  trainer.send(signal.SIGTERM)
  code = trainer.end()
  expect(
    code in (0, 128 + signal.SIGTERM),
    f'exit code {code} after two signals; {trainer.out}',
  )


def _damaged(damage):
  """Kills the run, then damages a file of its newest checkpoint."""

  def fault(run, step, rng):
    kill_at_a_step(run, step, rng)
    good = run.good_steps()
    if len(good) < 2:  # what is damaged must not be all there is
      return
    path = rng.choice(run.checkpoint_files(good[-1]))
    damage(path, rng)
    from protein_lm import checkpoint

    with contextlib.suppress(checkpoint.CheckpointError):
      checkpoint.verify(run.work_dir, good[-1])
      raise Unmet(f'{damage.__name__} of {path} was not seen')

  fault.__name__ = damage.__name__
  return fault


def truncation(path, rng):
  size = path.stat().st_size
  os.truncate(path, rng.randrange(size) if size else 0)


def flipped_bit(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def lost_file(path, rng):
  path.unlink()


def stray_files(run, step, rng):
  kill_at_a_step(run, step, rng)
  folder = run.work_dir / 'checkpoints'
  folder.mkdir(parents=True, exist_ok=True)
  (folder / '999999').mkdir(exist_ok=True)
  (folder / '.writing-7').mkdir(exist_ok=True)
  (folder / 'notes.txt').write_text('not a checkpoint')


def torn_log(run, step, rng):
  kill_at_a_step(run, step, rng)
  path = run.work_dir / 'metrics.jsonl'
  if path.exists():
    with path.open('a') as file:
      file.write('{"step": 12, "train/lo')


def full_disk(run, step, rng):
  """No file may grow past a few kB: the next save fails, cleanly."""
  before = run.good_steps()
  trainer = Trainer(run, max_file_bytes=rng.randrange(1_000, 20_000))
  code = trainer.end()
  expect(code == 1, f'exit code {code} on a full disk; {trainer.out}')
  expect('error:' in trainer.text, f'no error in {trainer.out}')
  expect('Traceback' not in trainer.text, f'a traceback in {trainer.out}')
  lost = set(before[-1:]) - set(run.good_steps())
  expect(not lost, f'a full disk cost the checkpoint of step {lost}')


def second_trainer(run, step, rng):
  first = Trainer(run)
  if first.said('parameters on'):
    second = Trainer(run)
    code = second.end()
    expect(code == 1, f'a second trainer ended with {code}; {second.out}')
    expect('another trainer' in second.text, f'no refusal in {second.out}')
  first.reached(step)
  first.kill()


def changed_model(run, step, rng):
  before = run.good_steps()
  trainer = Trainer(run, 'FlaxModel.mlp_dim = 96')
  if before:
    code = trainer.end()
    expect(code == 1, f'another model went on with {code}; {trainer.out}')
    expect('mlp_dim' in trainer.text, f'no diff in {trainer.out}')
  else:
    trainer.kill()
    shutil.rmtree(run.work_dir / 'checkpoints', ignore_errors=True)
    (run.work_dir / 'metrics.jsonl').unlink(missing_ok=True)


def paused(run, step, rng):
  trainer = Trainer(run)
  trainer.reached(step)
  trainer.send(signal.SIGSTOP)
  time.sleep(0.3)
  trainer.send(signal.SIGCONT)
  time.sleep(rng.random() * 0.1)
  trainer.kill()


FAULTS = (
  kill_at_a_step,
  kill_in_a_start,
  kill_in_a_save,
  _stop(signal.SIGTERM),
  _stop(signal.SIGINT),
  stop_twice,
  _damaged(truncation),
  _damaged(flipped_bit),
  _damaged(lost_file),
  stray_files,
  torn_log,
  full_disk,
  second_trainer,
  changed_model,
  paused,
)


def soak(folder: pathlib.Path, num_faults: int, seed: int) -> bool:
  """Both runs; whether they end alike."""
  rng = random.Random(seed)
  steps_per_fault = 8
  num_steps = steps_per_fault * (num_faults + 1)
  fasta = folder / 'random.fasta'
  write_fasta(fasta, rng)
  bindings = (
    *BINDINGS,
    f"data.source = '{fasta}'",
    f'experiment.num_train_steps = {num_steps}',
  )

  clean = Run(folder / 'clean', bindings)
  expect(Trainer(clean).end() == 0, f'the clean run failed; see {clean.folder}')
  print(f'clean run: {num_steps} steps, {digest(clean)[:16]}', flush=True)

  # Every kind as often as the others, in an order of the seed's.
  kinds = [FAULTS[i % len(FAULTS)] for i in range(num_faults)]
  rng.shuffle(kinds)
  hurt = Run(folder / 'hurt', bindings)
  start = time.monotonic()
  for number, fault in enumerate(kinds, start=1):
    step = steps_per_fault * number - rng.randrange(steps_per_fault)
    fault(hurt, step, rng)
    print(
      f'[{time.monotonic() - start:4.0f} s] {number}/{num_faults} '
      f'{fault.__name__}: at step {hurt.logged_step()}',
      flush=True,
    )
  expect(Trainer(hurt).end() == 0, f'the last run failed; see {hurt.folder}')
  hashes = digest(clean), digest(hurt)
  print(f'clean {hashes[0]}\nhurt  {hashes[1]}')
  return hashes[0] == hashes[1]


def digest(run: Run) -> str:
  """The sha256 of the last checkpoint's arrays and of the log."""
  with _fork.Pool(1) as pool:
    return pool.apply(_digest, (run.work_dir,))


def _digest(work_dir) -> str:
  from protein_lm import checkpoint, metrics

  step = checkpoint.steps(work_dir)[-1]
  result = hashlib.sha256(str(step).encode())
  arrays = checkpoint.read_arrays(work_dir, step, prefix='')
  for name in sorted(arrays):
    x = arrays[name]
    result.update(f'{name} {x.dtype} {x.shape}'.encode() + x.tobytes())
  for record in metrics.read(work_dir):
    kept = {k: v for k, v in record.items() if not metrics.is_timed(k)}
    result.update(json.dumps(kept, sort_keys=True).encode())
  return result.hexdigest()


def write_fasta(path: pathlib.Path, rng: random.Random) -> None:
  with path.open('w') as file:
    for i in range(60):
      residues = ''.join(rng.choices(LETTERS, k=20 + 2 * i))
      file.write(f'>P{i}\n{residues}\n')


def _train(arguments, out, max_file_bytes):
  """Becomes the training command, in a forked process."""
  descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  sys.stdout, sys.stderr = (os.fdopen(i, 'w', buffering=1) for i in (1, 2))
  os.setsid()
  if max_file_bytes is not None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes,) * 2)
  sys.argv = arguments
  from protein_lm import train

  train.main()


def _import_everything() -> None:
  """What a trainer imports; none of it starts a backend."""
  import orbax.checkpoint  # noqa: F401
  import tensorboardX  # noqa: F401

  from protein_lm import config, experiment, train  # noqa: F401

  config.register()


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--faults', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--keep', action='store_true', help='keep the runs')
  arguments = parser.parse_args()
  _import_everything()
  folder = pathlib.Path(tempfile.mkdtemp(prefix='soak_'))
  try:
    is_same = soak(folder, arguments.faults, arguments.seed)
  except Unmet as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  if is_same and not arguments.keep:
    shutil.rmtree(folder)
  elif not is_same:
    print(f'error: the runs differ; they are in {folder}', file=sys.stderr)
  else:
    print(f'the runs are in {folder}')
  if is_same:
    print(f'{arguments.faults} faults survived, and the runs end alike')
  return 0 if is_same else 1


if __name__ == '__main__':
  sys.exit(main())
