"""What stands in for a CodeModel in rival methods: a deterministic code, or a Gaussian, at each position.

All on the same front end and trunk as a factorised CodeModel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModel, CodeModelConfig, CodeTrunk, Memory


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


class TrunkPosterior(nn.Module):
    """A factorised trunk and a linear map of its outputs."""

    def __init__(self, config: CodeModelConfig, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.trunk = CodeTrunk(CodeModelConfig(config.positions, config.vocabulary, False, config.transformer))
        self.project_in = nn.Linear(config.transformer.width, outputs)

    def prepare(self, memory: Float[Tensor, "b m d"]) -> Memory:
        return self.trunk.prepare(memory)

    def latents(self, memory: Memory) -> Float[Tensor, "b l n"]:
        return self.project_in(self.trunk.all_positions(memory))


class QuantizedPosterior(TrunkPosterior):
    """The trunk's outputs quantised, and the linear map that embeds the quantised values."""

    def __init__(self, config: CodeModelConfig, kind: str, levels: tuple[int, ...] | None = None, dimensions: int = 8) -> None:
        if kind == "fsq":
            levels = levels or fsq_levels(config.vocabulary)
            if math.prod(levels) > config.vocabulary:
                raise ConfigError(f"FSQ levels {levels} make more codes than the vocabulary of {config.vocabulary}: use fewer")
            dimensions = len(levels)
        super().__init__(config, dimensions)
        self.quantizer: FSQ | VQ = FSQ(levels) if kind == "fsq" and levels else VQ(config.vocabulary, dimensions)
        self.project_out = nn.Linear(dimensions, config.transformer.width)

    @property
    def bits(self) -> float:
        """Capacity of a sequence: of the codes that the quantiser has."""
        return self.config.positions * math.log2(len(self.quantizer.codebook()))

    def quantize(self, memory: Memory) -> tuple[Float[Tensor, "b l d"], Int[Tensor, "b l"]]:
        """Embedded quantised values, with a straight-through gradient, and their codes."""
        values, codes = self.quantizer(self.latents(memory))
        return self.project_out(values), codes

    def embedding_table(self) -> Float[Tensor, "v d"]:
        """What each code embeds to, so that an embedding lookup decodes exactly as the quantiser did."""
        return self.project_out(self.quantizer.codebook())

    @torch.no_grad()
    def write_table(self, embedding: nn.Embedding) -> None:
        """Set the embedding of every code that the quantiser has to `embedding_table`, in float32."""
        with torch.autocast(embedding.weight.device.type, enabled=False):
            table = self.embedding_table()
        embedding.weight[: len(table)] = table


class GaussianPosterior(TrunkPosterior):
    """A Gaussian at each position, of the embedding's width; its prior is N(0, 1) (Kingma & Welling 2014). No codes."""

    def __init__(self, config: CodeModelConfig) -> None:
        super().__init__(config, 2 * config.transformer.width)

    def moments(self, memory: Memory) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
        """Mean and log-variance."""
        mean, log_variance = self.latents(memory).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-20, 20)

    def draw(self, memory: Memory, k: int | None) -> tuple[Float[Tensor, "b k l d"], Float[Tensor, "b k"]]:
        """k samples with a reparametrised gradient (None: the mean, as one), and the KL to the prior in nats."""
        mean, log_variance = self.moments(memory)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2))[:, None]
        if k is None:
            return mean[:, None], kl
        noise = torch.randn(len(mean), k, *mean.shape[1:], device=mean.device)
        return mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise, kl.expand(-1, k)


@dataclass(frozen=True)
class PosteriorConfig:
    """A posterior in place of the code model.

    Attributes:
        kind: "fsq", "vq" or "gaussian".
        levels: FSQ levels; None chooses them from the vocabulary.
        dimensions: of a VQ codebook's vectors; low ones keep more of them in use (Yu et al. 2022, arXiv 2110.04627).
    """

    kind: Literal["fsq", "vq", "gaussian"] = "fsq"
    levels: tuple[int, ...] | None = None
    dimensions: int = 8

    def __post_init__(self) -> None:
        if self.kind not in ("fsq", "vq", "gaussian"):
            raise ConfigError(f"posterior kind {self.kind!r}: use 'fsq', 'vq' or 'gaussian'")
        if self.dimensions < 1:
            raise ConfigError(f"a codebook of {self.dimensions} dimensions: use at least 1")


def make_posterior(config: PosteriorConfig | None, codes: CodeModelConfig) -> CodeModel | QuantizedPosterior | GaussianPosterior:
    """The posterior that a configuration describes; None, a code model."""
    if config is None:
        return CodeModel(codes)
    if config.kind == "gaussian":
        return GaussianPosterior(codes)
    return QuantizedPosterior(codes, config.kind, config.levels, config.dimensions)
