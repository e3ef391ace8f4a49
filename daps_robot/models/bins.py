"""Uniform bins for every number of a chunk: the discretisation of RT-1 (arXiv 2212.06817) and OpenVLA (arXiv 2406.09246)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from daps_robot.data.normalize import Scaler
from daps_robot.errors import ConfigError
from daps_robot.models.code_model import CodeModelConfig
from daps_robot.models.table import STILL, TableTokenizer, check_chunk

MAX_BINS = 2**24
"""More, and float32 could not tell the bins of a number apart."""


@dataclass(frozen=True)
class BinsTokenizerConfig:
    """Bins of a chunk.

    Attributes:
        horizon: steps h.
        channels: dimension of a step, a.
        bins: of each number, v.
        knots: numbers that are kept of each dimension; h keeps every step.
    """

    horizon: int = 16
    channels: int = 7
    bins: int = 256
    knots: int = 16

    def __post_init__(self) -> None:
        check_chunk(self.horizon, self.channels)
        if not 2 <= self.bins <= MAX_BINS or not 1 <= self.knots <= self.horizon:
            raise ConfigError(
                f"{self.bins!s:.20} bins at {self.knots} knots of {self.horizon} steps × {self.channels}: "
                f"use 2 to {MAX_BINS} bins, at 1 to as many knots as there are steps"
            )

    @property
    def codes(self) -> CodeModelConfig:
        """Positions and vocabulary."""
        return CodeModelConfig(self.knots * self.channels, self.bins)

    @property
    def ordered(self) -> bool:
        """A prefix of the codes is a prefix in time: it does not decode to a chunk."""
        return False


class BinsTokenizer(TableTokenizer):
    """Each number to the bin that it falls in, between the 1st and the 99th percentile, and back to the bin's centre.

    With fewer knots than steps, a dimension is the polyline through its knots, evenly spaced in time, that is nearest to it
    (least squares), and the knots are what is binned: the way to spend few bits, since bins of every step take h·a·log2(v).
    """

    kind = "bins"
    config_type = BinsTokenizerConfig
    config: BinsTokenizerConfig
    polyline: Tensor
    nearest: Tensor

    def __init__(self, config: BinsTokenizerConfig, scaler: Scaler | None = None) -> None:
        super().__init__(config, scaler)
        polyline = hat_functions(config.horizon, config.knots)
        self.register_buffer("polyline", polyline.float(), persistent=False)
        self.register_buffer("nearest", torch.linalg.pinv(polyline).float(), persistent=False)

    @property
    def bits(self) -> float:
        return self.config.codes.bits

    def encode_chunks(self, x: Float[Tensor, "b h a"]) -> Int[Tensor, "b l"]:
        bins = (self._places(x) * self.config.bins).floor().long()
        return bins.clamp(0, self.config.bins - 1).flatten(1)

    def decode_chunks(self, codes: Int[Tensor, "s l"]) -> Float[Tensor, "s h a"]:
        places = (codes.unflatten(1, (self.config.knots, -1)) + 0.5) / self.config.bins
        return self.polyline @ (self.low + places * self._width)

    def facts(self, x: Float[Tensor, "b h a"]) -> dict[str, Float[Tensor, " b"]]:
        """`clipped`: share of the numbers that lie outside the bins, and went to the outermost ones."""
        places = self._places(x)
        return {"clipped": ((places < 0) | (places > 1)).float().mean((1, 2))}

    @property
    def _width(self) -> Tensor:
        return self.high - self.low

    def _places(self, x: Float[Tensor, "b h a"]) -> Float[Tensor, "b j a"]:
        """Where in the range the knots lie: 0 at its low end, 1 at its high one; .5 where a dimension does not move."""
        knots = self.nearest @ x
        return torch.where(self._width > STILL, (knots - self.low) / self.span, 0.5)


def hat_functions(steps: int, knots: int) -> Float[Tensor, "h j"]:
    """The polyline through knots at evenly spaced times from the first step to the last, as a matrix; one knot is constant."""
    if knots == 1:
        return torch.ones(steps, 1, dtype=torch.float64)
    at = torch.linspace(0, knots - 1, steps, dtype=torch.float64)
    return (1 - (at[:, None] - torch.arange(knots)).abs()).clamp(min=0)
