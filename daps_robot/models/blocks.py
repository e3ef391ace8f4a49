"""Transformer blocks: pre-LayerNorm, ReLU MLP, fixed sinusoidal positions (the networks of arXiv 2509.24716, appendix).

Queries of several samples that share one memory are folded into one query axis (k·l), so that keys and values of the memory
are computed and stored once per input, not once per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from daps_robot.errors import ConfigError


def sinusoidal_positions(length: int, width: int) -> Float[Tensor, "l d"]:
    """Fixed sinusoidal position table (Vaswani et al. 2017, section 3.5): sines in the first half, cosines in the second."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10_000.0) / max(half - 1, 1)))
    table = torch.zeros(length, width)
    table[:, :half] = torch.sin(position * frequency)
    table[:, half : 2 * half] = torch.cos(position * frequency)
    return table


class Cache:
    """Keys and values of one layer's self-attention while a sequence grows, preallocated to its full length.

    Attributes:
        keys, values: (s heads l d_head) for s sequences.
        length: positions filled so far.
    """

    def __init__(self, sequences: int, heads: int, length: int, head_width: int, like: Tensor) -> None:
        self.keys = like.new_empty(sequences, heads, length, head_width)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add one position (s heads d_head); the keys and values of every position so far."""
        t = self.length
        self.keys[:, :, t] = keys
        self.values[:, :, t] = values
        self.length = t + 1
        return self.keys[:, :, : t + 1], self.values[:, :, : t + 1]

    def repeat(self, k: int) -> None:
        """Give every sequence k copies, for k samples that branch from a shared prefix."""
        self.keys = self.keys.repeat_interleave(k, dim=0)
        self.values = self.values.repeat_interleave(k, dim=0)


class GrowingCache:
    """As `Cache`, by concatenation: for sequences that gradients flow back through."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add one position (s heads d_head); the keys and values of every position so far."""
        self.keys.append(keys)
        self.values.append(values)
        return torch.stack(self.keys, dim=2), torch.stack(self.values, dim=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases: over tokens, over branching code sequences, or one position at a time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Float[Tensor, "s l d"], mask: Float[Tensor, "l l"] | None = None) -> Float[Tensor, "s l d"]:
        """Over all tokens; `mask` is −∞ where a token (row) may not see another (column), else 0."""
        q, k, v = self._split(self.qkv(x))
        return self.out(rearrange(attend(q, k, v, mask), "s h l e -> s l (h e)"))

    def branches(self, x: Float[Tensor, "b q d"], k: int) -> Float[Tensor, "b q d"]:
        """Causal attention over k sequences that share position 0: x holds it once, then k·(l−1) later positions."""
        qkv = self.qkv(x)
        _, first_key, first_value = self._split(qkv[:, :1])
        q, keys, values = self._split(rearrange(qkv[:, 1:], "b (k l) f -> (b k) l f", k=k))
        keys = torch.cat([first_key.repeat_interleave(k, dim=0), keys], dim=2)
        values = torch.cat([first_value.repeat_interleave(k, dim=0), values], dim=2)
        mask = causal_mask(q.shape[2], keys.shape[2], like=q)
        later = rearrange(attend(q, keys, values, mask), "(b k) h l e -> b (k l) (h e)", k=k)
        first = rearrange(first_value, "b h 1 e -> b 1 (h e)")  # position 0 attends to itself alone
        return self.out(torch.cat([first, later], dim=1))

    def step(self, x: Float[Tensor, "s d"], cache: Cache | GrowingCache) -> Float[Tensor, "s d"]:
        # Views in place of einops here and below: one position of one input is a matter of microseconds.
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        keys, values = cache.append(k, v)
        return self.out(attend(q[:, :, None], keys, values).flatten(1))

    def _split(self, qkv: Float[Tensor, "s l f"]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(qkv, "s l (three h e) -> three s h l e", three=3, h=self.heads)
        return q, k, v


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a memory, without biases; the memory's keys and values are given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def memory(self, memory: Float[Tensor, "b m d"]) -> tuple[Tensor, Tensor]:
        """Keys and values (b heads m d_head) of a memory, computed once for all queries."""
        k, v = rearrange(self.key_value(memory), "b m (two h e) -> two b h m e", two=2, h=self.heads)
        return k, v

    def forward(self, x: Float[Tensor, "b q d"], memory: tuple[Tensor, Tensor]) -> Float[Tensor, "b q d"]:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out(attend(q, *memory).transpose(1, 2).flatten(2))


def causal_mask(queries: int, keys: int, like: Tensor) -> Float[Tensor, "q k"]:
    """−∞ where a query may not see a key: the last query sees all keys, the one before all but one."""
    return torch.full((queries, keys), -torch.inf, device=like.device, dtype=like.dtype).triu(keys - queries + 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over the last two axes; `mask` is added to the scores.

    On a CPU the fused kernel's backward pass costs 1.2 to 1.6 times that of plain matrix products at these sizes (8 to 64
    positions), so training takes the plain form there.
    """
    if q.is_cuda or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


class MLP(nn.Sequential):
    """Two layers with a ReLU between, hidden width `ratio` times the width."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.ReLU(inplace=True), nn.Linear(ratio * width, width))


@dataclass(frozen=True)
class TransformerConfig:
    """Size of a transformer stack.

    Attributes:
        width: embedding width d.
        heads: attention heads; must divide the width.
        layers: blocks.
        mlp_ratio: hidden width of the MLP over d.
    """

    width: int = 64
    heads: int = 4
    layers: int = 1
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name, most in (("width", 16384), ("heads", 1024), ("layers", 256), ("mlp_ratio", 64)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} {getattr(self, name)} of a transformer must be from 1 to {most}")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of {self.heads} heads")


class EncoderBlock(nn.Module):
    """Self-attention and MLP, both pre-LayerNorm and residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_ratio)

    def forward(self, x: Float[Tensor, "s l d"], mask: Float[Tensor, "l l"] | None = None) -> Float[Tensor, "s l d"]:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class TransformerEncoder(nn.Module):
    """A stack of encoder blocks over tokens with sinusoidal positions, closed by a LayerNorm."""

    positions: Tensor
    mask: Tensor | None

    def __init__(self, config: TransformerConfig, length: int, mask: Float[Tensor, "l l"] | None = None) -> None:
        """`mask` as `SelfAttention` has it."""
        super().__init__()
        self.register_buffer("positions", sinusoidal_positions(length, config.width), persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b m d"]:
        x = tokens + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        return self.norm(x)


class DecoderBlock(nn.Module):
    """Self-attention over a code sequence, cross-attention to a memory, MLP; all pre-LayerNorm and residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width)
        self.cross = CrossAttention(config.width, config.heads)
        self.norm3 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_ratio)

    def forward(self, x: Float[Tensor, "b q d"], memory: tuple[Tensor, Tensor], k: int | None) -> Float[Tensor, "b q d"]:
        """Over k branching sequences (see `SelfAttention.branches`), or over all q positions without order (k None)."""
        y = self.norm1(x)
        x = x + (self.attention(y) if k is None else self.attention.branches(y, k))
        x = x + self.cross(self.norm2(x), memory)
        return x + self.mlp(self.norm3(x))

    def step(
        self, x: Float[Tensor, "b k d"], memory: tuple[Tensor, Tensor], cache: Cache | GrowingCache
    ) -> Float[Tensor, "b k d"]:
        x = x + self.attention.step(self.norm1(x).flatten(0, 1), cache).view(x.shape)
        x = x + self.cross(self.norm2(x), memory)
        return x + self.mlp(self.norm3(x))
