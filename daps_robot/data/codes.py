"""A file of code sequences: safetensors with the codes, packed to as many bits as they need, and what decoding must know.

Written row by row and read in slices: memory does not grow with the number of sequences.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open

from daps_robot.data.hdf5 import short
from daps_robot.errors import DataError

FORMAT = "daps_robot/codes/1"


@dataclass(frozen=True)
class CodesHeader:
    """What a file of codes says about itself.

    Attributes:
        tokenizer: SHA-256 of the weights of the tokenizer that wrote them.
        positions: codes of a sequence, l.
        vocabulary: values of a code, v.
        names: of the encoded examples, relative paths without a suffix.
    """

    tokenizer: str
    positions: int
    vocabulary: int
    names: tuple[str, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a packed sequence."""
        return math.ceil(self.positions * code_bits(self.vocabulary) / 8)


def code_bits(vocabulary: int) -> int:
    """Whole bits that hold a code."""
    return max(1, (vocabulary - 1).bit_length())


def pack(codes: Int[np.ndarray, "b l"], vocabulary: int) -> UInt8[np.ndarray, "b n"]:
    """Code sequences as bits, most significant first, each sequence filled up to whole bytes."""
    width = code_bits(vocabulary)
    bits = (codes[..., None] >> np.arange(width - 1, -1, -1) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(len(codes), codes.shape[1] * width), axis=1)


def unpack(rows: UInt8[np.ndarray, "b n"], positions: int, vocabulary: int) -> Int[np.ndarray, "b l"]:
    """The inverse of `pack`."""
    width = code_bits(vocabulary)
    bits = np.unpackbits(rows, axis=1, count=positions * width).reshape(len(rows), positions, width)
    return bits.astype(np.int64) @ (1 << np.arange(width - 1, -1, -1))


def write_codes(path: Path, header: CodesHeader, blocks: Iterable[Int[np.ndarray, "b l"]]) -> None:
    """Write a file of codes under a temporary name, then rename it.

    Raises:
        DataError: it cannot be written, or the blocks hold more or fewer sequences than the header has names.
    """
    size = [len(header.names), header.row_bytes]
    about = {
        "format": FORMAT,
        "tokenizer": header.tokenizer,
        "positions": str(header.positions),
        "vocabulary": str(header.vocabulary),
        "names": json.dumps(header.names),
    }
    layout = {"__metadata__": about, "codes": {"dtype": "U8", "shape": size, "data_offsets": [0, size[0] * size[1]]}}
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for block in blocks:
                file.write(pack(block, header.vocabulary).tobytes())
                written += len(block)
            file.flush()
            os.fsync(file.fileno())
        if written != size[0]:
            raise DataError(f"{path}: {written} code sequences for {size[0]} names")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or short(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


class CodesFile:
    """A file of codes, read in slices."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if it is missing, damaged, no file of codes, or names a place outside its folder."""
        self.path = path
        if not path.is_file():
            raise DataError(f"{path} does not exist: give a file that encode_images.py wrote")
        try:
            self.file = safe_open(path, "numpy")
            about = self.file.metadata() or {}
            if about.get("format") != FORMAT:
                raise DataError(f"{path} is no file of codes of this version ({FORMAT}): encode the pictures again")
            names = tuple(map(str, json.loads(about["names"])))
            self.header = CodesHeader(about["tokenizer"], int(about["positions"]), int(about["vocabulary"]), names)
            shape = tuple(self.file.get_slice("codes").get_shape())
        except (SafetensorError, KeyError, ValueError, TypeError, RecursionError, OSError) as error:
            raise DataError(f"{path} is damaged, or no file of codes ({short(error)}): encode the pictures again") from error
        header = self.header
        if header.positions < 1 or header.vocabulary < 1 or shape != (len(names), header.row_bytes):
            raise DataError(
                f"{path}: codes of shape {shape} for {len(names)} names, {header.positions} positions and "
                f"{header.vocabulary} values: the file is damaged; encode the pictures again"
            )
        for name in names:
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts or not place.parts or "\0" in name:
                raise DataError(f"{path} names {name!r}, which does not lie below its folder: it is not a file to trust")
        if len(set(names)) < len(names):
            raise DataError(f"{path} names some pictures twice: encode them again")

    def __len__(self) -> int:
        return len(self.header.names)

    def codes(self, rows: slice) -> Int[np.ndarray, "b l"]:
        """Some of the sequences.

        Raises:
            DataError: a code lies outside the vocabulary.
        """
        header = self.header
        first, last, _ = rows.indices(len(self))
        codes = unpack(self.file.get_slice("codes")[first:last], header.positions, header.vocabulary)
        if codes.size and codes.max() >= header.vocabulary:
            row = int((codes >= header.vocabulary).any(1).argmax())
            raise DataError(
                f"{self.path}: the codes of {header.names[rows][row]} reach {int(codes[row].max())}, the vocabulary ends at "
                f"{header.vocabulary - 1}: the file is damaged; encode the pictures again"
            )
        return codes
