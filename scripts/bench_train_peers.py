"""The rows of bench_train.py that train in PyTorch, which is imported here.

    torch           a plain pre-norm Transformer with PyTorch's
                    scaled_dot_product_attention and its fused AdamW
    performer_256   PerformerLM of performer-pytorch, M = 256 features, its
                    defaults otherwise (features are drawn anew every 1000
                    steps, not reversible); learned positions

Both have GELU, LayerNorm, learned positions, an output layer of its own and no
dropout, whatever the model beside them has. On a GPU where JAX is on one.

Axes: B batch, L length, H heads, K head width, D model width, F MLP width.
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import warnings
from collections.abc import Callable, Sequence

import bench_attention_case as host
import numpy as np

_BYTES_PER_STATE = 8  # of a causal sum at each token: kept, and copied once


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a peer is built like."""

  num_layers: int
  emb_dim: int
  qkv_dim: int
  mlp_dim: int
  num_heads: int
  vocab_size: int
  causal: bool
  dtype: str

  @property
  def head_dim(self) -> int:
    return self.qkv_dim // self.num_heads


def is_peer(kind: str) -> bool:
  return kind == 'torch' or kind.startswith('performer_')


def why_unavailable(kind: str, shape: Shape) -> str:
  """Why there can be no such row, and the way out; '' if there can."""
  names = ['torch'] if kind == 'torch' else ['torch', 'performer_pytorch']
  missing = [name for name in names if not importlib.util.find_spec(name)]
  if missing:
    return f"without {missing[0]}: pip install -e '.[peers]'"
  if kind != 'torch' and shape.mlp_dim % shape.emb_dim:
    return 'its mlp_dim is a multiple of emb_dim'
  return ''


def least_bytes(kind: str, shape: Shape, num_tokens: int) -> float:
  """Memory that a step surely takes, where that is far more than usual.

  performer-pytorch without its CUDA extension makes a causal state at each
  token, and keeps those of every layer.
  """
  if kind == 'torch' or not shape.causal:
    return 0
  state = int(kind.removeprefix('performer_')) * shape.qkv_dim
  return float(_BYTES_PER_STATE * state * num_tokens * shape.num_layers)


def available_bytes() -> float:
  """Memory that a peer can take."""
  import torch

  if _on_gpu(torch):
    return float(torch.cuda.mem_get_info()[0])
  return host.available_bytes()


def make_step(
  kind: str, shape: Shape, batches: Sequence
) -> Callable[[int], object]:
  """A function that takes n steps, and waits for them.

  Args:
    kind: of the row.
    shape: of the model.
    batches: Batch objects of one shape, taken in turn; padding is computed
      like any token.
  """
  import torch

  torch.set_num_threads(_num_threads())
  torch.manual_seed(0)
  device = torch.device('cuda' if _on_gpu(torch) else 'cpu')
  length = batches[0].tokens.shape[1]
  make = _transformer if kind == 'torch' else _performer
  model = make(torch, shape, length, kind).to(device).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
  tokens = [
    torch.from_numpy(np.asarray(b.tokens, np.int64)).to(device) for b in batches
  ]
  autocast = torch.autocast(
    device.type, torch.bfloat16, enabled=shape.dtype == 'bfloat16'
  )

  def step(tokens_BL):
    shift = int(shape.causal)
    targets_BL = tokens_BL[:, shift:]
    with autocast:
      logits_BLV = model(tokens_BL)[:, : targets_BL.shape[1]]
    loss = torch.nn.functional.cross_entropy(
      logits_BLV.float().flatten(0, 1), targets_BL.flatten()
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss

  def run(num_steps):
    for i in range(num_steps):
      loss = step(tokens[i % len(tokens)])
    return loss.item()

  return run


def _transformer(torch, shape, length, kind):
  """A pre-norm Transformer as a PyTorch module."""
  del kind
  nn = torch.nn
  D, F, H, K = shape.emb_dim, shape.mlp_dim, shape.num_heads, shape.head_dim

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.attention_norm, self.mlp_norm = nn.LayerNorm(D), nn.LayerNorm(D)
      self.qkv, self.out = nn.Linear(D, 3 * H * K), nn.Linear(H * K, D)
      self.mlp_in, self.mlp_out = nn.Linear(D, F), nn.Linear(F, D)

    def forward(self, x_BLD):
      B, L, _ = x_BLD.shape
      qkv = self.qkv(self.attention_norm(x_BLD)).view(B, L, 3, H, K)
      query_BHLK, key_BHLK, value_BHLK = qkv.permute(2, 0, 3, 1, 4)
      attended_BHLK = nn.functional.scaled_dot_product_attention(
        query_BHLK, key_BHLK, value_BHLK, is_causal=shape.causal
      )
      x_BLD = x_BLD + self.out(attended_BHLK.transpose(1, 2).flatten(2))
      h_BLF = self.mlp_in(self.mlp_norm(x_BLD))
      return x_BLD + self.mlp_out(nn.functional.gelu(h_BLF, approximate='tanh'))

  class Transformer(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Embedding(shape.vocab_size, D)
      self.positions = nn.Embedding(length, D)
      self.blocks = nn.Sequential(*(Block() for _ in range(shape.num_layers)))
      self.final_norm = nn.LayerNorm(D)
      self.output = nn.Linear(D, shape.vocab_size)

    def forward(self, tokens_BL):
      x_BLD = self.embed(tokens_BL) + self.positions.weight
      return self.output(self.final_norm(self.blocks(x_BLD)))

  return Transformer()


def _performer(torch, shape, length, kind):
  """The PerformerLM of a row such as performer_256."""
  del torch
  # It warns of the names it uses, and prints that it falls back.
  with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter('ignore')
    from performer_pytorch import PerformerLM

    return PerformerLM(
      num_tokens=shape.vocab_size,
      max_seq_len=length,
      dim=shape.emb_dim,
      depth=shape.num_layers,
      heads=shape.num_heads,
      dim_head=shape.head_dim,
      causal=shape.causal,
      ff_mult=shape.mlp_dim // shape.emb_dim,
      nb_features=int(kind.removeprefix('performer_')),
      rotary_position_emb=False,
    )


def _on_gpu(torch):
  import jax

  return jax.default_backend() == 'gpu' and torch.cuda.is_available()


def _num_threads():
  """Cores this process may use, which is what JAX takes."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()
