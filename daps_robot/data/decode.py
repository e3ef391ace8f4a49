"""One encoded picture from anywhere, decoded to (size size 3) uint8. Nothing that it claims of itself is believed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from daps_robot.data.hdf5 import short
from daps_robot.errors import ConfigError, DataError

MAX_BYTES = 256 * 2**20
"""Of an encoded picture."""

MAX_PIXELS = 89_478_485
"""Of a decoded picture: Pillow's own limit, of which it only warns."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class PictureDecoder:
    """How a picture becomes (size size 3) uint8: its shorter side is resized to `size`, and the middle of the longer one kept.

    Resizing is bicubic and antialiased; a picture whose shorter side is `size` keeps its pixels. JPEGs of four times the size
    and more are decoded at a fraction of their size, though never less than twice `size`. Greyscale becomes three equal channels.
    CMYK (a few of ImageNet's JPEGs) is converted by Pillow's formula. Colour profiles and EXIF orientation are not applied.

    Attributes:
        size: height and width of what comes out, in pixels.
        alpha: what lies below transparent pixels; None refuses pictures that have such.
        enlarge: take pictures smaller than `size` too.
    """

    size: int
    alpha: Literal["white", "black"] | None = None
    enlarge: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ConfigError(f"a picture size of {self.size} pixels: it must be from 1 to 4096")

    def __call__(self, data: bytes) -> UInt8[np.ndarray, "size size 3"]:
        """The picture's pixels.

        Raises:
            DataError: it cannot be decoded or used; the message goes on after the picture's name, which the caller knows.
        """
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                self._check(image, data)
                image.draft(None, (2 * self.size, 2 * self.size))
                return self._square(self._colour(image))
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError("is not a JPEG, PNG, WebP or BMP picture, or is cut off; copy it again or leave it out") from error
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            raise DataError(f"cannot be decoded ({short(error)}); copy it again or leave it out") from error

    def _check(self, image: Image.Image, data: bytes) -> None:
        """Refuses, before the pixels are decoded, what would take too much memory or lose something."""
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(f"is {width}×{height} pixels, more than {MAX_PIXELS:,}; make it smaller or leave it out")
        if min(width, height) < self.size and not self.enlarge:
            raise DataError(f"is {width}×{height} pixels, smaller than {self.size}; leave it out, or give --enlarge")
        if image.mode[0] in "IF" or (data.startswith(_PNG) and data[24] == 16):  # Pillow would cut 16-bit colour off silently
            raise DataError(f"has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's MPO is a JPEG with previews behind it
            raise DataError("is animated; save one picture of it")

    def _colour(self, image: Image.Image) -> Image.Image:
        """In RGB, laid on the background where there is something to see through."""
        if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
            return image.convert("RGB")
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] == 255:
            return layer.convert("RGB")
        if self.alpha is None:
            raise DataError("is transparent in places; say what lies below it with --alpha white or black")
        return Image.alpha_composite(Image.new("RGBA", layer.size, self.alpha), layer).convert("RGB")

    def _square(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """The middle square; cropping while resizing takes no memory for a long picture's ends."""
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        square = (left, top, left + side, top + side)
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=square))
