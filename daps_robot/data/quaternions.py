"""Where observations hold quaternions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from daps_robot.data.demos import DemoSet
from daps_robot.errors import ConfigError, DataError

ObservedRotation = Literal["as-recorded", "6d"]
"""What networks see of quaternions: these, or 6-D rotations (see `rotations.expand_quaternions`)."""
_UNIT = 0.01
"""How far from 1 the length of a key's own quaternion may be."""
_SURELY_UNIT = 1e-4


def observed_quaternions(demos: DemoSet, rotation: ObservedRotation) -> tuple[int, ...]:
    """What `quaternion_columns` finds, if networks are to see 6-D rotations; says which quaternions these are."""
    if rotation == "as-recorded":
        return ()
    starts = quaternion_columns(demos)
    print(f"seen as 6-D rotations: {', '.join(quaternion_names(demos, starts))}", flush=True)
    return starts


def quaternion_columns(demos: DemoSet) -> tuple[int, ...]:
    """Where, in the observations side by side, quaternions begin, in order.

    Keys that end in _quat are quaternions. Inside of other keys, such as robomimic's `object`, four neighbouring columns are one
    that are of unit length at every step of all demonstrations, and of which three change at least: sines and cosines beside
    zeros, or a gripper that is 1 or -1 beside them, are of unit length too, and would lose their sign.

    Raises:
        ConfigError: there is none, or a key that ends in _quat has other than four columns.
        DataError: what stands in such a key are no unit quaternions.
    """
    starts, column = [], 0
    for key, size in demos.obs_dims.items():
        if key.endswith("_quat"):
            _check_named(demos, key, size)
            starts.append(column)
        else:
            starts += [column + start for start in unit_columns(demos, key)]
        column += size
    if not starts:
        keys = ", ".join(demos.obs_keys)
        raise ConfigError(f"--obs-rotation 6d is for quaternions, of which those read from {demos.path} hold none: {keys}")
    return tuple(starts)


def unit_columns(demos: DemoSet, key: str) -> list[int]:
    """Where, in an observation key, four columns begin that `quaternion_columns` takes for a quaternion; none overlap."""
    if demos.obs_dims[key] < 4:
        return []
    values = np.concatenate([demo.obs[key] for demo in demos.demos]).astype(np.float64)
    unit = (abs(sliding_window_view(values**2, 4, axis=1).sum(-1) - 1) < 2 * _SURELY_UNIT).all(0)
    changing = sliding_window_view(np.ptp(values, axis=0) > 0, 4).sum(-1)
    starts: list[int] = []
    for start in np.flatnonzero(unit & (changing >= 3)):
        if not starts or start >= starts[-1] + 4:
            starts.append(int(start))
    return starts


def quaternion_names(demos: DemoSet, starts: tuple[int, ...]) -> list[str]:
    """What to call the quaternions that begin at these columns: `robot0_eef_quat`, `object[3:7]`."""
    names, column = [], 0
    for key, size in demos.obs_dims.items():
        own = [start - column for start in starts if column <= start < column + size]
        names += [key if size == 4 else f"{key}[{start}:{start + 4}]" for start in own]
        column += size
    return names


def _check_named(demos: DemoSet, key: str, size: int) -> None:
    if size != 4:
        raise ConfigError(f"{demos.path}: '{key}' has {size} columns, where --obs-rotation 6d needs a quaternion's four")
    for demo in demos.demos:
        off = abs(np.linalg.norm(demo.obs[key], axis=1) - 1) > _UNIT
        if off.any():
            raise DataError(f"{demos.path}: {demo.name}: '{key}' is no unit quaternion at step {int(np.argmax(off))}.")
