"""Quantised posteriors: a deterministic code for each position, from the same front end and trunk as a CodeModel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModelConfig, CodeTrunk, Memory


class Quantized(NamedTuple):
    """Attributes: values (... n) on the grid, with a straight-through gradient; codes (...) int64."""

    values: Float[Tensor, "... n"]
    codes: Int[Tensor, ...]


class FSQ(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): round each bounded dimension to one of its levels.

    The index is mixed radix, the last dimension fastest. An even number of levels reaches [−1, 1 − 2/L].
    """

    span: Tensor
    offset: Tensor
    shift: Tensor
    half_width: Tensor
    radix: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if any(level < 2 for level in levels) or not levels:
            raise ConfigError(f"FSQ levels {levels}: each needs at least 2")
        self.levels = levels
        level = torch.tensor(levels, dtype=torch.float32)
        half = (level - 1) * (1 - 1e-3) / 2
        offset = torch.where(level % 2 == 0, 0.5, 0.0)
        radix = torch.tensor([math.prod(levels[i + 1 :]) for i in range(len(levels))])
        self.register_buffer("span", half, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.tan(offset / half), persistent=False)
        self.register_buffer("half_width", level // 2, persistent=False)
        self.register_buffer("radix", radix, persistent=False)

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    def forward(self, z: Float[Tensor, "... n"]) -> Quantized:
        bounded = torch.tanh(z.float() + self.shift) * self.span - self.offset  # float32: bf16 would merge codes
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = rounded.detach().nan_to_num().round().long() + self.half_width.long()
        return Quantized(rounded / self.half_width, (digits * self.radix).sum(-1))

    def codebook(self) -> Float[Tensor, "v n"]:
        """The grid value of every code."""
        codes = torch.arange(self.codebook_size, device=self.radix.device)[:, None]
        levels = torch.tensor(self.levels, device=codes.device)
        return ((codes // self.radix) % levels - self.half_width) / self.half_width


def fsq_levels(vocabulary: int, dimensions: int = 3) -> tuple[int, ...]:
    """The most balanced levels whose product comes nearest below the vocabulary: 256 → (8, 8, 4), 1024 → (16, 8, 8).

    Raises:
        ConfigError: no levels reach 95% of the vocabulary's bits.
    """
    choices = [c for c in combinations_with_replacement(range(2, 33), dimensions) if math.prod(c) <= vocabulary]
    if vocabulary < 2**dimensions:
        choices = [(vocabulary,)]
    best = max(choices, key=lambda c: (math.prod(c), c[0] - c[-1]))
    if math.log2(math.prod(best)) < 0.95 * math.log2(vocabulary):
        raise ConfigError(f"no {dimensions} FSQ levels reach 95% of log2({vocabulary}) bits: choose another vocabulary")
    return tuple(sorted(best, reverse=True))


class FSQPosterior(nn.Module):
    """A factorised trunk, its outputs quantised by FSQ, and the linear map that embeds the quantised values."""

    def __init__(self, config: CodeModelConfig, levels: tuple[int, ...] | None = None) -> None:
        super().__init__()
        width = config.transformer.width
        self.config = config
        self.trunk = CodeTrunk(CodeModelConfig(config.positions, config.vocabulary, False, config.transformer))
        self.quantizer = FSQ(levels or fsq_levels(config.vocabulary))
        if self.quantizer.codebook_size > config.vocabulary:
            raise ConfigError(f"FSQ levels {levels} make more codes than the vocabulary of {config.vocabulary}: use fewer")
        self.project_in = nn.Linear(width, len(self.quantizer.levels))
        self.project_out = nn.Linear(len(self.quantizer.levels), width)

    def prepare(self, memory: Float[Tensor, "b m d"]) -> Memory:
        return self.trunk.prepare(memory)

    def quantize(self, memory: Memory) -> tuple[Float[Tensor, "b l d"], Int[Tensor, "b l"]]:
        """Embedded quantised values, with a straight-through gradient, and their codes."""
        values, codes = self.quantizer(self.project_in(self.trunk.all_positions(memory)))
        return self.project_out(values), codes

    def embedding_table(self) -> Float[Tensor, "v d"]:
        """What each code embeds to, so that an embedding lookup decodes exactly as the quantiser did."""
        return self.project_out(self.quantizer.codebook())

    @torch.no_grad()
    def write_table(self, embedding: nn.Embedding) -> None:
        """Set the embedding of every code that the quantiser has to `embedding_table`."""
        table = self.embedding_table()
        embedding.weight[: len(table)] = table


@dataclass(frozen=True)
class QuantizerConfig:
    """A quantised posterior in place of a code model.

    Attributes:
        kind: "fsq".
        levels: FSQ levels; None chooses them from the vocabulary.
    """

    kind: str = "fsq"
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind != "fsq":
            raise ConfigError(f"quantiser kind {self.kind!r}: use 'fsq'")
