"""Pictures as uint8 of one shape, by index, wherever they come from. Those in files: `picture_files.py`."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from daps_robot.data.decode import PictureDecoder
from daps_robot.data.files import shown
from daps_robot.data.hdf5 import listing
from daps_robot.errors import DataError

MAX_CLASSES = 2**16

SKIP = ", or give --skip-damaged"
"""How the message for a picture that can be left out ends."""


class Pictures(Protocol):
    """Pictures of one shape by index, decoded when asked for.

    Attributes:
        shape: height, width, channels.
        labels: the class of each picture, 0 … classes − 1, or None.
        classes: their names; () without labels.
        where: file or folder, for messages.
        identity: a short hash that changes with which pictures these are, and in which order.
    """

    shape: tuple[int, int, int]
    labels: Int[np.ndarray, " n"] | None
    classes: tuple[str, ...]
    where: str
    identity: str

    def __len__(self) -> int: ...

    def gather(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width c"]:
        """Some of them. Raises DataError, naming file and picture, if one turns out to be damaged or not usable."""
        ...


class ArrayPictures:
    """Pictures in memory."""

    def __init__(
        self,
        pixels: UInt8[np.ndarray, "n height width c"],
        labels: Int[np.ndarray, " n"] | None = None,
        classes: Sequence[str] = (),
        where: str = "memory",
    ) -> None:
        """Raises DataError if a label is not that of a class."""
        height, width, channels = pixels.shape[1:]
        self.pixels, self.shape, self.where = torch.from_numpy(pixels), (height, width, channels), where
        self.labels, self.classes = labels, tuple(classes)
        self.identity = digest(pixels)
        if labels is not None:
            check_labels(labels, len(classes), where)

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width c"]:
        return self.pixels[index]


class Subset:
    """Some pictures of a source."""

    def __init__(self, pictures: Pictures, index: Int[np.ndarray, " n"]) -> None:
        self.pictures, self.index = pictures, torch.from_numpy(index)
        self.shape, self.classes, self.where = pictures.shape, pictures.classes, pictures.where
        self.labels = None if pictures.labels is None else pictures.labels[index]
        self.identity = digest(pictures.identity, index)

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width c"]:
        return self.pictures.gather(self.index[index])


class EncodedPictures(ABC):
    """Pictures that lie encoded in files and are read and decoded one by one."""

    labels: Int[np.ndarray, " n"] | None = None
    classes: tuple[str, ...] = ()
    identity: str

    def __init__(self, where: str, decoder: PictureDecoder) -> None:
        self.where, self.decoder = where, decoder
        self.shape = (decoder.size, decoder.size, 3)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encoded(self, index: Sequence[int]) -> Iterator[bytes]:
        """The bytes of some pictures' files."""

    @abstractmethod
    def name(self, i: int) -> str:
        """File and place of a picture, for messages."""

    def gather(self, index: Int[Tensor, " b"]) -> UInt8[Tensor, "b height width c"]:
        numbers = index.tolist()
        out = np.empty((len(numbers), *self.shape), np.uint8)
        for row, i, data in zip(out, numbers, self.encoded(numbers), strict=True):
            try:
                row[:] = self.decoder(data)
            except DataError as error:
                raise DataError(f"{self.name(i)} {error}{SKIP}") from error
        return torch.from_numpy(out)


def digest(*parts: str | np.ndarray) -> str:
    """A short hash of arrays and words."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:16]


def check_labels(labels: Int[np.ndarray, " n"], classes: int, where: str) -> None:
    """Raises DataError unless every label is one of 0 … classes − 1."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        i = int(wrong.argmax())
        raise DataError(f"{where}: picture {i} has label {labels[i]}, but there are {classes} classes: 0 to {classes - 1}.")


def numbered_classes(labels: Int[np.ndarray, " n"], where: str) -> tuple[str, ...]:
    """Names for classes that have none. Raises DataError for absurd numbers."""
    check_labels(labels, MAX_CLASSES, where)
    return tuple(map(str, range(int(labels.max()) + 1)))


def label_by_name(names: Sequence[str], classes: Sequence[str], where: str) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Labels of pictures by the names of their classes, and the classes: those given, else the names, sorted."""
    order = tuple(classes or sorted(set(names)))
    number = {name: i for i, name in enumerate(order)}
    if strange := sorted(set(names) - set(order)):
        raise DataError(f"{where}: '{shown(strange[0])}' is no class. {listing('The classes are', [*map(shown, order)])}")
    return np.array([number[name] for name in names]), order


class Checked(NamedTuple):
    """What `check` found.

    Attributes:
        good: indices of the pictures that can be used.
        bad: how many others there are.
        first: what is wrong with the first few of these.
    """

    good: Int[np.ndarray, " n"]
    bad: int
    first: tuple[str, ...]


def check(pictures: Pictures) -> Checked:
    """Decodes every picture once, with a progress line, to know ahead which of them `gather` would refuse."""

    def fault(i: int) -> str | None:
        try:
            pictures.gather(torch.tensor([i]))
        except DataError as error:
            return str(error).removesuffix(SKIP)
        return None

    good, bad, first = [], 0, []
    blocks = torch.arange(len(pictures)).split(1024)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
        for block in tqdm(blocks, f"checking {pictures.where}", unit_scale=1024, disable=not sys.stderr.isatty()):
            for i, message in zip(block.tolist(), pool.map(fault, block.tolist()), strict=True):
                if message is None:
                    good.append(i)
                else:
                    bad += 1
                    first += [message] * (bad <= 3)
    return Checked(np.array(good, np.int64), bad, tuple(first))
