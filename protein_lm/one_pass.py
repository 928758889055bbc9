"""Scores one whole protein in a single pass, however long, without windows.

What linear attention is for: titin, 34,350 residues, fits in one forward pass.
"""

import dataclasses
import os
import pathlib
import resource
import sys
import time
from typing import Any

import jax

from protein_lm import proteins as proteins_lib
from protein_lm.data import EvalBatches
from protein_lm.evaluation import (
  batch_mask,
  masked_residues,
  score_split,
  summarize,
)
from protein_lm.proteins import Proteins

MULTIPLE = 128  # the pass is padded to a multiple of this many tokens


@dataclasses.dataclass(frozen=True)
class OnePass:
  """The result of scoring one protein in one pass.

  Attributes:
    protein_id: its id.
    metrics: as `evaluation.summarize` gives them.
    compile_seconds: time to trace and compile, paid once per length.
    seconds: time of the pass itself.
    peak_bytes: largest resident memory of this process so far.
    device_peak_bytes: largest memory in use on the accelerator, None on a CPU.
  """

  protein_id: str
  metrics: dict[str, Any]
  compile_seconds: float
  seconds: float
  peak_bytes: int
  device_peak_bytes: int | None

  def __str__(self):
    name = 'residue_perplexity'
    masked = self.metrics[name] is None
    value = self.metrics[f'masked_{name}' if masked else name]
    memory = f'peak memory {self.peak_bytes / 1e9:.2f} GB'
    if self.device_peak_bytes is not None:
      memory += f', on the device {self.device_peak_bytes / 1e9:.2f} GB'
    scored = f'{self.metrics["num_residues"]:,} {"masked " * masked}residues'
    return (
      f'{self.protein_id}: {scored} scored in one pass without windows, '
      f'{"masked " * masked}residue perplexity {value:.3f}, '
      f'{self.seconds:.2f} s (and {self.compile_seconds:.1f} s to compile), '
      f'{memory}'
    )


def score_one_pass(score_step, params, protein: Proteins, is_masked=False):
  """Scores a protein in one pass, timed.

  Args:
    score_step: the jitted function of `train_step.make_score_step`.
    params: the parameters of the model.
    protein: a split of one protein.
    is_masked: whether the model is masked; it then predicts the residues of
      the evaluation mask.

  Returns:
    OnePass.

  Raises:
    ValueError: by a model whose learned positions are too few.
  """
  num_tokens = int(protein.offsets[-1]) + 2
  padded_len = -(-num_tokens // MULTIPLE) * MULTIPLE
  (eval_batch,) = EvalBatches(protein, batch_size=1, max_len=padded_len)
  mask_T = mask_BL = None
  if is_masked:
    mask_T = masked_residues(protein)
    mask_BL = batch_mask(eval_batch, protein, mask_T)
  start = time.perf_counter()
  compiled = score_step.lower(params, eval_batch.batch, mask_BL).compile()
  compiled_at = time.perf_counter()
  token_scores = jax.block_until_ready(
    compiled(params, eval_batch.batch, mask_BL)
  )
  end = time.perf_counter()
  scores = score_split(
    lambda *_: token_scores, params, [eval_batch], protein, mask_T=mask_T
  )
  statistics = jax.devices()[0].memory_stats() or {}
  return OnePass(
    protein.ids[0],
    summarize(scores, protein),
    compiled_at - start,
    end - compiled_at,
    _peak_bytes(),
    statistics.get('peak_bytes_in_use'),
  )


def find_protein(id_or_path: str, data) -> Proteins:
  """Finds a protein by id in a data set, or the longest one of a FASTA file.

  Args:
    id_or_path: an id of any split of data, or the path of a FASTA file.
    data: of `open_data`.

  Returns:
    A split of this protein alone.

  Raises:
    ValueError: if there is neither such an id nor such a file.
  """
  from protein_lm import vocab

  if os.path.isfile(id_or_path):
    return longest_protein(id_or_path)
  for split in data.splits:
    proteins = data.proteins(split)
    if id_or_path in proteins.ids:
      index = proteins.ids.index(id_or_path)
      start, end = proteins.offsets[index : index + 2]
      letters = vocab.decode(proteins.residues[start:end])
      return proteins_lib.from_sequences({id_or_path: letters})
  raise ValueError(
    f'{id_or_path!r} is no file, and no id in {", ".join(data.splits)} of '
    f'{data.name} (a protein may have been dropped in preparation); name a '
    'FASTA file to score its longest protein'
  )


def longest_protein(path: str | os.PathLike) -> Proteins:
  """The longest protein of a FASTA file, plain or gzip.

  Raises:
    ValueError: the file cannot be read, or holds no protein.
  """
  from protein_lm.datasets.collection import read_proteins
  from protein_lm.datasets.fasta_file import FastaFiles
  from protein_lm.datasets.intake import Tally

  proteins = read_proteins(FastaFiles((pathlib.Path(path),)), Tally())
  longest = max(proteins, key=lambda protein: len(protein.sequence))
  return proteins_lib.from_sequences({longest.id: longest.sequence})


def _peak_bytes():
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024  # else KiB
