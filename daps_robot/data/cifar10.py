"""CIFAR-10: the official binary version, or JPEGs of it in HDF5 (lossy). The Python version is a pickle, and never read."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO

import numpy as np
import torch

from daps_robot.data.catalog import data_folders
from daps_robot.data.decode import PictureDecoder
from daps_robot.data.demos import file_sha256
from daps_robot.data.download import download
from daps_robot.data.files import unreadable_named
from daps_robot.data.picture_files import JpegPictures
from daps_robot.data.pictures import SKIP, ArrayPictures
from daps_robot.errors import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
SIZE = 170_052_171
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER, ARCHIVE, JPEGS = "cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar10_jpeg.h5"
_TRAIN, _TEST = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)
_ROWS = 10_000
_REMEDY = f"download {URL} (the Python version is not read, because unpickling runs code)."


def locate_cifar10(may_download: bool = False) -> Path:
    """Where CIFAR-10 lies in the folder that DAPS_ROBOT_DATA names or in ./data; the JPEGs only where nothing better can be had.

    Raises:
        DataError: it is in neither, and could or should not be downloaded.
    """
    found = sorted((path for folder in data_folders() for path in _versions(folder)), key=lambda path: path.name == JPEGS)
    if may_download and (not found or found[0].name == JPEGS):
        download(URL, path := Path("data") / ARCHIVE, SHA256, SIZE)
        return path
    if not found:
        folders = " or ".join(map(str, data_folders()))
        raise DataError(f"{ARCHIVE} is not in {folders}: put it there, set DAPS_ROBOT_DATA, or ask for it with --download")
    return found[0]


@unreadable_named()
def read_cifar10(path: Path) -> tuple[ArrayPictures, ArrayPictures]:
    """50000 training and 10000 test pictures, 32×32×3, in memory (184 MB). `where` says which version they are.

    Args:
        path: cifar-10-binary.tar.gz, its unpacked folder, cifar10_jpeg.h5, or a folder that holds one of these.

    Raises:
        DataError: it is none of these, or damaged.
    """
    if path.is_dir() and not (path / _TEST[0]).exists():
        path = next(iter(_versions(path)), path)
    if path.suffix in (".h5", ".hdf5"):
        return _decoded(path, "train", len(_TRAIN) * _ROWS), _decoded(path, "test", len(_TEST) * _ROWS)
    if path.is_dir():
        return _batches(path, _TRAIN, path), _batches(path, _TEST, path)
    if not path.exists():
        raise DataError(f"{path} does not exist; {_REMEDY}")
    if path.is_file() and file_sha256(path) == SHA256:
        with tarfile.open(path) as archive:
            return _batches(path, _TRAIN, archive), _batches(path, _TEST, archive)
    raise DataError(f"{path} is not CIFAR-10's binary version, or cut off; {_REMEDY}")


def _versions(folder: Path) -> list[Path]:
    """What a folder holds of CIFAR-10, the best first."""
    return [folder / name for name in (FOLDER, ARCHIVE, JPEGS) if (folder / name).exists()]


def _batches(path: Path, names: tuple[str, ...], source: Path | tarfile.TarFile) -> ArrayPictures:
    """Files of rows: a byte of label, and 3·32·32 bytes of a picture, channel by channel."""
    size = _ROWS * (1 + 3 * 32 * 32)
    rows = np.empty((len(names), size), np.uint8)
    for row, name in zip(rows, names, strict=True):
        data = _read(source, name, size + 1)
        if len(data) != size:
            raise DataError(f"{path}: {name} is missing, no file, or not of {size} bytes; {_REMEDY}")
        row[:] = np.frombuffer(data, np.uint8)
    table = rows.reshape(len(names) * _ROWS, -1)
    pixels = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArrayPictures(
        np.ascontiguousarray(pixels), table[:, 0].astype(np.int64), CLASSES, f"{path}: {', '.join(names)} (binary version)"
    )


def _read(source: Path | tarfile.TarFile, name: str, size: int) -> bytes:
    """The first bytes of a file in the folder or the archive; none where it is not there."""
    if isinstance(source, Path):
        path = source / name
        stream: IO[bytes] | None = path.open("rb") if path.is_file() else None
    else:
        stream = source.extractfile(f"{FOLDER}/{name}")
    if stream is None:
        return b""
    with stream:
        return stream.read(size)


def _decoded(path: Path, group: str, count: int) -> ArrayPictures:
    jpegs = JpegPictures(path, group, PictureDecoder(32), CLASSES)
    classes = 0 if jpegs.labels is None else len(np.unique(jpegs.labels))
    if (len(jpegs), classes) != (count, len(CLASSES)):
        raise DataError(f"{jpegs.where}: {len(jpegs)} pictures of {classes} classes; CIFAR-10 has {count} of 10 here: {_REMEDY}")
    try:
        pixels = jpegs.gather(torch.arange(count)).numpy()
    except DataError as error:  # none is left out of this data set
        raise DataError(str(error).removesuffix(SKIP)) from error
    return ArrayPictures(pixels, jpegs.labels, jpegs.classes, f"{jpegs.where} (JPEG: lossy, the binary version is not)")
