"""Images from local files, as examples (b height width channels) for the core trainer."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from daps_robot.data.catalog import data_folders, find_file
from daps_robot.data.hdf5 import short
from daps_robot.errors import DataError

MNIST_10K = Path(__file__).with_name("mnist_10k.npz")
"""Indices into MNIST's training images: 9000 to train on, 1000 to test on."""


@dataclass(frozen=True)
class BinaryImages:
    """Images in {0, 1}.

    Attributes:
        pixels: (n height width 1) uint8.
    """

    pixels: UInt8[Tensor, "n height width 1"]

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b height width 1"]:
        """Some of them, as numbers."""
        return self.pixels[index].float()


def locate_mnist() -> Path:
    """mnist.npz, in the folder that DAPS_ROBOT_DATA names or in ./data.

    Raises:
        DataError: it is in neither.
    """
    found = find_file("mnist.npz")
    if found is None:
        folders = " or ".join(map(str, data_folders()))
        raise DataError(f"mnist.npz is not in {folders}: put Keras' file of that name there, or set DAPS_ROBOT_DATA")
    return found


def read_mnist_10k(path: Path) -> tuple[BinaryImages, BinaryImages]:
    """9000 training and 1000 test digits, both from MNIST's training images, binarised at x > 127.

    Raises:
        DataError: the file is not MNIST's, or damaged.
    """
    try:
        with np.load(path) as arrays:
            images = arrays["x_train"]
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no 'x_train' that can be read ({short(error)}): it must be MNIST as one .npz") from error
    if images.shape != (60000, 28, 28) or images.dtype != np.uint8:
        raise DataError(f"{path}: 'x_train' is {images.dtype} of shape {images.shape}; MNIST's is uint8 of (60000, 28, 28)")
    with np.load(MNIST_10K) as split:
        chosen = [images[split[name]] for name in ("train_index", "test_index")]
    train, test = (BinaryImages(torch.from_numpy((part > 127).astype(np.uint8))[..., None]) for part in chosen)
    return train, test
