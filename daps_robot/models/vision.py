"""Pictures of cameras to memory tokens: convolutions, then two linear layers.

    (b n c height width 3) ──crop──► convolutions, of each camera its own ──flatten──► hidden ──► tokens of a picture

Crops are random in training and of the middle when acting, as robomimic has them (Mandlekar et al. 2021, arXiv 2108.03298). Its
spatial softmax did worse here: docs/policies.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from daps_robot import parallel
from daps_robot.data.chunks import ChunkDataset
from daps_robot.errors import ConfigError

Images = UInt8[Tensor, "b n c height width 3"] | None
"""What cameras saw beside a batch of observation histories, for a policy that has some."""


@dataclass(frozen=True)
class PictureFrontEndConfig:
    """Pictures of cameras.

    Attributes:
        cameras: how many, c.
        height, width: of a picture, in pixels.
        margin: pixels that a crop lacks in height and in width.
        channels: of the convolutions, each of which halves the picture.
        kept: channels of the last map that are read off, pixel by pixel.
        hidden: width between that and the tokens.
        tokens: memory tokens of a picture.
    """

    cameras: int = 2
    height: int = 84
    width: int = 84
    margin: int = 8
    channels: tuple[int, ...] = (32, 64, 64)
    kept: int = 16
    hidden: int = 64
    tokens: int = 2

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 8:
            raise ConfigError(f"{len(self.channels)} convolutions of pictures: from 1 to 8")
        for name in ("cameras", "channels", "kept", "hidden", "tokens"):
            value = getattr(self, name)
            if not all(1 <= number <= 1024 for number in (value if isinstance(value, tuple) else (value,))):
                raise ConfigError(f"{name} {value} of pictures must be from 1 to 1024")
        least = 2 ** (len(self.channels) + 1) + self.margin
        if self.margin < 0 or not least <= min(self.height, self.width) <= max(self.height, self.width) <= 4096:
            raise ConfigError(
                f"pictures of {self.height} × {self.width}, less {self.margin}: these convolutions take {least} to 4096 pixels"
            )


def picture_size(config: PictureFrontEndConfig | None) -> tuple[int, int] | None:
    """Height and width of the pictures that are seen, if any are."""
    return None if config is None else (config.height, config.width)


def check_cameras_seen(cameras: tuple[str, ...], config: PictureFrontEndConfig | None) -> None:
    """Raises ConfigError where a policy's cameras are not those that its front end has a part for."""
    seen = 0 if config is None else config.cameras
    if len(cameras) != seen or len(set(cameras)) < seen:
        raise ConfigError(f"a front end for {seen} cameras does not see {', '.join(cameras) or 'none'}")


def front_end_for(data: ChunkDataset) -> PictureFrontEndConfig | None:
    """How the pictures of windows are seen, if they have any."""
    if not data.cameras:
        return None
    _, height, width, _ = data.pictures[0][0].shape
    return PictureFrontEndConfig(len(data.cameras), height, width)


class PictureFrontEnd(nn.Module):
    """Memory tokens of pictures, first all of a step, then those of the next."""

    def __init__(self, config: PictureFrontEndConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(self._encoder(config, width) for _ in range(config.cameras))

    @staticmethod
    def _encoder(config: PictureFrontEndConfig, width: int) -> nn.Module:
        """From the pixels of crops to the tokens of each, side by side."""
        layers: list[nn.Module] = []
        size, before = [config.height - config.margin, config.width - config.margin], 3
        for i, channels in enumerate(config.channels):
            kernel = 5 if i == 0 else 3
            layers += [nn.Conv2d(before, channels, kernel, stride=2, padding=kernel // 2), nn.ReLU(inplace=True)]
            size, before = [(pixels + 1) // 2 for pixels in size], channels
        layers += [nn.Conv2d(before, config.kept, 1), nn.ReLU(inplace=True), nn.Flatten()]
        layers += [nn.Linear(config.kept * size[0] * size[1], config.hidden), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Linear(config.hidden, config.tokens * width))

    def forward(self, images: UInt8[Tensor, "b n c height width 3"]) -> Float[Tensor, "b m d"]:
        """Raises ConfigError for pictures of another number of cameras, or of another size."""
        config = self.config
        expected = (config.cameras, config.height, config.width, 3)
        if tuple(images.shape[2:]) != expected:
            raise ConfigError(
                f"pictures of shape {tuple(images.shape[2:])} (cameras, height, width, 3), where {expected} is seen"
            )
        corners = self.corners(len(images), images.device)
        tokens = []
        for camera, encoder in enumerate(self.encoders):
            pixels = self.crop(images[:, :, camera], corners[:, camera])
            seen = encoder(rearrange(pixels, "b n h w three -> (b n) three h w").float() / 127.5 - 1)
            tokens.append(rearrange(seen, "(b n) (i d) -> b n i d", n=images.shape[1], i=config.tokens))
        return torch.cat(tokens, dim=2).flatten(1, 2)

    def corners(self, b: int, device: torch.device) -> Int[Tensor, "b c 2"]:
        """Upper left corners of the crops: in training random, one for all steps of a history; when acting the middle."""
        config = self.config
        if not self.training:
            return torch.full((b, config.cameras, 2), config.margin // 2, device=device)
        return (parallel.uniform(b, config.cameras, 2, device=device) * (config.margin + 1)).long()

    def crop(self, pictures: UInt8[Tensor, "b n height width 3"], corners: Int[Tensor, "b 2"]) -> UInt8[Tensor, "b n y x 3"]:
        height, width = self.config.height - self.config.margin, self.config.width - self.config.margin
        cut = [each[:, y : y + height, x : x + width] for each, (y, x) in zip(pictures, corners.tolist(), strict=True)]
        return torch.stack(cut)
