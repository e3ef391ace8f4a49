"""Front ends: from an input to memory tokens, the only part of a code model that knows what the input is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from daps_robot.errors import ConfigError
from daps_robot.models.blocks import TransformerConfig, TransformerEncoder, causal_mask
from daps_robot.models.vision import Images, PictureFrontEnd, PictureFrontEndConfig


@dataclass(frozen=True)
class ChunkFrontEndConfig:
    """Action chunks or motion windows: from h steps to m memory tokens.

    Attributes:
        horizon: steps h.
        channels: dimension of a step, a.
        tokens: memory tokens m; h must divide or be divided by it (registers: any number).
        transformer: the self-attention stack.
        kind: "conv", a 1-D convolution, then self-attention; "causal", strided convolutions and self-attention in which a token
            sees no later step (QueST, arXiv 2407.15840); "registers", learned tokens that attend to all steps and to the
            registers before them (OAT, arXiv 2602.04215).
    """

    horizon: int = 16
    channels: int = 7
    tokens: int = 8
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    kind: Literal["conv", "causal", "registers"] = "conv"

    def __post_init__(self) -> None:
        if min(self.horizon, self.channels, self.tokens) < 1:
            raise ConfigError(f"chunks of {self.horizon} steps × {self.channels} in {self.tokens} tokens: each at least 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (self.horizon, self.channels)


@dataclass(frozen=True)
class PatchFrontEndConfig:
    """Images: a linear map of each patch, then self-attention.

    Attributes:
        height, width, channels: of the image.
        patch_height, patch_width: must divide the image.
        transformer: the self-attention stack.
    """

    height: int = 28
    width: int = 28
    channels: int = 1
    patch_height: int = 14
    patch_width: int = 7
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        if self.height % self.patch_height or self.width % self.patch_width:
            raise ConfigError(
                f"patches of {self.patch_height}×{self.patch_width} do not tile an image of {self.height}×{self.width}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (self.height, self.width, self.channels)


@dataclass(frozen=True)
class ObservationFrontEndConfig:
    """Observation histories: an MLP from each observation to some tokens, beside them those of pictures, then self-attention
    over all of them.

    Attributes:
        history: observations n.
        channels: dimension of an observation, all keys side by side, o.
        tokens_per_step: memory tokens of one observation.
        hidden: width of the MLP.
        transformer: the self-attention stack.
        pictures: how pictures are seen, if they are.
    """

    history: int = 2
    channels: int = 19
    tokens_per_step: int = 4
    hidden: int = 256
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    pictures: PictureFrontEndConfig | None = None

    def __post_init__(self) -> None:
        if min(self.history, self.channels, self.tokens_per_step, self.hidden) < 1:
            raise ConfigError(
                f"{self.history} observations of {self.channels} values in {self.tokens_per_step} tokens: at least 1"
            )


@dataclass(frozen=True)
class LabelFrontEndConfig:
    """Class labels: an embedding of each.

    Attributes:
        classes: how many there are.
        tokens: memory tokens of a label.
        transformer: gives the width; a label needs no attention.
    """

    classes: int = 10
    tokens: int = 4
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        if min(self.classes, self.tokens) < 1:
            raise ConfigError(f"{self.classes} classes in {self.tokens} tokens: at least 1 of each")


FrontEndConfig = ChunkFrontEndConfig | PatchFrontEndConfig


class Resample1d(nn.Module):
    """A 1-D convolution from one length to another: strided down, transposed up, plain where they are equal."""

    def __init__(self, channels_in: int, channels_out: int, length_in: int, length_out: int) -> None:
        super().__init__()
        long, short = max(length_in, length_out), min(length_in, length_out)
        if long % short:
            raise ConfigError(
                f"cannot resample {length_in} steps to {length_out}: one must be a multiple of the other (--horizon, --positions)"
            )
        stride = long // short
        up = length_out > length_in
        # an odd stride leaves half a step: `forward` cuts what is too long
        kernel, padding = (3, 1) if stride == 1 else (2 * stride, stride // 2 if up else (stride + 1) // 2)
        conv = nn.ConvTranspose1d if up else nn.Conv1d
        self.conv = conv(channels_in, channels_out, kernel, stride=stride, padding=padding)
        self.length_out = length_out

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b u d"]:
        y = rearrange(self.conv(rearrange(x, "b t c -> b c t")), "b d u -> b u d")
        return y[:, : self.length_out]


class ChunkFrontEnd(nn.Module):
    """Memory tokens (b m d) of an action chunk (b h a): a convolution, then self-attention."""

    def __init__(self, config: ChunkFrontEndConfig) -> None:
        super().__init__()
        self.embed = Resample1d(config.channels, config.transformer.width, config.horizon, config.tokens)
        self.encoder = TransformerEncoder(config.transformer, config.tokens)

    def forward(self, x: Float[Tensor, "b h a"]) -> Float[Tensor, "b m d"]:
        return self.encoder(self.embed(x))


class CausalFrontEnd(nn.Module):
    """QueST's encoder (Mete et al. 2024, arXiv 2407.15840): token j sees the steps up to the end of its own h/m, and no later."""

    def __init__(self, config: ChunkFrontEndConfig) -> None:
        super().__init__()
        factor, rest = divmod(config.horizon, config.tokens)
        if rest:
            raise ConfigError(
                f"{config.horizon} steps do not fall into {config.tokens} equal parts: choose --positions that divide --horizon"
            )
        width = config.transformer.width
        self.embed = nn.Linear(config.channels, width)
        strides = []
        while factor > 1:
            strides.append(2 if factor % 2 == 0 else factor)
            factor //= strides[-1]
        # padded on the left alone
        layers = [(nn.ConstantPad1d((s, 0), 0.0), nn.Conv1d(width, width, 2 * s, stride=s), nn.ReLU()) for s in strides]
        self.convolutions = nn.Sequential(*(layer for three in layers for layer in three))
        mask = causal_mask(config.tokens, config.tokens, like=torch.zeros(()))
        self.encoder = TransformerEncoder(config.transformer, config.tokens, mask)

    def forward(self, x: Float[Tensor, "b h a"]) -> Float[Tensor, "b m d"]:
        y = self.convolutions(rearrange(self.embed(x), "b h d -> b d h"))
        return self.encoder(rearrange(y, "b d m -> b m d"))


class RegisterFrontEnd(nn.Module):
    """OAT's encoder (Liu et al. 2026, arXiv 2602.04215): steps see steps; register i sees all steps and registers ≤ i."""

    def __init__(self, config: ChunkFrontEndConfig) -> None:
        super().__init__()
        steps, registers = config.horizon, config.tokens
        self.embed = nn.Linear(config.channels, config.transformer.width)
        self.registers = nn.Parameter(torch.randn(registers, config.transformer.width))
        mask = causal_mask(steps + registers, steps + registers, like=torch.zeros(()))
        mask[:, :steps] = 0
        self.encoder = TransformerEncoder(config.transformer, steps + registers, mask)

    def forward(self, x: Float[Tensor, "b h a"]) -> Float[Tensor, "b m d"]:
        registers = self.registers.expand(len(x), -1, -1)
        return self.encoder(torch.cat([self.embed(x), registers], dim=1))[:, -registers.shape[1] :]


class PatchFrontEnd(nn.Module):
    """Memory tokens (b m d) of a picture (b height width c): a token a patch, then self-attention."""

    def __init__(self, config: PatchFrontEndConfig) -> None:
        super().__init__()
        self.patch = (config.patch_height, config.patch_width)
        tokens = (config.height // config.patch_height) * (config.width // config.patch_width)
        self.embed = nn.Linear(config.patch_height * config.patch_width * config.channels, config.transformer.width)
        self.encoder = TransformerEncoder(config.transformer, tokens)

    def forward(self, x: Float[Tensor, "b height width c"]) -> Float[Tensor, "b m d"]:
        ph, pw = self.patch
        patches = rearrange(x, "b (i ph) (j pw) c -> b (i j) (ph pw c)", ph=ph, pw=pw)
        return self.encoder(self.embed(patches))


class ObservationFrontEnd(nn.Module):
    """Memory tokens (b m d) of the last n observations (b n o), and of what cameras saw."""

    def __init__(self, config: ObservationFrontEndConfig) -> None:
        super().__init__()
        self.tokens_per_step = config.tokens_per_step
        self.embed = nn.Sequential(
            nn.Linear(config.channels, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.tokens_per_step * config.transformer.width),
        )
        tokens, pictures = config.tokens_per_step, config.pictures
        if pictures is not None:
            tokens += pictures.cameras * pictures.tokens
        self.pictures = None if pictures is None else PictureFrontEnd(pictures, config.transformer.width)
        self.encoder = TransformerEncoder(config.transformer, config.history * tokens)

    def forward(self, x: Float[Tensor, "b n o"], images: Images = None) -> Float[Tensor, "b m d"]:
        """Raises ConfigError where pictures are missing."""
        tokens = rearrange(self.embed(x), "b n (i d) -> b (n i) d", i=self.tokens_per_step)
        if self.pictures is None:
            return self.encoder(tokens)
        if images is None:
            raise ConfigError("this policy sees pictures: hand them on beside the observations")
        return self.encoder(torch.cat([tokens, self.pictures(images)], dim=1))


class LabelFrontEnd(nn.Module):
    """Memory tokens (b m d) of class labels (b)."""

    def __init__(self, config: LabelFrontEndConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.embed = nn.Embedding(config.classes, config.tokens * config.transformer.width)

    def forward(self, labels: Int[Tensor, " b"]) -> Float[Tensor, "b m d"]:
        return rearrange(self.embed(labels), "b (m d) -> b m d", m=self.tokens)


def make_front_end(config: FrontEndConfig | ObservationFrontEndConfig) -> nn.Module:
    """The front end that a configuration describes."""
    if isinstance(config, ChunkFrontEndConfig):
        return {"conv": ChunkFrontEnd, "causal": CausalFrontEnd, "registers": RegisterFrontEnd}[config.kind](config)
    if isinstance(config, PatchFrontEndConfig):
        return PatchFrontEnd(config)
    return ObservationFrontEnd(config)
