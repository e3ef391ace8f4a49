"""Rotations as quaternions, as axis-angle vectors and in six dimensions, and between them.

    quaternion   (… 4)  x y z w, of unit length; q and −q are the same rotation
    axis-angle   (… 3)  radians, along the axis; unique below π
    6-D          (… 6)  the first two columns of the rotation matrix, one after the other (Zhou et al. 2019, arXiv 1812.07035)

The 6-D form is the only one of the three that is unique and without jumps, which is what a network should see. A quaternion on a
half of its sphere (w ≥ 0) is not: a gripper that points down has w near 0, where the half changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from daps_robot.errors import ConfigError


def consistent_signs(quaternions: Float[Tensor, "t 4"]) -> Float[Tensor, "t 4"]:
    """The same rotations with signs such that none is more than a quarter turn of the sphere from the one before it."""
    flips = (quaternions[1:] * quaternions[:-1]).sum(-1) < 0
    signs = torch.where(flips, -1.0, 1.0).to(quaternions).cumprod(0)
    return torch.cat([quaternions[:1], quaternions[1:] * signs[:, None]])


def quaternion_from_axis_angle(vectors: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4"]:
    """Of angles up to π, with w ≥ 0."""
    angle = vectors.norm(dim=-1, keepdim=True)
    return torch.cat([0.5 * torch.sinc(angle / (2 * torch.pi)) * vectors, torch.cos(angle / 2)], -1)


def axis_angle_from_quaternion(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3"]:
    """By the shorter way round, an angle of at most π."""
    q = torch.where(quaternions[..., 3:] < 0, -quaternions, quaternions)
    sine = q[..., :3].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, q[..., 3:])
    return q[..., :3] * torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), 2.0)


def rotation_6d_from_quaternion(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 6"]:
    """The same for q and −q, and for any length but zero."""
    x, y, z, w = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w))
    second = (2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w))
    return torch.stack([*first, *second], -1)


def quaternion_from_rotation_6d(columns: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 4"]:
    """The rotation of two columns, made orthonormal by Gram and Schmidt where a network did not keep them so; w ≥ 0."""
    a = torch.nn.functional.normalize(columns[..., :3], dim=-1)
    second = columns[..., 3:]
    b = torch.nn.functional.normalize(second - (a * second).sum(-1, keepdim=True) * a, dim=-1)
    m = torch.stack([a, b, torch.linalg.cross(a, b)], -1)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in m.unbind(-2))
    candidates = torch.stack(  # q times four times its x, y, z, w: the largest is the most exact
        [
            torch.stack([1 + xx - yy - zz, xy + yx, xz + zx, zy - yz], -1),
            torch.stack([xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx], -1),
            torch.stack([xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy], -1),
            torch.stack([zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz], -1),
        ],
        -2,
    )
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*columns.shape[:-1], 1, 4)
    q = torch.nn.functional.normalize(candidates.gather(-2, best)[..., 0, :], dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def check_quaternions(starts: Sequence[int], columns: int) -> None:
    """Raises ConfigError where quaternions that begin at these columns, in order, do not lie side by side in so many."""
    ends = [0, *(start + 4 for start in starts)]
    if any(start < end for start, end in zip(starts, ends, strict=False)) or ends[-1] > columns:
        raise ConfigError(f"quaternions at columns {list(starts)} of {columns}: four columns each, in order, without overlap")


def expand_quaternions(values: Float[Tensor, "*b o"], starts: Sequence[int]) -> Float[Tensor, "*b p"]:
    """Columns of which some are quaternions, each four beginning at one of `starts` (in order), with these as 6-D rotations."""
    parts, end = [], 0
    for start in starts:
        parts += [values[..., end:start], rotation_6d_from_quaternion(values[..., start : start + 4])]
        end = start + 4
    return torch.cat([*parts, values[..., end:]], -1) if parts else values
