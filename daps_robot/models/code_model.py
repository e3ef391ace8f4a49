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
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import Cache, DecoderBlock, GrowingCache, TransformerConfig, sinusoidal_positions
from daps_robot.models.quantizers import FSQ, Quantized

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
        """Every position in one pass; in an autoregressive model, as if every code embedded to zero."""
        causal = self.config.autoregressive
        start = F.pad(self.bos[None], (0, 0, 0, self.config.positions - 1)) if causal else self.queries
        x: Tensor = repeat(start + self.positions, "l d -> b l d", b=len(memory[0][0]))
        for block, keys_values in zip(self._blocks(), memory, strict=True):
            x = block(x, keys_values, k=1 if causal else None)
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


class LatticeHead(nn.Module):
    """Logits −‖y − g_j‖²/τ of codes that lie on the grid of an FSQ quantiser, g_j, plus a linear map that starts at zero.

    y is a bounded projection of the trunk's output. The most likely code is then what FSQ makes of y, and its neighbours on the
    grid are the next most likely: a distribution that knows which codes are alike. The linear map takes it from there.
    Codes that the grid does not have start out all but impossible.
    """

    grid: Tensor

    def __init__(self, width: int, vocabulary: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.fsq = FSQ(levels)
        spare = vocabulary - self.fsq.codebook_size
        grid = self.fsq.codebook() * self.fsq.half_width
        self.register_buffer("grid", F.pad(grid, (0, 0, 0, spare)), persistent=False)
        self.project_in = nn.Linear(width, len(levels))
        self.linear = nn.Linear(width, vocabulary)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.constant_(self.linear.bias[len(grid) :], -30.0)
        self.log_precision = nn.Parameter(torch.tensor(math.log(2.0)))  # 1/τ

    def quantize(self, hidden: Float[Tensor, "... d"]) -> Quantized:
        """What FSQ makes of the projection: grid values with a straight-through gradient, and codes."""
        return cast(Quantized, self.fsq(self.project_in(hidden)))

    def forward(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        y = self.fsq.bound(self.project_in(hidden))
        with torch.autocast(hidden.device.type, enabled=False):  # the terms of a distance cancel: bf16 would change the nearest
            precision = self.log_precision.exp()
            # −‖y − g‖² = 2 y·g − ‖g‖² up to a constant: one product with the linear map's, as the logits dominate a step
            weight = torch.cat([self.linear.weight, 2 * precision * self.grid], dim=1)
            bias = self.linear.bias - precision * self.grid.square().sum(-1)
            return F.linear(torch.cat([hidden.float(), y], dim=-1), weight, bias)


class CodeModel(nn.Module):
    """p(z | memory) over sequences of l codes with values 0..v-1. Draw from it with `daps_robot.models.sampling`."""

    def __init__(self, config: CodeModelConfig, head: nn.Module | None = None) -> None:
        """`head` maps the trunk's outputs to logits; None, linearly."""
        super().__init__()
        self.config = config
        self.trunk = CodeTrunk(config)
        self.head = head or nn.Linear(config.transformer.width, config.vocabulary)

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

    def log_prob_and_expectation(
        self, memory: Memory, codes: Int[Tensor, "b k l"], values: Float[Tensor, "b k l v"]
    ) -> tuple[Float[Tensor, "b k l"], Float[Tensor, "b k l"]]:
        """`log_prob`, and the expected value at every position given the codes before: Σ_c p(c | z_<i, memory)·values_i(c)."""
        k = codes.shape[1]
        if not self.config.autoregressive:
            logits = self.factorised_logits(memory)[:, None].expand(-1, k, -1, -1)
            return code_log_prob_and_expectation(logits, codes, values)
        first, later = self.trunk.teacher_forced(memory, codes)
        logits = self.head(first).float().expand(-1, k, -1)
        of_first = code_log_prob_and_expectation(logits, codes[..., 0], values[..., 0, :])
        of_later = code_log_prob_and_expectation(self.head(later).float(), codes[..., 1:], values[..., 1:, :])
        log_prob, expectation = (torch.cat([a[..., None], b], dim=-1) for a, b in zip(of_first, of_later, strict=True))
        return log_prob, expectation


def code_log_prob(logits: Float[Tensor, "*b v"], codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """log softmax(logits)[codes] in nats."""
    return cast(Tensor, _CodeLogProb.apply(logits, codes))  # type: ignore[no-untyped-call]


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


def code_log_prob_and_expectation(
    logits: Float[Tensor, "*b v"], codes: Int[Tensor, "*b"], values: Float[Tensor, "*b v"]
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """log softmax(logits)[codes] in nats, and Σ_c softmax(logits)_c·values_c; no gradient reaches the values."""
    return cast("tuple[Tensor, Tensor]", _CodeLogProbAndExpectation.apply(logits, codes, values))  # type: ignore[no-untyped-call]


class _CodeLogProbAndExpectation(torch.autograd.Function):
    """As `_CodeLogProb`, for both at once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, codes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        expectation = (probs * values).sum(-1)  # not a dot product, which autocast would take in bf16
        ctx.save_for_backward(probs, codes, values, expectation)
        return log_probs.gather(-1, codes[..., None])[..., 0], expectation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_prob: Tensor, of_expectation: Tensor) -> tuple[Tensor, None, None]:
        probs, codes, values, expectation = ctx.saved_tensors
        of_logits = (values - expectation[..., None]).mul_(of_expectation[..., None]).sub_(of_log_prob[..., None]).mul_(probs)
        return of_logits.scatter_add_(-1, codes[..., None], of_log_prob[..., None]), None, None
