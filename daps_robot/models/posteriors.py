"""The posteriors that a tokenizer can have: a code model, or in rival methods a deterministic code or a Gaussian per position.

All are on the same front end; the rivals' have the trunk of a factorised CodeModel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModel, CodeModelConfig, CodeTrunk, LatticeHead, Memory
from daps_robot.models.quantizers import FSQ, VQ, ResidualVQ, embed_codebook, fsq_levels
from daps_robot.parallel import noise


def levels_for(config: CodeModelConfig, levels: tuple[int, ...] | None) -> tuple[int, ...]:
    """The levels that were asked for, or those nearest below the vocabulary.

    Raises:
        ConfigError: they make more codes than the vocabulary has, or none come near it.
    """
    levels = levels or fsq_levels(config.vocabulary)
    if math.prod(levels) > config.vocabulary:
        raise ConfigError(f"FSQ levels {levels} make more codes than the vocabulary of {config.vocabulary}: use fewer")
    return levels


class NoTrunk(nn.Module):
    """In place of a trunk: the memory tokens themselves, as many as there are positions."""

    def prepare(self, memory: Float[Tensor, "b l d"]) -> Memory:
        return [(memory, memory)]

    def all_positions(self, memory: Memory) -> Float[Tensor, "b l d"]:
        return memory[0][0]


class TrunkPosterior(nn.Module):
    """A factorised trunk (or none) and a linear map of its outputs."""

    project_in: nn.Module

    def __init__(self, config: CodeModelConfig, outputs: int, trunk: bool = True) -> None:
        super().__init__()
        self.config = config
        factorised = CodeModelConfig(config.positions, config.vocabulary, False, config.transformer)
        self.trunk = CodeTrunk(factorised) if trunk else NoTrunk()
        self.project_in = nn.Linear(config.transformer.width, outputs)

    def prepare(self, memory: Float[Tensor, "b m d"]) -> Memory:
        return self.trunk.prepare(memory)

    def latents(self, memory: Memory) -> Float[Tensor, "b l n"]:
        return self.project_in(self.trunk.all_positions(memory))


class QuantizedPosterior(TrunkPosterior):
    """The trunk's outputs quantised, and the linear map that embeds the quantised values."""

    quantizer: FSQ | VQ | ResidualVQ

    def __init__(
        self, config: CodeModelConfig, kind: str, levels: tuple[int, ...] | None = None, dimensions: int = 8, trunk: bool = True
    ) -> None:
        if kind == "fsq":
            levels = levels_for(config, levels)
            dimensions = len(levels)
        super().__init__(config, dimensions, trunk)
        self.quantizer = FSQ(levels) if kind == "fsq" and levels else VQ(config.vocabulary, dimensions)
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
        """See `embed_codebook`."""
        return embed_codebook(self.quantizer, self.project_out)

    @torch.no_grad()
    def write_table(self, embedding: nn.Embedding) -> None:
        """Set the embedding of every code that the quantiser has to `embedding_table`."""
        table = self.embedding_table()
        embedding.weight[: len(table)] = table


class ResidualPosterior(QuantizedPosterior):
    """One vector for the whole chunk, an MLP of its memory tokens, quantised level by level: position i is level i."""

    quantizer: ResidualVQ

    def __init__(self, config: CodeModelConfig, tokens: int, dimensions: int) -> None:
        TrunkPosterior.__init__(self, config, dimensions, trunk=False)
        width, hidden = config.transformer.width, config.transformer.mlp_ratio * config.transformer.width
        self.project_in = nn.Sequential(nn.Flatten(), nn.Linear(tokens * width, hidden), nn.ReLU(), nn.Linear(hidden, dimensions))
        self.quantizer = ResidualVQ(config.positions, config.vocabulary, dimensions)
        self.project_out = nn.Linear(dimensions, width, bias=False)

    @property
    def bits(self) -> float:
        return self.config.bits

    def quantize(self, memory: Memory) -> tuple[Float[Tensor, "b l d"], Int[Tensor, "b l"]]:
        return self.quantize_latents(self.latents(memory))

    def quantize_latents(self, latents: Float[Tensor, "b n"]) -> tuple[Float[Tensor, "b l d"], Int[Tensor, "b l"]]:
        """As `quantize`; the first level, which no prefix lacks, has the straight-through gradient of their sum."""
        codes = self.quantizer(latents)
        values = self.quantizer.vectors[torch.arange(self.config.positions, device=codes.device), codes]
        values = torch.cat([values[:, :1] + (latents - latents.detach())[:, None], values[:, 1:]], dim=1)
        return self.project_out(values), codes


class GaussianPosterior(TrunkPosterior):
    """A Gaussian at each position, of the embedding's width; its prior is N(0, 1) (Kingma & Welling 2014). No codes."""

    def __init__(self, config: CodeModelConfig) -> None:
        super().__init__(config, 2 * config.transformer.width)

    def moments(self, memory: Memory) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l d"]]:
        """Mean and log-variance."""
        mean, log_variance = self.latents(memory).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-20, 20)

    def draw(self, memory: Memory, k: int | None) -> tuple[Float[Tensor, "b k l d"], Float[Tensor, "b k l"]]:
        """k samples with a reparametrised gradient (None: the mean, as one), and the KL to the prior of each position, nats."""
        mean, log_variance = self.moments(memory)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)[:, None]
        if k is None:
            return mean[:, None], kl
        standard = noise(lambda t: t.normal_(), (len(mean), k, *mean.shape[1:]), mean.device)
        return mean[:, None] + (0.5 * log_variance).exp()[:, None] * standard, kl.expand(-1, k, -1)


@dataclass(frozen=True)
class PosteriorConfig:
    """A posterior other than a plain code model.

    Attributes:
        kind: "lattice", a code model whose codes lie on a grid (see `LatticeHead`); or in place of a code model "fsq", "vq",
            "rvq" or "gaussian".
        levels: of a lattice or of FSQ; None chooses them from the vocabulary.
        dimensions: of a codebook's vectors; low ones keep more of them in use (Yu et al. 2022, arXiv 2110.04627).
        trunk: of "fsq" and "vq", whether learned queries attend to the memory; without, the memory tokens are quantised.
    """

    kind: Literal["lattice", "fsq", "vq", "rvq", "gaussian"] = "fsq"
    levels: tuple[int, ...] | None = None
    dimensions: int = 8
    trunk: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("lattice", "fsq", "vq", "rvq", "gaussian"):
            raise ConfigError(f"posterior kind {self.kind!r}: use 'lattice', 'fsq', 'vq', 'rvq' or 'gaussian'")
        if self.dimensions < 1:
            raise ConfigError(f"a codebook of {self.dimensions} dimensions: use at least 1")


def make_posterior(
    config: PosteriorConfig | None, codes: CodeModelConfig, tokens: int = 0
) -> CodeModel | QuantizedPosterior | GaussianPosterior:
    """The posterior that a configuration describes (None, a plain code model), over a memory of so many tokens.

    Raises:
        ConfigError: it needs another number of tokens, or no levels come near the vocabulary.
    """
    if config is None:
        return CodeModel(codes)
    if config.kind == "lattice":
        model = CodeModel(codes, LatticeHead(codes.transformer.width, codes.vocabulary, levels_for(codes, config.levels)))
        if codes.autoregressive:
            nn.init.zeros_(model.trunk.embedding.weight)  # at first no code depends on those before it
        return model
    if config.kind == "gaussian":
        return GaussianPosterior(codes)
    if config.kind == "rvq":
        if tokens < 1:
            raise ConfigError("a residual quantiser flattens the memory tokens of a chunk, and this memory has no fixed number")
        return ResidualPosterior(codes, tokens, config.dimensions)
    if not config.trunk and tokens != codes.positions:
        raise ConfigError(f"{tokens} memory tokens cannot be {codes.positions} codes: a posterior without trunk needs as many")
    return QuantizedPosterior(codes, config.kind, config.levels, config.dimensions, config.trunk)
