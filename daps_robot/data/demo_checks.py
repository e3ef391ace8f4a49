"""Checks and choices that the readers of demonstrations share, whatever the format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from daps_robot.errors import DataError

MAX_BYTES = 16 * 2**30
_MAX_COMPRESSION = 200
_UNSUSPICIOUS_BYTES = 64 * 2**20


def asked_keys(path: Path, wanted: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    """Observation keys that were asked for: at least one, none twice."""
    if not wanted:
        raise DataError(f"{path}: no observation key was asked for; the file has {', '.join(there)}.")
    if len(set(wanted)) < len(wanted):
        raise DataError(f"{path}: an observation key was asked for twice: {', '.join(wanted)}.")
    return tuple(wanted)


def check_bytes(path: Path, declared: int, stored: int) -> None:
    """Refuses `declared` bytes of values from a file of `stored` bytes that is damaged, or made to exhaust memory."""
    if declared > MAX_BYTES:
        raise DataError(
            f"{path}: declares {declared / 2**30:.1f} GiB of actions and observations, more than "
            f"{MAX_BYTES // 2**30} GiB; read fewer obs_keys, or split the file."
        )
    if declared > max(_UNSUSPICIOUS_BYTES, _MAX_COMPRESSION * stored):
        raise DataError(
            f"{path}: declares {declared / 2**20:.0f} MiB in a file of {stored / 2**20:.2f} MiB; "
            "it is damaged or made to exhaust memory."
        )


def check_finite(what: str, values: Float[np.ndarray, "t d"]) -> None:
    """Refuses NaN and infinity; `what` names file, demonstration and key."""
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(f"{what} is NaN or infinite at step {int(np.argmin(finite))}; remove or repair this demonstration.")


def rounded(what: str, stored: Shaped[np.ndarray, "t d"], dtype: type) -> Float[np.ndarray, "t d"]:
    """Numbers as `dtype`; those that it cannot hold are refused, as are columns whose variation would be lost in rounding.

    Infinity and NaN pass: `check_finite` refuses them where that is wanted.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values: np.ndarray = stored.astype(dtype)
        if stored.dtype == values.dtype or not len(stored):
            return values
        wide = stored.astype(np.float64)
        if (beyond := np.isinf(values) & np.isfinite(wide)).any():
            step, column = np.argwhere(beyond)[0]
            raise DataError(f"{what} is {wide[step, column]:.3g} at step {step}, column {column}: too large for {values.dtype}.")
        lost, span = np.abs(values - wide).max(0), wide.max(0) - wide.min(0)
    if (flat := np.flatnonzero((span > 0) & (lost > 0.01 * span) & (lost > 1e-30))).size:
        column = flat[0]
        raise DataError(
            f"{what}: column {column} varies by {span[column]:.3g} around {wide[0, column]:.6g}, which {values.dtype} rounds "
            f"by up to {lost[column]:.3g}: take an offset off it, or choose other keys (--obs-keys)."
        )
    return values


def split_names(
    path: Path, names: Sequence[str], train: tuple[str, ...] | None, valid: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the two splits; one that is not given is made up of the other's rest, of none every tenth is valid."""
    if train is None and valid is None:
        valid = tuple(names[9::10]) if len(names) >= 10 else tuple(names[1:][-1:])
    if valid is None:
        valid = tuple(name for name in names if name not in set(train or ()))
    if train is None:
        train = tuple(name for name in names if name not in set(valid))
    if both := sorted(set(train) & set(valid), key=natural):
        raise DataError(f"{path}: {both[0]} is in both mask/train and mask/valid; a demonstration may be in one split only.")
    if not train:
        raise DataError(f"{path}: mask/train names no demonstration, so there is nothing to train on.")
    return train, valid


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts demo_2 before demo_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
