"""Decoders: from embedded codes to the parameters of the likelihood, without batch statistics.

A norm over the batch would make the reward of one sample depend on the others in its batch, so images use GroupNorm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import DecoderBlock, TransformerConfig, TransformerEncoder, sinusoidal_positions
from daps_robot.models.frontends import Resample1d


@dataclass(frozen=True)
class ChunkDecoderConfig:
    """Action chunks or motion windows: from l embedded codes to h steps.

    Attributes:
        horizon: steps h.
        channels: dimension of a step, a.
        observation: dimension of the observation that conditions it, o; 0 decodes from the codes alone.
        transformer: the attention stack.
        kind: "conv", self-attention over the codes and a 1-D convolution; "queries", a query for each step that sees the
            queries before it and all codes (QueST, OAT); "sum", an MLP of the sum of the codes (residual quantisation).
    """

    horizon: int = 16
    channels: int = 7
    observation: int = 0
    transformer: TransformerConfig = field(default_factory=lambda: TransformerConfig(layers=2))
    kind: Literal["conv", "queries", "sum"] = "conv"


@dataclass(frozen=True)
class MLPDecoderConfig:
    """Small images: an MLP over all code embeddings side by side.

    Attributes:
        height, width, channels: of the image.
        hidden: widths of the hidden layers.
    """

    height: int = 28
    width: int = 28
    channels: int = 1
    hidden: tuple[int, ...] = (64, 256)


@dataclass(frozen=True)
class ConvDecoderConfig:
    """Images: codes on a square grid, residual 3×3/1×1 blocks, then transposed convolutions that double the size.

    Attributes:
        size: height and width of the image; a power of two times the side of the code grid.
        channels: of the image.
        hidden: channels at the grid's resolution, halved at every doubling.
        blocks: residual blocks.
    """

    size: int = 32
    channels: int = 3
    hidden: int = 64
    blocks: int = 2


DecoderConfig = ChunkDecoderConfig | MLPDecoderConfig | ConvDecoderConfig


class ChunkDecoder(nn.Module):
    """p(a_t … a_{t+h-1} | z), or given the observation too, which then is one more token beside the codes."""

    def __init__(self, config: ChunkDecoderConfig, positions: int, outputs: int) -> None:
        super().__init__()
        width = config.transformer.width
        self.positions = positions
        self.observe = nn.Linear(config.observation, width) if config.observation else None
        self.encoder = TransformerEncoder(config.transformer, positions + (1 if config.observation else 0))
        self.resample = Resample1d(width, width, positions, config.horizon)
        self.head = nn.Linear(width, config.channels * outputs)

    def forward(
        self, embedded: Float[Tensor, "s l d"], observation: Float[Tensor, "s o"] | None = None
    ) -> Float[Tensor, "s h p"]:
        x = self.encoder(with_observation(embedded, self.observe, observation))[:, : self.positions]
        return self.head(torch.relu(self.resample(x)))


def with_observation(
    embedded: Float[Tensor, "s l d"], observe: nn.Linear | None, observation: Float[Tensor, "s o"] | None
) -> Float[Tensor, "s m d"]:
    """The embedded codes, and one token more for the observation where a decoder is conditioned on it."""
    if observe is None:
        return embedded
    if observation is None:
        raise ConfigError("this decoder is conditioned on the observation: pass it to decode")
    return torch.cat([embedded, observe(observation)[:, None]], dim=1)


class QueryDecoder(nn.Module):
    """A sinusoidal query for each step, causal self-attention, cross-attention to all codes (arXiv 2407.15840, 2602.04215)."""

    queries: Tensor
    positions: Tensor

    def __init__(self, config: ChunkDecoderConfig, positions: int, outputs: int) -> None:
        super().__init__()
        width = config.transformer.width
        self.observe = nn.Linear(config.observation, width) if config.observation else None
        tokens = positions + (1 if config.observation else 0)
        self.register_buffer("queries", sinusoidal_positions(config.horizon, width), persistent=False)
        self.register_buffer("positions", sinusoidal_positions(tokens, width), persistent=False)
        self.blocks = nn.ModuleList(DecoderBlock(config.transformer) for _ in range(config.transformer.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.channels * outputs)

    def forward(
        self, embedded: Float[Tensor, "s l d"], observation: Float[Tensor, "s o"] | None = None
    ) -> Float[Tensor, "s h p"]:
        memory = with_observation(embedded, self.observe, observation) + self.positions
        x = self.queries.expand(len(embedded), -1, -1)
        for block in cast("list[DecoderBlock]", list(self.blocks)):
            x = block(x, block.cross.memory(memory), k=1)
        return self.head(self.norm(x))


class SumDecoder(nn.Module):
    """An MLP of the sum of the codes' vectors, as VQ-BeT decodes residual codes (Lee et al. 2024, arXiv 2403.03181)."""

    def __init__(self, config: ChunkDecoderConfig, positions: int, outputs: int) -> None:
        super().__init__()
        width = config.transformer.width
        hidden = config.transformer.mlp_ratio * width
        self.observe = nn.Linear(config.observation, width) if config.observation else None
        self.shape = (config.horizon, config.channels * outputs)
        self.mlp = nn.Sequential(
            *(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, config.horizon * config.channels * outputs),
        )

    def forward(
        self, embedded: Float[Tensor, "s l d"], observation: Float[Tensor, "s o"] | None = None
    ) -> Float[Tensor, "s h p"]:
        return self.mlp(with_observation(embedded, self.observe, observation).sum(1)).unflatten(1, self.shape)


class MLPDecoder(nn.Module):
    """A perceptron of all codes' embeddings, (s l d) to (s height width p): the decoder of small pictures."""

    def __init__(self, config: MLPDecoderConfig, positions: int, width: int, outputs: int) -> None:
        super().__init__()
        self.shape = (config.height, config.width)
        layers: list[nn.Module] = []
        size = positions * width
        for hidden in config.hidden:
            layers += [nn.Linear(size, hidden), nn.ReLU(inplace=True)]
            size = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(size, config.height * config.width * config.channels * outputs))

    def forward(self, embedded: Float[Tensor, "s l d"], observation: None = None) -> Float[Tensor, "s height width p"]:
        y = self.mlp(embedded.flatten(1))
        return rearrange(y, "s (height width p) -> s height width p", height=self.shape[0], width=self.shape[1])


class ResidualBlock(nn.Module):
    """ReLU, 3×3, norm, ReLU, 1×1, norm, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.GroupNorm(8, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvDecoder(nn.Module):
    """Codes on a square grid, (s l d), to pictures (s height width p): residual blocks, then doublings of the size."""

    def __init__(self, config: ConvDecoderConfig, positions: int, width: int, outputs: int) -> None:
        super().__init__()
        self.side = round(positions**0.5)
        doublings = (config.size // self.side).bit_length() - 1
        if self.side**2 != positions or self.side * 2**doublings != config.size or doublings < 1:
            raise ConfigError(
                f"{positions} codes do not form a square grid that doubles up to {config.size}×{config.size}: "
                f"choose a square number of positions whose root times a power of two is {config.size}"
            )
        final = config.channels * outputs
        layers: list[nn.Module] = [nn.Conv2d(width, config.hidden, 3, padding=1)]
        layers += [ResidualBlock(config.hidden) for _ in range(config.blocks)] + [nn.ReLU(inplace=True)]
        channels = config.hidden
        for _ in range(doublings - 1):
            layers += [nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1)]
            layers += [nn.GroupNorm(min(8, channels // 2), channels // 2), nn.ReLU(inplace=True)]
            channels //= 2
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels, final, 4, stride=2, padding=1))

    def forward(self, embedded: Float[Tensor, "s l d"], observation: None = None) -> Float[Tensor, "s size size p"]:
        grid = rearrange(embedded, "s (i j) d -> s d i j", i=self.side)
        return rearrange(self.layers(grid), "s p i j -> s i j p")


def make_decoder(config: DecoderConfig, positions: int, width: int, outputs: int) -> nn.Module:
    """The decoder that a configuration describes, for `positions` embedded codes of `width`."""
    if isinstance(config, ChunkDecoderConfig):
        if config.transformer.width != width:
            raise ConfigError(f"chunk decoder of width {config.transformer.width} under codes of width {width}: use one width")
        return {"conv": ChunkDecoder, "queries": QueryDecoder, "sum": SumDecoder}[config.kind](config, positions, outputs)
    if isinstance(config, MLPDecoderConfig):
        return MLPDecoder(config, positions, width, outputs)
    return ConvDecoder(config, positions, width, outputs)
