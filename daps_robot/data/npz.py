"""One array of an .npz file from anywhere: no pickles, and its header is looked at before memory is taken."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from daps_robot.data.hdf5 import short
from daps_robot.errors import DataError


def read_npz(path: Path, name: str, check: Callable[[tuple[int, ...], np.dtype], None], remedy: str) -> np.ndarray:
    """An array by its name.

    Args:
        check: raises DataError for a shape and type that the array must not have.
        remedy: what to do about a file that cannot be read, for the message.

    Raises:
        DataError: the file is damaged or lacks the array, or `check` did.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open(f"{name}.npy") as stream:
                if np.lib.format.read_magic(stream) != (1, 0):  # later versions allow headers of 4 GiB
                    raise ValueError("not in version 1.0 of the npy format")
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            check(shape, dtype)
            with archive.open(f"{name}.npy") as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # zipfile, its decompressors and numpy's parser raise a dozen kinds on damaged files
        raise DataError(f"{path} holds no '{name}' that can be read ({short(error)}): {remedy}") from error
