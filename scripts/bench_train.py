"""Speed and memory of training, beside the same model in PyTorch.

    python scripts/bench_train.py --lengths=512,1024,8192
    python scripts/bench_train.py --gin_files=quickstart.gin --kinds=config
    python scripts/bench_train.py --gin_files=quickstart.gin --real

A row is a kind of attention at one length:

    config          what the configuration says
    exact           @exact_attention()
    softmax_M       @make_fast_softmax_attention(), M features
    relu            @make_fast_generalized_attention()
    torch, performer_M   see bench_train_peers.py

The model is that of the flags --num_layers, --emb_dim ...; with --gin_files it
is the configuration's, and those flags that are given override it. Batches are
full rows of random residues, one segment each; with --real those of the
configuration's data. A step is the whole of it: forward, backward, optimizer.
As in training it is cut for the cores of a CPU, which
--gin_bindings="mesh.data = 1" turns off. Without --gin_files the model is
trained as it is fastest on a CPU: layers are not scanned, the states of fast
attention are kept for the backward pass, and a batch is computed in parts of
2,048 tokens a core or more. As in training memory comes from jemalloc where it
is installed (protein_lm/allocator.py), that of the peers too; the last line
says where from.

- tokens/s: tokens that are not padding by the median time of a step. All rows
  of one length run in turn, --repeats times, after a turn that is not counted;
  a row of which a step takes over --max_seconds is run once.
- of GEMM: operations (protein_lm/flops.py; of a peer those of the same model
  with its attention) by time, over the rate of a product of matrices that was
  measured between the turns. mfu: over the device's rate in the table, on a CPU
  the same.
- temp: what the compiled step needs beyond its inputs. peak: by how much
  resident memory grows in a step; on a GPU the allocator's peak of the process.
- compile: tracing and compiling, without a cache.
"""

import csv
import dataclasses
import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

import bench_attention_rows as attention_rows  # noqa: E402
import bench_train_peers as peers  # noqa: E402
import gin  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from bench_attention_case import too_large  # noqa: E402
from flax import nnx  # noqa: E402

from fast_attention import (  # noqa: E402
  make_fast_generalized_attention,
  make_fast_softmax_attention,
)
from protein_lm import (  # noqa: E402
  allocator,
  cli,
  config,
  cores,
  flops,
  objectives,
  optimizer,
  sharding,
)
from protein_lm import data as data_lib  # noqa: E402
from protein_lm import train_step as steps  # noqa: E402
from protein_lm.batches import Batch  # noqa: E402
from protein_lm.exact_attention import exact_attention  # noqa: E402
from protein_lm.mesh import make_mesh  # noqa: E402

KINDS = ('exact', 'softmax_64', 'softmax_256', 'relu', 'torch', 'performer_256')
_SECONDS_PER_TURN = 0.5
_NUM_RESIDUES = 20
_TOKENS_PER_PART = 2048
_NUM_REAL_BATCHES = 8


@dataclasses.dataclass
class Row:
  """A row: how it runs, and what was measured.

  Attributes:
    kind: of attention.
    batch_size: rows of a batch.
    length: tokens of a row.
    run: takes n steps and waits; None if it cannot run, the note says why.
    num_tokens: of a step, without padding.
    flops: operations of a step.
    compile_seconds: None of a peer.
    temp_bytes: None of a peer.
    peak_bytes: None if unknown.
    seconds: of a step, of each turn.
    note: for the reader.
  """

  kind: str
  batch_size: int
  length: int
  run: Callable[[int], object] | None = None
  num_tokens: float = 0.0
  flops: float = 0.0
  compile_seconds: float | None = None
  temp_bytes: int | None = None
  peak_bytes: int | None = None
  seconds: Sequence[float] = ()
  note: str = ''

  @property
  def tokens_per_sec(self) -> float:
    return self.num_tokens / statistics.median(self.seconds)


def model_class(kind: str, length: int):
  """The configuration's model with the attention of a row."""
  bound = gin.get_bindings('experiment')['model_cls']
  name, _, number = kind.partition('_')
  if kind == 'config':
    return functools.partial(bound, max_len=length)
  if kind in ('exact', 'torch'):
    attention_fn = exact_attention()
  elif name in ('softmax', 'performer'):
    attention_fn = make_fast_softmax_attention(nb_features=int(number))
  else:
    attention_fn = make_fast_generalized_attention()
  return functools.partial(bound, attention_fn=attention_fn, max_len=length)


def make_row(
  kind: str, batches: Sequence[Batch], in_parts: bool = False
) -> Row:
  """A row, compiled, not yet run.

  Args:
    kind: of attention.
    batches: of one shape, taken in turn.
    in_parts: computes them in parts, unless the configuration says in which.
  """
  B, L = batches[0].tokens.shape
  model_cls = model_class(kind, L)
  graphdef, abstract_params = steps.abstract_model(model_cls)
  model = nnx.merge(graphdef, nnx.State(abstract_params))
  row = Row(kind, B, L)
  if peers.is_peer(kind):
    shape = peers.Shape(
      **{
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(peers.Shape)
      }
    )
    if reason := peers.why_unavailable(kind, shape):
      row.note = reason
      return row
    while too_big := too_large(
      peers.least_bytes(kind, shape, row.batch_size * L),
      peers.available_bytes(),
    ):
      if row.batch_size == 1:
        row.note = too_big
        return row
      row.batch_size //= 2
    batches = [
      jax.tree.map(lambda x: x[: row.batch_size], batch) for batch in batches
    ]
    row.run = peers.make_step(kind, shape, batches)
  else:
    mesh = make_mesh(B, (L,), model)
    with jax.set_mesh(mesh):
      _compile(
        row, mesh, graphdef, model_cls, model.objective, batches, in_parts
      )
  real = np.mean([np.sum(b.segment_ids > 0) for b in batches])
  squares = np.mean(
    [np.sum(b.positions * (b.segment_ids > 0)) for b in batches]
  )
  row.num_tokens, row.flops = float(real), flops.of_step(model, real, squares)
  return row


def _compile(row, mesh, graphdef, model_cls, objective, batches, in_parts):
  """Sets how a row in JAX runs."""
  tx = optimizer.make_optimizer(1000)[0]
  parts = {}
  bound = gin.get_bindings('make_train_step')
  if in_parts and 'num_microbatches' not in bound:
    parts['num_microbatches'] = num_microbatches(mesh, batches[0])
  train_step = steps.make_train_step(
    graphdef, tx, objectives.make_objective(objective), **parts
  )
  state = jax.jit(
    lambda rng: steps.init_state(
      steps.init_params(model_cls, rng), tx, graphdef
    ),
    out_shardings=sharding.replicated(mesh),
  )(jax.random.key(0))
  rng = jax.device_put(jax.random.key(1), sharding.replicated(mesh))
  batches = [sharding.put(mesh, batch) for batch in batches]
  start = time.perf_counter()
  program = train_step.lower(state, batches[0], rng).compile()
  row.compile_seconds = time.perf_counter() - start
  memory = program.memory_analysis()
  row.temp_bytes = getattr(memory, 'temp_size_in_bytes', None)

  def run(num_steps):
    nonlocal state
    for i in range(num_steps):
      step_rng = jax.random.fold_in(rng, i)
      state, sums = program(state, batches[i % len(batches)], step_rng)
    return jax.block_until_ready((state, sums))

  row.run = run


def num_microbatches(mesh, batch: Batch) -> int:
  """The most parts of a batch that leave each device enough tokens."""
  B, L = batch.tokens.shape
  num_rows = B // (mesh.shape['data'] * mesh.shape['fsdp'])
  fit = (
    n
    for n in range(1, num_rows + 1)
    if num_rows % n == 0 and num_rows // n * L >= _TOKENS_PER_PART
  )
  return max(fit, default=1)


def measure(
  rows: Sequence[Row], repeats: int, max_seconds: float
) -> list[float]:
  """Runs the rows in turn; returns rates of a product of matrices.

  Args:
    rows: of one length; their seconds and peaks are set.
    repeats: turns that count.
    max_seconds: a row whose first step takes longer is run once.
  """
  rates, num_steps = flops.gemm_rates(), {}
  rows = [row for row in rows if row.run]
  for row in rows:
    first = _first_step(row)
    if first > max_seconds:
      row.seconds, row.note = [first], f'{row.note} a single step'.strip()
      continue
    second = _timed(row, 1)
    num_steps[row.kind] = max(1, min(100, round(_SECONDS_PER_TURN / second)))
    row.seconds = []
  rates += flops.gemm_rates()
  for _ in range(repeats):
    for row in rows:
      if row.kind in num_steps:
        _timed(row, 1)  # what ran before leaves its caches and busy threads
        row.seconds.append(_timed(row, num_steps[row.kind]))
    rates += flops.gemm_rates()
  return rates


def _timed(row, num_steps):
  return attention_rows.timed(lambda: row.run(num_steps)) / num_steps


def _first_step(row):
  """Seconds of the first step; sets the peak of memory."""
  if jax.default_backend() != 'cpu':
    seconds = _timed(row, 1)
    stats = jax.devices()[0].memory_stats()
    if stats and not peers.is_peer(row.kind):
      row.peak_bytes = stats.get('peak_bytes_in_use')
    return seconds
  try:
    with open('/proc/self/clear_refs', 'w') as file:
      file.write('5')  # forgets the peak so far
    before = attention_rows.status_bytes('VmRSS')
  except OSError:
    return _timed(row, 1)
  seconds = _timed(row, 1)
  row.peak_bytes = attention_rows.status_bytes('VmHWM') - before
  return seconds


def synthetic_batch(batch_size: int, length: int) -> Batch:
  """Full rows of random residues, one segment each."""
  shape = batch_size, length
  rng = np.random.default_rng(0)
  return Batch(
    rng.integers(0, _NUM_RESIDUES, shape, np.int32),
    np.ones(shape, np.int32),
    np.broadcast_to(np.arange(length, dtype=np.int32), shape),
    np.ones(shape, np.float32),
  )


def real_batches() -> list[Batch]:
  """The first batches of the configuration's data that have one shape."""
  with tempfile.TemporaryDirectory() as work_dir:
    data = data_lib.open_data(work_dir)
    batches = [data.train_batch(0, step) for step in range(_NUM_REAL_BATCHES)]
  shape = batches[0].tokens.shape
  return [batch for batch in batches if batch.tokens.shape == shape]


_COLUMNS = {  # column: head, format
  'kind': ('kind', '{:<14}'),
  'length': ('L', '{:>6}'),
  'batch_size': ('B', '{:>4}'),
  'ms': ('ms/step', '{:>9}'),
  'tokens_per_sec': ('tokens/s', '{:>9}'),
  'mfu': ('mfu', '{:>6}'),
  'of_gemm': ('of GEMM', '{:>7}'),
  'temp_mb': ('temp MB', '{:>8}'),
  'peak_mb': ('peak MB', '{:>8}'),
  'compile_s': ('compile s', '{:>9}'),
  'x_torch': ('x torch', '{:>7}'),
  'x_performer': ('x performer', '{:>11}'),
  'note': ('note', '{}'),
}


def table(
  rows: Sequence[Row], rates: Sequence[float], dtype: str
) -> list[dict[str, object]]:
  """The columns of the rows of one length, '' where there is no number."""
  gemm = statistics.median(rates)
  on_cpu = jax.default_backend() == 'cpu'
  peak = gemm if on_cpu else flops.peak(dtype=dtype)
  speeds = {row.kind: row.tokens_per_sec for row in rows if row.seconds}
  performer = next((x for k, x in speeds.items() if k[:9] == 'performer'), None)
  result = []
  for row in rows:
    line = dict.fromkeys(_COLUMNS, '') | {
      'kind': row.kind,
      'length': row.length,
      'batch_size': row.batch_size,
      'note': row.note,
    }
    if row.seconds:
      seconds, speed = statistics.median(row.seconds), row.tokens_per_sec
      line['ms'] = round(1e3 * seconds, 2)
      line['tokens_per_sec'] = round(speed)
      line['mfu'] = round(row.flops / seconds / peak, 3)
      line['of_gemm'] = round(row.flops / seconds / gemm, 3)
      for name, other in (
        ('torch', speeds.get('torch')),
        (
          'performer',
          performer,
        ),
      ):
        if other:
          line[f'x_{name}'] = round(speed / other, 2)
    if row.compile_seconds is not None:
      line['compile_s'] = round(row.compile_seconds, 1)
    for name in 'temp', 'peak':
      if (num_bytes := getattr(row, f'{name}_bytes')) is not None:
        line[f'{name}_mb'] = round(num_bytes / 1e6)
    result.append(line)
  return result


def table_line(cells: Mapping[str, object]) -> str:
  form = (form.format(cells[name]) for name, (_, form) in _COLUMNS.items())
  return '  '.join(form).rstrip()


def bench(
  kinds: Sequence[str],
  batches_of: Sequence[Sequence[Batch]],
  repeats: int,
  max_seconds: float,
  in_parts: bool = False,
) -> list[dict[str, object]]:
  """Measures and prints the rows, a length after the other.

  Args:
    kinds: of attention.
    batches_of: of each length, the batches.
    repeats: turns that count.
    max_seconds: a row whose step takes longer is run once.
    in_parts: as in make_row.
  """
  print(table_line({name: head for name, (head, _) in _COLUMNS.items()}))
  lines, rates = [], []
  for batches in batches_of:
    rows = [make_row(kind, batches, in_parts) for kind in kinds]
    now = measure(rows, repeats, max_seconds)
    rates += now
    dtype = gin.get_bindings('FlaxModel').get('dtype', 'float32')
    more = table(rows, now, dtype)
    print('\n'.join(table_line(line) for line in more), flush=True)
    lines += more
  print(
    f'\n{jax.devices()[0].device_kind}, product of matrices '
    f'{statistics.median(rates) / 1e9:,.0f} GFLOP/s, median of {len(rates)} '
    f'({min(rates) / 1e9:,.0f} to {max(rates) / 1e9:,.0f})'
  )
  print(f'allocator: {allocator.describe()}')
  return lines


_SHAPE = {'num_layers': 4, 'emb_dim': 256, 'mlp_dim': 1024, 'num_heads': 4}


def define_flags() -> None:
  flags.DEFINE_list('lengths', None, 'Lengths L; default 512,1024,8192.')
  flags.DEFINE_integer('batch_tokens', 8192, 'Tokens of a batch.')
  flags.DEFINE_list('kinds', None, f'Rows; default {",".join(KINDS)}.')
  flags.DEFINE_integer('repeats', 5, 'Turns, of which the median is shown.')
  flags.DEFINE_float('max_seconds', 20.0, 'A slower step is run once.')
  flags.DEFINE_bool('real', False, "Train on the configuration's data.")
  flags.DEFINE_string('out', None, 'CSV file to write.')
  for name, value in _SHAPE.items():
    flags.DEFINE_integer(name, value, 'Of the model.')
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Computation.')
  cli.define_gin_flags()


def configure(args) -> None:
  """Binds the configuration of the flags."""
  names = [*_SHAPE, 'dtype']
  if args.gin_files:
    names = [name for name in names if args[name].present]
    cli.parse_gin_flags()
  bindings = [f'FlaxModel.{name} = {args[name].value!r}' for name in names]
  if 'emb_dim' in names:
    bindings.append(f'FlaxModel.qkv_dim = {args.emb_dim}')
  if not args.gin_files:
    bindings += [
      'FlaxModel.dropout_rate = 0.0',
      'FlaxModel.scan_layers = False',
      "FlaxModel.remat = 'states'",
      'experiment.model_cls=@FlaxLM',
    ]
  config.register()
  config.parse((), bindings + args.gin_bindings)


def check_kinds(kinds: Sequence[str]) -> None:
  """Raises a ValueError at the first row that there is not."""
  for kind in kinds:
    name, _, number = kind.partition('_')
    if kind not in ('config', 'exact', 'relu', 'torch') and not (
      name in ('softmax', 'performer') and number.isdigit()
    ):
      raise ValueError(
        '--kinds must be of config, exact, softmax_M, relu, torch and '
        f'performer_M, where M is a number of features, got {kind!r}.'
      )


def main(_):
  logging.set_verbosity(logging.WARNING)
  cores.make_devices()
  jax.config.update('jax_enable_compilation_cache', False)
  args = flags.FLAGS
  configure(args)
  kinds = args.kinds or (['config'] if args.gin_files else KINDS)
  check_kinds(kinds)
  if args.real:
    batches_of = [real_batches()]
  else:
    lengths = [int(length) for length in args.lengths or (512, 1024, 8192)]
    batches_of = [
      [synthetic_batch(max(1, args.batch_tokens // length), length)]
      for length in lengths
    ]
  in_parts = not args.gin_files and jax.default_backend() == 'cpu'
  lines = bench(kinds, batches_of, args.repeats, args.max_seconds, in_parts)
  if args.out:
    with pathlib.Path(args.out).open('w', newline='') as file:
      writer = csv.DictWriter(file, list(_COLUMNS), lineterminator='\n')
      writer.writeheader()
      writer.writerows(lines)


if __name__ == '__main__':
  # As nothing given back suits the peers: with training's options of jemalloc
  # PyTorch is a tenth slower.
  os.environ.setdefault(
    'MALLOC_CONF', 'thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1'
  )
  allocator.take()
  define_flags()
  app.run(main)
