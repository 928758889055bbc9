"""Time and memory of attention against length, beside other attentions.

    python scripts/bench_attention.py --causal=true --passes=forward_backward

prints a table and writes attention.csv and attention.png into --out_dir. On
request, and without the table if --nosweep is given:

    --growth   t(65536) / t(8192), the two lengths measured in turn
    --decode   time of a token at position 100,000 and at 100, in turn
    --memory   memory of the PyTorch rows too, each in a process of its own

What the rows are, bench_attention_rows.py says.

- Times: all rows of one length are run in turn, --repeats times, so that what
  else the machine does falls on all. Random matrices are drawn beforehand;
  applying them is included. A run that takes over 10 s is not repeated.
- GFLOP/s: nominal operations (Case.flops: C = 128 for every row, and what a
  backward pass computes again is not counted) by median time. "of GEMM"
  divides by the rate of a 2048 x 2048 float32 product in JAX, measured before,
  between and after: its median, in the table so far, in the CSV file of all.
- temp/qkv: memory beyond inputs and outputs, by the bytes of query, key and
  value. Of JAX: the compiled program's own figure. Of PyTorch: the peak of
  resident memory, less outputs.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Mapping, Sequence

import bench_attention_report as report
import bench_attention_rows as rows
import jax
from absl import app, flags, logging
from bench_attention_case import (
  FAST,
  PASSES,
  PEERS,
  Case,
  Result,
  available_bytes,
  too_large,
  why_skipped,
)


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured: the flags of the same names."""

  lengths: Sequence[int] = tuple(2**i for i in range(9, 17))
  batch_size: int = 1
  num_heads: int = 8
  qkv_dim: int = 64
  nb_features: int = 256
  dtype: str = 'float32'
  causal: Sequence[bool] = (True, False)
  passes: Sequence[str] = PASSES
  kinds: Sequence[str] = rows.KINDS
  repeats: int = 5
  max_seconds: float = 60.0
  memory: bool = False
  out_dir: str = 'bench_attention'

  def case(self, kind: str, causal: bool, pass_name: str, length: int) -> Case:
    shape = self.batch_size, self.num_heads, self.qkv_dim, self.nb_features
    return Case(kind, causal, pass_name, length, *shape, self.dtype)

  @property
  def fast_kinds(self) -> list[str]:
    return [kind for kind in self.kinds if kind in FAST]


def sweep(config: Config) -> list[Result]:
  """Prints the table and the summary; writes the CSV file and the figure."""
  out_dir = pathlib.Path(config.out_dir)
  gemm = rows.Gemm()
  results = []
  print(report.table_head())
  for causal in config.causal:
    for pass_name in config.passes:
      kinds = [k for k in config.kinds if causal or '_scan_' not in k]
      measured = {kind: [] for kind in kinds}
      for length in sorted(config.lengths) if kinds else ():
        gemm.measure()
        cases = [config.case(k, causal, pass_name, length) for k in kinds]
        for result in measure_length(cases, measured, config):
          results.append(result)
          print(report.table_line(result, gemm.gflops), flush=True)
          if result.seconds:
            median = statistics.median(result.seconds)
            measured[result.case.kind].append((length, median))
        report.write_results(out_dir, results, gemm.gflops)
  gemm.measure()
  report.write_results(out_dir, results, gemm.gflops)
  title = (
    f'B {config.batch_size}, H {config.num_heads}, D {config.qkv_dim}, '
    f'M {config.nb_features}, {config.dtype}; '
    f'{jax.devices()[0].device_kind}, GEMM {gemm.gflops:.0f} GFLOP/s'
  )
  report.write_figure(out_dir, results, title)
  print(
    f'\nGEMM 2048 x 2048 float32: {gemm.gflops:.0f} GFLOP/s, median of '
    f'{len(gemm.rates)} ({min(gemm.rates):.0f} to {max(gemm.rates):.0f})'
  )
  print('\n'.join(report.summary(results, gemm.gflops)))
  print(f'\nwritten to {out_dir}: attention.csv, attention.png')
  return results


def measure_length(
  cases: Sequence[Case],
  measured: Mapping[str, Sequence[tuple[int, float]]],
  config: Config,
) -> list[Result]:
  """The rows of one length, run in turn.

  Args:
    cases: of one length, one pass, all causal or none.
    measured: kind -> (length, seconds) of smaller lengths.
    config: says how often, and what is too much.
  """
  arrays = rows.make_arrays(cases[0])
  calls, results = {}, {}
  for case in cases:
    max_bytes = available_bytes()
    temp_bytes = None
    note = why_skipped(case, measured[case.kind], config.max_seconds, max_bytes)
    if not note and case.kind in PEERS:
      temp_bytes = rows.torch_temp_bytes(case) if config.memory else None
      calls[case] = rows.make_torch(case)
    elif not note:
      call, temp_bytes = rows.compile_jax(case, arrays)
      note = too_large((temp_bytes or 0) + case.output_bytes, max_bytes)
      if not note:
        calls[case] = call
    results[case] = Result(case, temp_bytes=temp_bytes, note=note)
  for case, seconds in rows.in_turn(calls, config.repeats).items():
    note = 'a single run' if seconds[0] > rows.SLOW_SECONDS else ''
    results[case] = dataclasses.replace(
      results[case], seconds=seconds, note=note
    )
  return list(results.values())


def growth(
  config: Config, lengths: tuple[int, int] = (8192, 65536)
) -> dict[object, float]:
  """Prints how time grows with the length: t(last) / t(first) of each row."""
  print(f'\ntime at L = {lengths[0]} and {lengths[1]}, in turn:')
  ratios = {}
  for causal in config.causal:
    for pass_name in config.passes:
      calls = {}
      for length in lengths:
        arrays = rows.make_arrays(config.case('', causal, pass_name, length))
        for kind in config.fast_kinds:
          case = config.case(kind, causal, pass_name, length)
          name = f'{kind}, {report.group_name(case.group)}'
          calls[name, length] = rows.compile_jax(case, arrays)[0]
      ratios |= _print_ratios(rows.in_turn(calls, config.repeats), lengths)
  return ratios


def decode(
  config: Config,
  positions: tuple[int, int] = (100, 100_000),
  num_tokens: int = 200,
) -> dict[object, float]:
  """Prints the time of a token after few and many others, in turn."""
  print(f'\ntime of a token at position {positions[0]} and {positions[1]}:')
  calls = {}
  for kind in config.fast_kinds:
    attention = rows.make_attention(kind, config.nb_features)
    projection = attention.projection(None, config.num_heads, config.qkv_dim)
    prefill = jax.jit(
      lambda *qkv, attention=attention, projection=projection: (
        attention.prefill(*qkv, projection=projection)[1]
      )
    )
    step = jax.jit(functools.partial(attention.step, projection=projection))
    for position in positions:
      case = config.case(kind, True, 'forward', position)
      *prompt, _ = rows.make_arrays(case)
      token = [x_BLHD[:, -1:] for x_BLHD in prompt]
      calls[kind, position] = functools.partial(
        _decode_tokens, step, token, prefill(*prompt), num_tokens
      )
  seconds = rows.in_turn(calls, config.repeats)
  return _print_ratios(seconds, positions, num_tokens)


def _decode_tokens(step, token, state, num_tokens):
  for _ in range(num_tokens):
    out, state = step(*token, state)
  return out


def _print_ratios(seconds, places, runs=1):
  """Prints median times at two places; returns their ratios."""
  ratios = {}
  for name in dict.fromkeys(name for name, _ in seconds):
    first, last = (
      1e3 * statistics.median(seconds[name, place]) / runs for place in places
    )
    ratios[name] = last / first
    print(f'  {name}: {first:.4g} ms and {last:.4g} ms: {last / first:.2f}')
  return ratios


_HELP = {
  'lengths': 'Lengths L.',
  'batch_size': 'Sequences B.',
  'num_heads': 'Heads H.',
  'qkv_dim': 'Width D of a head.',
  'nb_features': 'Features M.',
  'causal': 'true, false or both.',
  'passes': f'{", ".join(PASSES)} or both.',
  'kinds': f'Which rows, of {", ".join(rows.KINDS)}.',
  'repeats': 'Runs of each row, of which the median is shown.',
  'max_seconds': 'Leaves out a row of which one run is predicted to take more.',
  'memory': 'Whether to measure the memory of rows in PyTorch.',
  'out_dir': 'Where attention.csv and attention.png are written.',
}


def define_flags() -> None:
  """A flag for each attribute of Config, and three for what is measured."""
  define = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    str: flags.DEFINE_string,
    tuple: lambda name, default, text: flags.DEFINE_list(
      name, [str(value).lower() for value in default], text
    ),
  }
  for name, text in _HELP.items():
    default = getattr(Config(), name)
    define[type(default)](name, default, text)
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'Of all inputs.'
  )
  flags.DEFINE_bool('sweep', True, 'Whether to measure the table.')
  flags.DEFINE_bool('growth', False, 'Time at L = 65,536 over that at 8,192.')
  flags.DEFINE_bool('decode', False, 'A token at 100,000 over one at 100.')


def read_config(values: Mapping[str, object]) -> Config:
  """The Config of parsed flags; says which rows cannot be measured."""
  chosen = {
    field.name: values[field.name] for field in dataclasses.fields(Config)
  }
  for name, allowed in (
    ('causal', ('true', 'false')),
    ('passes', PASSES),
    ('kinds', rows.KINDS),
  ):
    for value in chosen[name]:
      if value not in allowed:
        raise ValueError(
          f'--{name} must be of {", ".join(allowed)}, got {value!r}.'
        )
  kinds = []
  for kind in chosen['kinds']:
    if reason := rows.why_unavailable(kind):
      print(reason)
    else:
      kinds.append(kind)
  if not kinds:
    raise ValueError('None of --kinds can be measured.')
  return Config(
    **chosen
    | {
      'lengths': [int(length) for length in chosen['lengths']],
      'causal': [value == 'true' for value in chosen['causal']],
      'kinds': kinds,
    }
  )


def main(_):
  logging.set_verbosity(logging.WARNING)
  args = flags.FLAGS
  config = read_config({name: args[name].value for name in args})
  if args.sweep:
    sweep(config)
  if args.growth:
    growth(config)
  if args.decode:
    decode(config)


if __name__ == '__main__':
  define_flags()
  app.run(main)
