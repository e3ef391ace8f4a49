"""Quantisers: from vectors to the nearest points of a grid (FSQ) or of a codebook (VQ), and back."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.errors import ConfigError


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

    def bound(self, z: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """z squashed into the range of the levels, in float32 (bf16 would merge codes); integers are levels."""
        return torch.tanh(z.float() + self.shift) * self.span - self.offset

    def forward(self, z: Float[Tensor, "... n"]) -> Quantized:
        bounded = self.bound(z)
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


class VQ(nn.Module):
    """A codebook: the nearest of its vectors (van den Oord et al. 2017, arXiv 1711.00937). Training moves it from outside."""

    vectors: Tensor

    def __init__(self, vocabulary: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(vocabulary, dimensions))

    def forward(self, z: Float[Tensor, "... n"]) -> Quantized:
        codes = torch.cdist(z.float().flatten(0, -2), self.vectors).argmin(-1).view(z.shape[:-1])
        values = self.vectors[codes]
        return Quantized(z + (values - z).detach(), codes)

    def codebook(self) -> Float[Tensor, "v n"]:
        return self.vectors


class ResidualVQ(nn.Module):
    """l codebooks, each for what those before it leave over (arXiv 2107.03312, algorithm 1): z ≈ Σ_i c_i[z_i].

    Training moves them from outside.
    """

    vectors: Tensor

    def __init__(self, levels: int, vocabulary: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(levels, vocabulary, dimensions))

    def forward(self, z: Float[Tensor, "b n"]) -> Int[Tensor, "b l"]:
        """The nearest vector of each codebook in turn."""
        rest, codes = z.float(), []
        for vectors in self.vectors:
            codes.append(torch.cdist(rest, vectors).argmin(-1))
            rest = rest - vectors[codes[-1]]
        return torch.stack(codes, dim=-1)

    def codebook(self) -> Float[Tensor, "w n"]:
        """All l·v vectors, one codebook after another."""
        return self.vectors.flatten(0, 1)


def embed_codebook(quantizer: FSQ | VQ | ResidualVQ, project_out: nn.Linear) -> Float[Tensor, "v d"]:
    """What each code embeds to, in float32 under any autocast, so that a lookup decodes exactly as the quantiser did."""
    codebook = quantizer.codebook()
    with torch.autocast(codebook.device.type, enabled=False):
        return project_out(codebook)
