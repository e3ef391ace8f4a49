"""A 1-D U-Net over the steps of a chunk, modulated by a condition (FiLM): the network of Diffusion Policy's CNN variant."""

from __future__ import annotations

from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from daps_robot.errors import ConfigError

GROUPS = 8
KERNEL = 5


class ConvBlock(nn.Sequential):
    """Convolution over the steps, GroupNorm, Mish."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        conv = nn.Conv1d(channels_in, channels_out, KERNEL, padding=KERNEL // 2)
        super().__init__(conv, nn.GroupNorm(GROUPS, channels_out), nn.Mish())


class FiLMBlock(nn.Module):
    """Two convolutions with a residual; the condition scales and shifts the channels between them (Perez et al. 2018)."""

    def __init__(self, channels_in: int, channels_out: int, condition: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels_in, channels_out)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * channels_out))
        self.second = ConvBlock(channels_out, channels_out)
        self.skip = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b e h"]:
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


class UNet(nn.Module):
    """Noisy chunk and condition to an estimate of the same shape; each level has half the steps of the one above."""

    def __init__(self, horizon: int, channels: int, widths: tuple[int, ...], condition: int) -> None:
        """Raises ConfigError where the horizon cannot be halved so often, or a width not be normed in groups."""
        super().__init__()
        halvings = len(widths) - 1
        if not widths or horizon % 2**halvings:
            raise ConfigError(f"a chunk of {horizon} steps cannot be halved {halvings} times: change --horizon or --widths")
        if any(width % GROUPS or not 0 < width <= 4096 for width in widths):
            raise ConfigError(f"widths {widths} must be multiples of {GROUPS}, up to 4096")
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.halvings, self.doublings = nn.ModuleList(), nn.ModuleList()
        for above, width in pairwise((channels, *widths)):
            self.down.append(nn.ModuleList([FiLMBlock(above, width, condition), FiLMBlock(width, width, condition)]))
        for above, width in pairwise(widths):
            self.halvings.append(nn.Conv1d(above, above, 3, stride=2, padding=1))
            self.doublings.append(nn.ConvTranspose1d(above, above, 4, stride=2, padding=1))
            self.up.append(nn.ModuleList([FiLMBlock(2 * width, above, condition), FiLMBlock(above, above, condition)]))
        self.middle = nn.ModuleList(FiLMBlock(widths[-1], widths[-1], condition) for _ in range(2))
        self.head = nn.Sequential(ConvBlock(2 * widths[0], widths[0]), nn.Conv1d(widths[0], channels, 1))

    def forward(self, chunk: Float[Tensor, "b h a"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b h a"]:
        """An estimate from a noisy chunk; the horizon is that of the constructor."""
        x = rearrange(chunk, "b h a -> b a h")
        levels = []
        for i, blocks in enumerate(self.down):
            x = self.halvings[i - 1](x) if i else x
            x = _through(blocks, x, condition)
            levels.append(x)
        x = _through(self.middle, x, condition)
        for blocks, double in zip(reversed(self.up), reversed(self.doublings), strict=True):
            x = double(_through(blocks, torch.cat([x, levels.pop()], dim=1), condition))
        return rearrange(self.head(torch.cat([x, levels.pop()], dim=1)), "b a h -> b h a")


def _through(blocks: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    for block in blocks.children():
        x = block(x, condition)
    return x
