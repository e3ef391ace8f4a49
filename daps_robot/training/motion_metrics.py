"""How far reconstructed motion is from the original: joint angles, root position, root rotation, and the paper's PSNR.

Windows are (b h 36) as in `data/motion.py`. All but the PSNR is the same for relative windows and for these placed in the world.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from daps_robot.data.motion import JOINTS, POSITION, QUATERNION
from daps_robot.errors import DataError


def joint_error(x: Float[Tensor, "b h 36"], y: Float[Tensor, "b h 36"]) -> Float[Tensor, "b h 29"]:
    """Absolute difference of each joint's angle, radians."""
    return (x[..., JOINTS].double() - y[..., JOINTS].double()).abs()


def root_position_error(x: Float[Tensor, "b h 36"], y: Float[Tensor, "b h 36"]) -> Float[Tensor, "b h"]:
    """Distance between the roots of each frame, metres."""
    return torch.linalg.vector_norm(x[..., POSITION].double() - y[..., POSITION].double(), dim=-1)


def root_angle_error(x: Float[Tensor, "b h 36"], y: Float[Tensor, "b h 36"]) -> Float[Tensor, "b h"]:
    """Angle of the rotation between the roots of each frame, radians from 0 to π.

    Quaternions are normalised first; q and −q are one rotation. Of all formulas this one is accurate near 0, where arccos is
    not (Kahan's angle between vectors). A quaternion of zeros, which is no rotation, counts as π away.
    """
    p, q = (F.normalize(z[..., QUATERNION].double(), dim=-1) for z in (x, y))
    apart, summed = torch.linalg.vector_norm(p - q, dim=-1), torch.linalg.vector_norm(p + q, dim=-1)
    return 4 * torch.atan2(torch.minimum(apart, summed), torch.maximum(apart, summed))


class MotionMetrics:
    """Means over all frames of a split, one batch after another.

    PSNR as the paper's code has it: each feature goes from its range in the training split to [0, 1], what lies outside is
    clipped in both x and y, and −10·log10 is taken of the mean squared error over everything, dB. (The code takes the logarithm
    of every 200 random windows and averages; here it is taken once.) Features that never change do not count.
    """

    def __init__(self, low: Float[Tensor, " c"], high: Float[Tensor, " c"]) -> None:
        """`low` and `high`: the range of each feature in the training split, told as the windows to come tell it."""
        self.varying = high > low
        if not bool(self.varying.any()):
            raise DataError("no feature of the training split ever changes: there is no range to measure a PSNR by")
        self.low, self.range = low[self.varying].double(), (high - low)[self.varying].double()
        self.sums = dict.fromkeys(("frames", "joint_absolute", "joint_square", "position", "angle", "unit_square"), 0.0)

    def update(self, x: Float[Tensor, "b h 36"], y: Float[Tensor, "b h 36"]) -> None:
        """Adds windows x and their reconstructions y, in data units."""
        joints = joint_error(x, y)
        unit_x, unit_y = (((z.cpu()[..., self.varying].double() - self.low) / self.range).clamp(0, 1) for z in (x, y))
        errors = {
            "joint_absolute": joints.mean(-1),
            "joint_square": joints.square().mean(-1),
            "position": root_position_error(x, y),
            "angle": root_angle_error(x, y),
            "unit_square": (unit_x - unit_y).square().mean(-1),
        }
        for name, values in errors.items():
            self.sums[name] += float(values.sum())
        self.sums["frames"] += x.shape[0] * x.shape[1]

    def result(self) -> dict[str, float]:
        """`joint_mae`, `joint_rmse` and `root_angle_error` in radians, `root_position_error` in metres, `paper_psnr` in dB.

        Raises:
            DataError: nothing was measured.
        """
        frames = self.sums["frames"]
        if not frames:
            raise DataError("no windows of motion were measured: the split is empty")
        means = {name: total / frames for name, total in self.sums.items()}
        return {
            "joint_mae": means["joint_absolute"],
            "joint_rmse": math.sqrt(means["joint_square"]),
            "root_position_error": means["position"],
            "root_angle_error": means["angle"],
            "paper_psnr": -10 * math.log10(means["unit_square"]) if means["unit_square"] else math.inf,
        }
