"""CodeModel: a distribution over code sequences given a memory.

One network serves the tokenizer's posterior q(z|x) (memory: an encoded chunk or image) and the policy π(z|o) (memory:
encoded observations). It is autoregressive (p(z|m) = Π_i p(z_i | z_<i, m)) or factorised (p(z|m) = Π_i p(z_i | m)).

Log-probabilities are float32 under any autocast. BOS is an embedding of its own: code 0 is a code like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import Cache, DecoderBlock, GrowingCache, TransformerConfig, sinusoidal_positions

Memory = list[tuple[Tensor, Tensor]]
"""Cross-attention keys and values (b heads m d_head) of every layer."""


@dataclass(frozen=True)
class CodeModelConfig:
    """A code model.

    Attributes:
        positions: codes in a sequence, l.
        vocabulary: values of a code, v.
        autoregressive: condition each code on those before it; otherwise all positions come from one pass.
        transformer: size of the decoder stack.
    """

    positions: int = 8
    vocabulary: int = 256
    autoregressive: bool = True
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        if self.positions < 1 or self.vocabulary < 2:
            raise ConfigError(
                f"{self.positions} positions of {self.vocabulary} codes cannot hold a bit: use at least 1 position of 2 codes"
            )

    @property
    def bits(self) -> float:
        """Capacity of a sequence, l·log2(v)."""
        return self.positions * math.log2(self.vocabulary)


class CodeTrunk(nn.Module):
    """The transformer decoder from a memory (and, if autoregressive, the codes so far) to one vector per position."""

    positions: Tensor

    def __init__(self, config: CodeModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.transformer.width
        if config.autoregressive:
            self.embedding = nn.Embedding(config.vocabulary, width)
            self.bos = nn.Parameter(torch.randn(width))
        else:
            self.queries = nn.Parameter(torch.randn(config.positions, width))
        self.register_buffer("positions", sinusoidal_positions(config.positions, width), persistent=False)
        self.blocks = nn.ModuleList(DecoderBlock(config.transformer) for _ in range(config.transformer.layers))
        self.norm = nn.LayerNorm(width)

    def prepare(self, memory: Float[Tensor, "b m d"]) -> Memory:
        """Cross-attention keys and values of every layer, shared by all samples of an input."""
        return [block.cross.memory(memory) for block in self._blocks()]

    def all_positions(self, memory: Memory) -> Float[Tensor, "b l d"]:
        """Every position of a factorised model in one pass."""
        x: Tensor = repeat(self.queries + self.positions, "l d -> b l d", b=len(memory[0][0]))
        for block, keys_values in zip(self._blocks(), memory, strict=True):
            x = block(x, keys_values, k=None)
        return self.norm(x)

    def teacher_forced(
        self, memory: Memory, codes: Int[Tensor, "b k l"]
    ) -> tuple[Float[Tensor, "b 1 d"], Float[Tensor, "b k m d"]]:
        """Position 0, which has seen no code and is shared by the k samples, and positions 1 … l−1, each given all before."""
        b, k, _ = codes.shape
        first = (self.bos + self.positions[0]).expand(b, 1, -1)
        later = self.embedding(codes[..., :-1]) + self.positions[1:]
        x = torch.cat([first, later.flatten(1, 2)], dim=1)
        for block, keys_values in zip(self._blocks(), memory, strict=True):
            x = block(x, keys_values, k=k)
        x = self.norm(x)
        return x[:, :1], x[:, 1:].view(later.shape)

    def start(self, memory: Memory) -> tuple[Float[Tensor, "b 1 d"], list[Cache]]:
        """Position 0, which all samples of an input share, and caches that hold its keys and values."""
        b, h, _, e = memory[0][0].shape
        caches = [Cache(b, h, self.config.positions, e, like=memory[0][0]) for _ in self.blocks]
        return self.step(self.bos.expand(b, 1, -1), 0, memory, caches), caches

    def extend(self, codes: Int[Tensor, "b k"], position: int, memory: Memory, caches: list[Cache]) -> Float[Tensor, "b k d"]:
        """The next position once the code before it is known; the caches grow by that code."""
        return self.step(self.embedding(codes), position, memory, caches)

    def step(
        self, x: Float[Tensor, "b k d"], position: int, memory: Memory, caches: Sequence[Cache | GrowingCache]
    ) -> Float[Tensor, "b k d"]:
        """A position from the embedding of the code before it (of the first, `bos`); the caches grow by it."""
        x = x + self.positions[position]
        for block, keys_values, cache in zip(self._blocks(), memory, caches, strict=True):
            x = block.step(x, keys_values, cache)
        return self.norm(x)

    def _blocks(self) -> list[DecoderBlock]:
        return cast("list[DecoderBlock]", list(self.blocks))


class EmbeddingHead(nn.Module):
    """Logits as inner products with given code vectors: codes that mean similar things start, and move, together.

    With v separate rows a classifier learns about every code alone, which takes data that demonstrations do not have.
    """

    vectors: Tensor

    def __init__(self, width: int, vectors: Float[Tensor, "v e"]) -> None:
        super().__init__()
        centred = vectors.detach() - vectors.detach().mean(0)
        self.register_buffer("vectors", centred / centred.square().sum(1).mean().sqrt().clamp(min=1e-6))
        self.query = nn.Linear(width, vectors.shape[1])
        self.bias = nn.Parameter(torch.zeros(len(vectors)))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        return (self.query(hidden) * self.scale) @ self.vectors.T + self.bias


class CodeModel(nn.Module):
    """p(z | memory) over sequences of l codes with values 0..v-1. Draw from it with `daps_robot.models.sampling`."""

    def __init__(self, config: CodeModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = CodeTrunk(config)
        self.head: nn.Module = nn.Linear(config.transformer.width, config.vocabulary)

    def prepare(self, memory: Float[Tensor, "b m d"]) -> Memory:
        """See `CodeTrunk.prepare`: done once for an input, whatever is then drawn or scored."""
        return self.trunk.prepare(memory)

    def logits(self, memory: Memory, codes: Int[Tensor, "b k l"]) -> Float[Tensor, "b k l v"]:
        """Teacher-forced logits: entry i is the conditional of code i given codes < i."""
        k = codes.shape[1]
        if not self.config.autoregressive:
            return self.factorised_logits(memory)[:, None].expand(-1, k, -1, -1)
        first, later = self.trunk.teacher_forced(memory, codes)
        return torch.cat([self.head(first)[:, None].expand(-1, k, -1, -1), self.head(later)], dim=2).float()

    def factorised_logits(self, memory: Memory) -> Float[Tensor, "b l v"]:
        """Logits of every position of a factorised model."""
        return self.head(self.trunk.all_positions(memory)).float()

    def log_prob(self, memory: Memory, codes: Int[Tensor, "b k l"]) -> Float[Tensor, "b k l"]:
        """log p(z_i | z_<i, memory) in nats of every position; their sum over l is log p(z | memory)."""
        if not self.config.autoregressive:
            return self.factorised_logits(memory).log_softmax(-1).gather(-1, codes.transpose(1, 2)).transpose(1, 2)
        first, later = self.trunk.teacher_forced(memory, codes)
        of_first = self.head(first).float().log_softmax(-1)[:, 0].gather(-1, codes[..., 0])
        of_later = code_log_prob(self.head(later).float(), codes[..., 1:])
        return torch.cat([of_first[..., None], of_later], dim=-1)


def code_log_prob(logits: Float[Tensor, "*b v"], codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """log softmax(logits)[codes] in nats."""
    return cast(Tensor, _CodeLogProb.apply(logits, codes))


class _CodeLogProb(torch.autograd.Function):
    """As cross-entropy, with one (… v) tensor less in memory and fewer passes over it: the logits dominate a training step."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, codes: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        ctx.save_for_backward(log_probs, codes)
        return log_probs.gather(-1, codes[..., None])[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        log_probs, codes = ctx.saved_tensors
        of_logits = log_probs.exp().mul_(-gradient[..., None])
        return of_logits.scatter_add_(-1, codes[..., None], gradient[..., None]), None
