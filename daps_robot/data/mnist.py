"""MNIST: Keras' one file, or the four official ones."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from daps_robot.data.catalog import data_folders, find_file
from daps_robot.data.download import download
from daps_robot.data.files import unreadable_named
from daps_robot.data.hdf5 import short
from daps_robot.data.npz import read_npz
from daps_robot.data.pictures import ArrayPictures
from daps_robot.errors import DataError

MNIST_10K = Path(__file__).with_name("mnist_10k.npz")
"""Indices into MNIST's training images: 9000 to train on, 1000 to test on."""

URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
SIZE = 11_490_434
DIGITS = tuple("0123456789")
_COUNTS = {"train": 60_000, "test": 10_000}
_IDX_NAMES = {"train": "train", "test": "t10k"}


def locate_mnist(may_download: bool = False) -> Path:
    """mnist.npz, or a folder `mnist` of the official files, in the folder that DAPS_ROBOT_DATA names or in ./data.

    Raises:
        DataError: it is in neither, and could or should not be downloaded.
    """
    found = find_file("mnist.npz") or next((folder / "mnist" for folder in data_folders() if (folder / "mnist").is_dir()), None)
    if found is not None:
        return found
    if not may_download:
        folders = " or ".join(map(str, data_folders()))
        raise DataError(
            f"mnist.npz is not in {folders}: put Keras' file of that name there (or the four official files, in a folder "
            "'mnist'), set DAPS_ROBOT_DATA, or ask for it with --download"
        )
    download(URL, path := Path("data") / "mnist.npz", SHA256, SIZE)
    return path


@unreadable_named()
def read_mnist(path: Path) -> tuple[ArrayPictures, ArrayPictures]:
    """60000 training and 10000 test digits, 28×28×1, from mnist.npz or from a folder of the four idx files (.gz or not).

    Raises:
        DataError: the file is not MNIST's, or damaged.
    """
    if path.is_dir() and (path / "mnist.npz").is_file():
        path = path / "mnist.npz"
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"{path} {'is neither a file nor a folder' if path.exists() else 'does not exist'}: give mnist.npz")
    read = _read_idx if path.is_dir() else _read_npz
    train, test = (
        ArrayPictures(
            read(path, split, "x", (count, 28, 28))[..., None],
            read(path, split, "y", (count,)).astype(np.int64),
            DIGITS,
            f"{path}: {split}",
        )
        for split, count in _COUNTS.items()
    )
    return train, test


def _read_npz(path: Path, split: str, kind: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """One array of Keras' file."""
    name = f"{kind}_{split}"

    def check(found: tuple[int, ...], dtype: np.dtype) -> None:
        if found != shape or dtype != np.uint8:
            raise DataError(f"{path}: '{name}' is {dtype} of shape {found}; MNIST's is uint8 of {shape}")

    return read_npz(path, name, check, "it must be MNIST as one .npz")


def _read_idx(folder: Path, split: str, kind: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """One of the official files: four bytes that say what follows, the shape as big-endian int32, and the numbers."""
    name = f"{_IDX_NAMES[split]}-{'images' if kind == 'x' else 'labels'}-idx{len(shape)}-ubyte"
    path = next((folder / file for file in (name, f"{name}.gz") if (folder / file).is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds neither {name}(.gz) nor mnist.npz: put Keras' file or MNIST's four official files there")
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({short(error)}): copy or download it again") from error
    if len(data) != size or not data.startswith(header):
        raise DataError(f"{path} is not MNIST's file of {shape} bytes, or cut off: copy or download it again")
    return np.frombuffer(bytearray(data), np.uint8, offset=len(header)).reshape(shape)
