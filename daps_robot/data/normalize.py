"""Invertible scalers that travel with the model: normalised = (x − shift) / scale, dimension by dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from daps_robot.errors import DataError

BINARY_FRACTION = 0.99
"""A dimension is near-binary when this share of its values lies within 2% of its range from one of the two ends."""


class Scaler(nn.Module):
    """An invertible affine map of the last axis; its numbers are part of the model's checkpoint.

    Constant dimensions normalise to 0, with the smallest scale of the continuous others (1 where there is none).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Float[Tensor, " c"], scale: Float[Tensor, " c"]) -> None:
        super().__init__()
        if not bool((scale > 0).all() and torch.isfinite(shift).all() and torch.isfinite(scale).all()):
            raise DataError("a scaler needs finite shifts and positive finite scales")
        self.register_buffer("shift", shift.float())
        self.register_buffer("scale", scale.float())

    @classmethod
    def identity(cls, dimensions: int) -> Scaler:
        return cls(torch.zeros(dimensions), torch.ones(dimensions))

    @classmethod
    def fit(cls, values: Float[np.ndarray, "n c"], binary: tuple[int, ...] = (), shared: bool | Sequence[str] = False) -> Scaler:
        """Mean 0 and standard deviation 1 on `values`; the `binary` dimensions instead go from {low, high} to {0, 1}.

        `shared` gives all other dimensions one scale, the root mean square of their standard deviations: for actions in
        common units, where a dimension that holds little but noise should not weigh as much as one that moves the robot.
        As a sequence it names the unit of each dimension, and those of one unit share a scale.
        """
        values = np.asarray(values, dtype=np.float64)
        shift, scale = values.mean(0), values.std(0)
        low, high = values.min(0), values.max(0)
        constant = _constant(low, high)
        scale[constant] = 1.0
        shift[constant] = low[constant]
        moving = ~constant
        moving[list(binary)] = False
        if moving.any():
            units = np.array([""] * len(scale) if isinstance(shared, bool) else shared)
            for unit in set(units[moving]) if shared else ():
                alike = moving & (units == unit)
                scale[alike] = np.sqrt(np.mean(np.square(scale[alike])))
            scale[constant] = scale[moving].min()  # so that a decoder's error there is small in the data's units too
        for i in binary:
            shift[i], scale[i] = low[i], high[i] - low[i]
        return cls(torch.from_numpy(shift), torch.from_numpy(scale))

    @classmethod
    def fit_range(cls, values: Float[np.ndarray, "n c"]) -> Scaler:
        """The smallest and the largest of `values` become −1 and 1."""
        values = np.asarray(values, dtype=np.float64)
        low, high = values.min(0), values.max(0)
        scale, constant = (high - low) / 2, _constant(low, high)
        scale[constant] = scale[~constant].min() if not constant.all() else 1.0
        return cls(torch.from_numpy((low + high) / 2), torch.from_numpy(scale))

    def normalize(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        return (x - self.shift) / self.scale

    def denormalize(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        return x * self.scale + self.shift


def _constant(low: Float[np.ndarray, " c"], high: Float[np.ndarray, " c"]) -> Bool[np.ndarray, " c"]:
    return high - low <= 1e-6 * np.maximum(1.0, np.abs(high))


def near_binary(values: Float[np.ndarray, "n c"]) -> tuple[int, ...]:
    """The dimensions that take, up to rare exceptions, only two values: a gripper's open and close.

    Both ends must occur, and the dimension must not be constant.
    """
    low, high = values.min(0), values.max(0)
    span = high - low
    at_low = values - low <= 0.02 * span
    at_high = high - values <= 0.02 * span
    share = (at_low | at_high).mean(0)
    rarer = np.minimum(at_low.mean(0), at_high.mean(0))
    found = (span > 1e-6) & (share >= BINARY_FRACTION) & (rarer >= 1 - BINARY_FRACTION)
    return tuple(int(i) for i in np.flatnonzero(found))
