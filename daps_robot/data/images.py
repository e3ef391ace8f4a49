"""Data sets of pictures by name, and pictures as examples (b height width c) for the core trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from daps_robot.data.catalog import data_folders
from daps_robot.data.cifar10 import locate_cifar10, read_cifar10
from daps_robot.data.decode import PictureDecoder
from daps_robot.data.files import shown, unreadable_named
from daps_robot.data.mnist import MNIST_10K, locate_mnist, read_mnist
from daps_robot.data.picture_files import SUFFIXES, FolderPictures, JpegPictures, picture_files
from daps_robot.data.pictures import Pictures, Subset, check
from daps_robot.data.tar_files import TarPictures
from daps_robot.errors import ConfigError, DataError
from daps_robot.registry import unknown_name

IMAGE_DATASETS = ("mnist", "mnist-10k", "cifar10", "imagenet256", "folder")
IMAGENET_SAMPLE = "imagenet_sample_256_jpeg.h5"
_IMAGENET_CLASSES = tuple(map(str, range(1000)))


@dataclass(frozen=True)
class ImageTransform:
    """What is done to a picture before a tokenizer sees it.

    Attributes:
        threshold: binarise, x > threshold → 1; None makes x/255 of it.
        flip: in training, mirror half of the pictures left to right.
        dequantise: in training, (x + u)/256 with u ~ U[0, 1) in place of x/255.
    """

    threshold: int | None = None
    flip: bool = False
    dequantise: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 255:
            raise ConfigError(f"a threshold of {self.threshold}: it must be from 0 to 254")
        if self.threshold is not None and self.dequantise:
            raise ConfigError("a binarised picture is not dequantised: leave out --dequantise")


class ImageDataset:
    """Transformed pictures."""

    def __init__(self, pictures: Pictures, transform: ImageTransform) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def gather(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b height width c"]:
        """Some of them as numbers in [0, 1], without anything of chance: for evaluation."""
        return self._numbers(self.pictures.gather(index))

    def augmented(self, index: Int[Tensor, " b"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b height width c"]:
        """Some of them as numbers in [0, 1], for training; keys[i] alone decides what chance does to row i."""
        flip, dequantise = self.transform.flip, self.transform.dequantise
        pixels = self.pictures.gather(index)
        if not (flip or dequantise):
            return self._numbers(pixels)
        noise = torch.zeros(pixels.shape)
        for row, noise_row, key in zip(pixels, noise, keys.tolist(), strict=True):
            chance = np.random.Generator(np.random.Philox(key=key % 2**64))
            mirrored = chance.random() < 0.5  # drawn in any case, so that the noise is the same without it
            if flip and mirrored:
                row[:] = row.flip(1)
            if dequantise:
                noise_row[:] = torch.from_numpy(chance.random(row.shape, np.float32))
        return (pixels + noise) / 256 if dequantise else self._numbers(pixels)

    def _numbers(self, pixels: UInt8[Tensor, "b height width c"]) -> Float[Tensor, "b height width c"]:
        threshold = self.transform.threshold
        return pixels.float() / 255 if threshold is None else (pixels > threshold).float()


class ImageSplits(NamedTuple):
    """What to train on, and what is held out."""

    train: Pictures
    valid: Pictures


@unreadable_named()
def read_images(
    dataset: str,
    path: Path | None,
    size: int | None,
    *,
    alpha: Literal["white", "black"] | None = None,
    enlarge: bool = False,
    skip_damaged: bool = False,
    download: bool = False,
) -> ImageSplits:
    """The pictures of a data set.

    `mnist`: 60000 digits, and 10000 held out; from mnist.npz, or a folder of the four official files.
    `mnist-10k`: of the same files, 9000 and 1000 of the training digits.
    `cifar10`: 50000 pictures, and 10000 held out; from cifar-10-binary.tar.gz, its unpacked folder, or cifar10_jpeg.h5 (lossy).
    `imagenet256`: from a folder with `train` and `val` that hold class folders or tar shards, a folder of tar shards that have
    these words in their names, or JPEGs in HDF5 (groups `train` and `val`).
    `folder`: any pictures, in `train` and `val` where there are both; else every 20th is held out. Tar shards will do, too.

    Args:
        dataset: one of these names.
        path: where it lies; None looks in the folder that DAPS_ROBOT_DATA names, then in ./data. `folder` needs it.
        size: height and width in pixels. None takes 28, 32 or 256. `folder` needs it.
        alpha: what lies below transparent pixels; None refuses pictures that have such.
        enlarge: take pictures smaller than `size`.
        skip_damaged: decode all pictures of `imagenet256` and `folder` once ahead, and leave out those that cannot be used; how
            many, and the first of them, are printed. Otherwise such a picture is an error when its turn comes.
        download: fetch MNIST or CIFAR-10 into ./data where it is not there.

    Raises:
        ConfigError: an unknown name (with the nearest one), or options that do not go with it.
        DataError: the data are missing (with what to put where), damaged, or not usable.
    """
    if dataset not in IMAGE_DATASETS:
        raise unknown_name("set of pictures", dataset, list(IMAGE_DATASETS))
    own_size = {"mnist": 28, "mnist-10k": 28, "cifar10": 32}.get(dataset)
    if own_size is not None and size not in (None, own_size):
        raise ConfigError(f"{dataset} is of {own_size}×{own_size} pixels: leave out --size {size}")
    if own_size is None and download:
        raise ConfigError(f"{dataset} cannot be downloaded: leave out --download")
    ignored = {"--alpha": alpha, "--enlarge": enlarge, "--skip-damaged": skip_damaged}
    if own_size is not None and any(ignored.values()):
        given = " and ".join(flag for flag, value in ignored.items() if value)
        raise ConfigError(f"{dataset} is of whole, opaque pictures of one size: leave out {given}")
    if dataset == "mnist":
        return ImageSplits(*read_mnist(path or locate_mnist(download)))
    if dataset == "mnist-10k":
        return _mnist_10k(path or locate_mnist(download))
    if dataset == "cifar10":
        return ImageSplits(*read_cifar10(path or locate_cifar10(download)))
    reader = _Reader(PictureDecoder(256 if size is None else size, alpha, enlarge), skip_damaged)
    if dataset == "imagenet256":
        return reader.imagenet(path or _locate_imagenet())
    if path is None or size is None:
        raise ConfigError("pictures from a folder need --data, where it is, and --size in pixels")
    return reader.folder(path)


def _mnist_10k(path: Path) -> ImageSplits:
    digits, _ = read_mnist(path)
    with np.load(MNIST_10K) as split:
        return ImageSplits(*(Subset(digits, split[name].astype(np.int64)) for name in ("train_index", "test_index")))


def _locate_imagenet() -> Path:
    for folder in data_folders():
        for name in ("imagenet256", IMAGENET_SAMPLE):
            if (folder / name).exists():
                return folder / name
    folders = " or ".join(map(str, data_folders()))
    raise DataError(
        f"there is no folder imagenet256 in {folders}: put ImageNet's 'train' and 'val' there (image-net.org; class folders or "
        "tar shards), or say with --data where they are"
    )


@dataclass(frozen=True)
class _Reader:
    """Splits of pictures that lie encoded in files."""

    decoder: PictureDecoder
    skip_damaged: bool

    def imagenet(self, path: Path) -> ImageSplits:
        splits = self._imagenet(path)
        for pictures in splits:
            if pictures.labels is None:
                raise DataError(f"{pictures.where}: the pictures have no classes; ImageNet's have, others are --dataset folder.")
        return ImageSplits(*map(self._usable, splits))

    def folder(self, path: Path) -> ImageSplits:
        if (path / "train").is_dir() and (path / "val").is_dir():
            return ImageSplits(*map(self._usable, self._two_folders(path)))
        pictures = self._usable(self._open(path))
        if len(pictures) < 2:
            raise DataError(f"{shown(path)} has one picture that can be used; at least 2 are needed, of which one is held out.")
        held_out = np.arange(len(pictures)) % 20 == 19
        held_out[-1] |= not held_out.any()
        return ImageSplits(Subset(pictures, np.flatnonzero(~held_out)), Subset(pictures, np.flatnonzero(held_out)))

    def _imagenet(self, path: Path) -> ImageSplits:
        if path.suffix in (".h5", ".hdf5"):
            return ImageSplits(*(JpegPictures(path, name, self.decoder, _IMAGENET_CLASSES) for name in ("train", "val")))
        if (path / "train").is_dir() and (path / "val").is_dir():
            return self._two_folders(path)
        shards = _shards(path)
        train, valid = ([shard for shard in shards if split in shard.name] for split in ("train", "val"))
        if both := set(train) & set(valid):
            raise DataError(f"{shown(min(both))} has 'train' and 'val' in its name: rename it to say to which it belongs.")
        if not (train and valid):
            raise DataError(
                f"{shown(path)} must hold folders 'train' and 'val' (of class folders or tar shards), or tar shards with either "
                f"word in their names; {len(train)} have 'train' and {len(valid)} 'val'."
            )
        first = TarPictures(train, self.decoder)
        return ImageSplits(first, TarPictures(valid, self.decoder, first.classes))

    def _two_folders(self, path: Path) -> ImageSplits:
        beside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in (".tar", *SUFFIXES))
        if beside:
            raise DataError(f"{shown(beside[0])} lies beside the folders 'train' and 'val': move it into one of them or away.")
        train = self._open(path / "train")
        return ImageSplits(train, self._open(path / "val", train.classes))

    def _open(self, folder: Path, classes: Sequence[str] = ()) -> Pictures:
        """Tar shards where the folder holds such, else the pictures below it."""
        shards = _shards(folder)
        return TarPictures(shards, self.decoder, classes) if shards else FolderPictures(folder, self.decoder, classes)

    def _usable(self, pictures: Pictures) -> Pictures:
        if not self.skip_damaged:
            return pictures
        good, bad, first = check(pictures)
        if bad:
            print(f"left out {bad} of {len(pictures)} pictures of {pictures.where}:", *first, sep="\n  ", flush=True)
        if not len(good):
            raise DataError(f"{pictures.where}: not one of {len(pictures)} pictures can be used. The first: {first[0]}")
        return Subset(pictures, good)


def _shards(folder: Path) -> list[Path]:
    """The tar shards in a folder. Raises DataError if there are other pictures beside or below them."""
    shards = sorted(folder.glob("*.tar"))
    loose = next(picture_files(folder), None) if shards else None
    if loose is not None:
        raise DataError(
            f"{shown(folder)} holds tar shards ({shown(shards[0].name)}) and other pictures ({shown(os.fsdecode(loose))}): "
            "move the ones or the others away."
        )
    return shards
