"""One row of bench_attention.py: its shape, its FLOPs, and what it needs.

Letters of the formulas: L length, D width of a head, M features, C chunk.
"""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Sequence

PASSES = ('forward', 'forward_backward')
FAST = ('softmax', 'relu')  # the rows that the others are compared with
SCORES = ('exact', 'torch_sdpa')  # these make L x L scores, the others do not
PERFORMERS = ('performer_pytorch', 'performer_pytorch_relu')
PEERS = ('torch_sdpa', *PERFORMERS)
CHUNK = 128  # C of the formulas, whatever chunk a row really has


@dataclasses.dataclass(frozen=True)
class Case:
  """What is run, at which shape."""

  kind: str
  causal: bool
  pass_name: str  # one of PASSES
  length: int
  batch_size: int
  num_heads: int
  qkv_dim: int
  nb_features: int
  dtype: str

  @property
  def group(self) -> tuple[bool, str]:
    """What the rows of one panel have in common."""
    return self.causal, self.pass_name

  @property
  def has_backward(self) -> bool:
    return self.pass_name == 'forward_backward'

  @property
  def tokens(self) -> int:
    """Tokens of all sequences and heads."""
    return self.batch_size * self.num_heads * self.length

  @property
  def flops(self) -> float:
    """Nominal operations, those of projection and chunks included.

    Every row of linear attention counts alike, with C = 128, so that their
    fractions compare. What a backward pass computes again is not counted.
    """
    L, D, M, C = self.length, self.qkv_dim, self.nb_features, CHUNK
    if self.kind in SCORES:
      per_token = (14 if self.has_backward else 4) * L * D
      per_token /= 2 if self.causal else 1
    elif self.has_backward:
      per_token = (14 if self.causal else 12) * M * (D + 1) + 8 * M * D
      per_token += 2 * C * (4 * M + 3 * D + 3) if self.causal else 0
    else:
      per_token = 4 * M * (D + 1) + 4 * M * D
      per_token += 2 * C * (M + D + 1) if self.causal else 0
    return per_token * self.tokens

  @property
  def qkv_bytes(self) -> int:
    """Bytes of query, key and value together."""
    width = 4 if self.dtype == 'float32' else 2
    return 3 * self.tokens * self.qkv_dim * width

  @property
  def output_bytes(self) -> int:
    """Bytes of the output and, with a backward pass, the three gradients."""
    return self.qkv_bytes * (4 if self.has_backward else 1) // 3

  @property
  def least_bytes(self) -> int:
    """Memory that a run surely takes, where that is far more than its inputs.

    Exact attention makes the scores and their softmax. performer-pytorch
    without its CUDA extension makes a state at every token, and its gradient.
    """
    if self.kind == 'exact':
      return 2 * 4 * self.tokens * self.length
    if self.kind in PERFORMERS and self.causal and self.has_backward:
      return 2 * 4 * self.tokens * self.nb_features * self.qkv_dim
    return 0


@dataclasses.dataclass(frozen=True)
class Result:
  """A measured row; without seconds, one that was not run: the note says why.

  Attributes:
    case: what was run.
    seconds: of each run.
    temp_bytes: memory beyond inputs and outputs, None if unknown.
    note: for the reader of the table.
  """

  case: Case
  seconds: Sequence[float] = ()
  temp_bytes: int | None = None
  note: str = ''

  def row(self, gemm_gflops: float) -> dict[str, object]:
    """The columns of the CSV file, in their order."""
    case = self.case
    row = {
      'kind': case.kind,
      'causal': case.causal,
      'pass': case.pass_name,
      'length': case.length,
      'batch': case.batch_size,
      'heads': case.num_heads,
      'qkv_dim': case.qkv_dim,
      'nb_features': case.nb_features,
      'dtype': case.dtype,
      'median_ms': '',
      'min_ms': '',
      'repeats': len(self.seconds),
      'gflop': round(case.flops / 1e9, 4),
      'gflops': '',
      'gemm_gflops': round(gemm_gflops, 1),
      'gemm_fraction': '',
      'temp_bytes': '',
      'temp_over_qkv': '',
      'note': self.note,
    }
    if self.seconds:
      median = statistics.median(self.seconds)
      gflops = case.flops / 1e9 / median
      row['median_ms'] = round(median * 1e3, 3)
      row['min_ms'] = round(min(self.seconds) * 1e3, 3)
      row['gflops'] = round(gflops, 2)
      row['gemm_fraction'] = round(gflops / gemm_gflops, 4)
    if self.temp_bytes is not None:
      row['temp_bytes'] = self.temp_bytes
      row['temp_over_qkv'] = round(self.temp_bytes / case.qkv_bytes, 2)
    return row


def predict_seconds(
  length: int, measured: Sequence[tuple[int, float]], power: float
) -> float:
  """Seconds of one run, from those at smaller lengths; 0 if there are none.

  Args:
    length: of the run.
    measured: (length, seconds), ascending.
    power: of the length, that time grows with after a single measurement; of
      two or more the last two say it, between 1 and 2.
  """
  if not measured:
    return 0.0
  last_length, last = measured[-1]
  if len(measured) > 1:
    length_before, before = measured[-2]
    power = math.log(last / before) / math.log(last_length / length_before)
    power = min(2.0, max(1.0, power))
  return last * (length / last_length) ** power


def why_skipped(
  case: Case,
  measured: Sequence[tuple[int, float]],
  max_seconds: float,
  max_bytes: float,
) -> str:
  """The note of a row that takes too much time or memory; '' if it is run."""
  power = 2.0 if case.kind in SCORES else 1.0
  seconds = predict_seconds(case.length, measured, power)
  if seconds > max_seconds:
    return f'skipped: predicted {seconds:.3g} s'
  return too_large(case.least_bytes, max_bytes)


def too_large(num_bytes: float, max_bytes: float) -> str:
  """The note of a row that needs so much memory; '' if it is there."""
  if num_bytes <= 0.7 * max_bytes:  # others need memory too
    return ''
  return f'skipped: needs {num_bytes / 1e9:.0f} GB of memory'


def available_bytes() -> float:
  """Memory that can be taken without swapping; infinite if unknown."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return math.inf
  sizes = dict(line.split(':', 1) for line in lines)
  return 1024 * int(sizes['MemAvailable'].split()[0])
