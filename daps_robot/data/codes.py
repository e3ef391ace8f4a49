"""A file of code sequences: safetensors with the codes, packed to as many bits as they need, and what decoding must know.

Tensors, all of bytes: `names` (a JSON list; safetensors' metadata may not take more than 100 MB), `codes` (a row for each name)
and `crc32` (of the header's entries and these two, little-endian). Written row by row and read in slices: of the codes, memory
never holds many.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open

from daps_robot.atomic import put
from daps_robot.data.files import unreadable_named
from daps_robot.data.hdf5 import short
from daps_robot.errors import DataError

FORMAT = "daps_robot/codes/3"
MAX_VOCABULARY = 2**32
_BLOCK = 2**24


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
        return -(-self.positions * code_bits(self.vocabulary) // 8)

    @property
    def crc(self) -> int:
        """Checksum of all but the names, with which that of the file begins."""
        return zlib.crc32(f"{self.tokenizer} {self.positions} {self.vocabulary}".encode())

    def check(self, where: str) -> None:
        """Raises DataError unless the sizes can be, and each name is one path below a folder, as it is written shortest."""
        if self.positions < 1 or not 1 <= self.vocabulary <= MAX_VOCABULARY:
            raise DataError(f"{where}: {self.positions} positions of {self.vocabulary} values: such codes cannot be")
        for name in self.names:
            if not isinstance(name, str):
                raise DataError(f"{where} has {name!r:.80} among its names, which is no text")
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts or not place.parts or str(place) != name or "\0" in name:
                raise DataError(f"{where} names {name!r:.80}, which is no plain path below a folder: it is not to be trusted")
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{where} names {name!r:.80}, which is not UTF-8: rename the file") from error
        if len(set(self.names)) < len(self.names):
            raise DataError(f"{where} names some pictures twice: encode them again")


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
    """Write a file of codes, whole or not at all.

    Raises:
        DataError: it cannot be written, its names or codes cannot be, or the blocks hold more or fewer sequences than the header
            has names.
    """
    header.check(str(path))
    names, rows = json.dumps(header.names).encode(), len(header.names)
    start = _start(header, len(names))

    def write(temporary: Path) -> None:
        written, crc = 0, zlib.crc32(names, header.crc)
        with temporary.open("wb") as file:
            file.write(start + names)
            for block in blocks:
                _check_codes(block, header, str(path))
                packed = pack(block, header.vocabulary).tobytes()
                file.write(packed)
                written, crc = written + len(block), zlib.crc32(packed, crc)
            file.write(crc.to_bytes(4, "little"))
        if written != rows:
            raise DataError(f"{path}: {written} code sequences for {rows} names")

    try:
        if path.is_dir():
            raise DataError(f"{path} is a directory: give the name of a file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, write)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or short(error)}") from error


def _start(header: CodesHeader, names_bytes: int) -> bytes:
    """What stands in a safetensors file before its tensors, by which it can be written without holding them."""
    shapes = {"names": [names_bytes], "codes": [len(header.names), header.row_bytes], "crc32": [4]}
    about = {
        "format": FORMAT,
        "tokenizer": header.tokenizer,
        "positions": str(header.positions),
        "vocabulary": str(header.vocabulary),
    }
    layout: dict[str, object] = {"__metadata__": about}
    end = 0
    for name, shape in shapes.items():
        first, end = end, end + math.prod(shape)
        layout[name] = {"dtype": "U8", "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(layout).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_codes(codes: Int[np.ndarray, "b l"], header: CodesHeader, where: str) -> None:
    """What `pack` would cut off."""
    if codes.ndim != 2 or codes.shape[1] != header.positions:
        raise DataError(f"{where}: codes of shape {codes.shape}; {header.positions} positions were announced")
    if codes.size and not 0 <= codes.min() <= codes.max() < header.vocabulary:
        raise DataError(f"{where}: codes from {codes.min()} to {codes.max()}; {header.vocabulary} values were announced")


class CodesFile:
    """A file of codes, read in slices."""

    @unreadable_named()
    def __init__(self, path: Path) -> None:
        """Raises DataError if it is missing, damaged, no file of codes, or names a place outside its folder."""
        self.path = path
        if not path.is_file():
            fault = "is not a file" if path.exists() else "does not exist"
            raise DataError(f"{path} {fault}: give a file that encode_images.py wrote")
        path.open("rb").close()  # so that missing permission is not taken for damage
        try:
            self.file = safe_open(path, "numpy")
            about = self.file.metadata() or {}
            if about.get("format") != FORMAT:
                raise DataError(f"{path} is no file of codes of this version ({FORMAT}): encode the pictures again")
            kinds = [self.file.get_slice(name).get_dtype() for name in ("names", "codes", "crc32")]
            if kinds != ["U8", "U8", "U8"]:
                raise ValueError(f"tensors of {', '.join(kinds)} instead of bytes")
            text = self.file.get_tensor("names").tobytes()
            names = json.loads(text)
            if not isinstance(names, list):
                raise ValueError("the names are no list")
            self.header = CodesHeader(about["tokenizer"], int(about["positions"]), int(about["vocabulary"]), tuple(names))
            shape = tuple(self.file.get_slice("codes").get_shape())
        except (SafetensorError, KeyError, ValueError, TypeError, RecursionError, OSError) as error:
            raise DataError(f"{path} is damaged, or no file of codes ({short(error)}): encode the pictures again") from error
        header = self.header
        header.check(str(path))
        if shape != (len(names), header.row_bytes):
            raise DataError(
                f"{path}: codes of shape {shape} for {len(names)} names, {header.positions} positions and "
                f"{header.vocabulary} values: the file is damaged; encode the pictures again"
            )
        if self._crc(zlib.crc32(text, header.crc)) != self.file.get_tensor("crc32").tobytes():
            raise DataError(f"{path} is damaged (its checksum does not fit): copy it, or encode the pictures, again")

    def _crc(self, crc: int) -> bytes:
        """The checksum that goes on over the codes."""
        step = max(1, _BLOCK // self.header.row_bytes)
        for first in range(0, len(self), step):
            crc = zlib.crc32(self.file.get_slice("codes")[first : min(first + step, len(self))].tobytes(), crc)
        return crc.to_bytes(4, "little")

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
