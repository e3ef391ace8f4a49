"""What cameras saw of demonstrations, in robomimic's layout: `obs/<camera>_image`, (t height width 3) uint8.

RGB, the first row at the top. No torch here: simulator workers need the names too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from daps_robot.data.hdf5 import listing, short
from daps_robot.errors import DataError

_SUFFIX = "_image"

MAX_SIDE = 4096
"""Height and width of a picture, in pixels."""

OBJECT_KEY = "object"
"""The observation that a policy with cameras is not shown by default: where things are, which it is to see for itself."""


HAND = "robot0_eef_pos"
"""Where the hand is, in metres: what tells a recorded state of another model."""

TOLERANCE = 1e-3
"""How far, in metres, the hand may be from where the demonstration says that it was."""


def check_hand(where: str, found: Float[np.ndarray, " 3"], recorded: Float[np.ndarray, " 3"]) -> None:
    """Raises DataError, naming a demonstration's step, where its state puts the hand elsewhere than was recorded."""
    if (off := np.abs(found - recorded).max()) > TOLERANCE:
        raise DataError(
            f"{where}: its state puts the hand {1e3 * off:.1f} mm from the recorded place; "
            "it is of another model, whose pictures would be wrong."
        )


def image_key(camera: str) -> str:
    """The observation key of a camera's pictures."""
    return f"{camera}{_SUFFIX}"


def cameras_in(obs: h5py.Group) -> dict[str, tuple[int, int]]:
    """Cameras that a group of observations has pictures of -> their height and width, sorted."""
    found = {}
    for key in sorted(obs):
        if key.endswith(_SUFFIX) and isinstance(obs.get(key, getlink=True), h5py.HardLink):
            value = obs[key]
            if isinstance(value, h5py.Dataset) and _is_pictures(value):
                found[key.removesuffix(_SUFFIX)] = (int(value.shape[1]), int(value.shape[2]))
    return found


def resized(picture: UInt8[np.ndarray, "y x 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """A picture scaled to height and width, each pixel the mean of those it covers. Proportions change with those of `size`."""
    if picture.shape[:2] == tuple(size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))


def check_cameras(path: Path, wanted: Sequence[str], there: Mapping[str, tuple[int, int]], absent: str, unlike: str) -> None:
    """Raises DataError where cameras that are wanted have no pictures, or pictures of different sizes; each with its remedy."""
    if len(set(wanted)) < len(wanted):
        raise DataError(f"{path}: a camera was asked for twice: {', '.join(wanted)}.")
    if missing := [camera for camera in wanted if camera not in there]:
        raise DataError(f"{path}: no pictures of {', '.join(missing)}. {listing('It has pictures of', list(there))} {absent}")
    sizes = {camera: there[camera] for camera in wanted}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{camera} {height} × {width}" for camera, (height, width) in sizes.items())
        raise DataError(f"{path}: pictures of different sizes ({text}); {unlike}")


def read_pictures(
    dataset: h5py.Dataset, what: str, camera: str, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "t height width 3"]:
    """A camera's pictures of one demonstration, which must have this many steps, height and width.

    Raises:
        DataError: they are not such pictures, or cannot be read; `what` names file and demonstration.
    """
    where, expected = f"'obs/{image_key(camera)}'", (*shape, 3)
    if dataset.shape != expected or not _is_pictures(dataset):
        raise DataError(
            f"{what}: {where} is {dataset.dtype} of shape {dataset.shape}; uint8 of {expected} is needed, a picture a step."
        )
    try:
        return dataset[()]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{what}: {where} cannot be read ({short(error)}); the file is damaged, copy it again.") from error


def _is_pictures(dataset: h5py.Dataset) -> bool:
    return dataset.dtype == np.uint8 and dataset.ndim == 4 and dataset.shape[3] == 3 and 0 not in dataset.shape[1:]
