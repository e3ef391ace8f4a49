"""Pictures in tar shards, read where they lie: a shard is scanned once, and never unpacked. See `picture_files.py`."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from daps_robot.data.decode import MAX_BYTES, PictureDecoder
from daps_robot.data.files import shown
from daps_robot.data.hdf5 import short
from daps_robot.data.picture_files import SUFFIXES
from daps_robot.data.pictures import MAX_CLASSES, EncodedPictures, check_labels, digest, label_by_name, numbered_classes
from daps_robot.errors import DataError


class TarPictures(EncodedPictures):
    """The pictures in tar shards, in the order in which they lie there, read where they lie.

    Their classes are numbers in `<key>.cls` members beside `<key>.jpg` (WebDataset's convention), or else the folders of the
    members where all are called `<class>/<name>`. Members that are neither pictures nor classes are passed over.
    """

    def __init__(self, shards: Sequence[Path], decoder: PictureDecoder, classes: Sequence[str] = ()) -> None:
        """Reads the headers of all members.

        Args:
            shards: uncompressed tar files.
            decoder: what becomes of the pictures.
            classes: names of the classes, in order; () takes the folders, sorted, or numbers.

        Raises:
            DataError: a shard is damaged, cut off or compressed, has links or members that lie outside it, no pictures, or
                pictures without a class beside others that have one.
        """
        self.shards = tuple(shards)
        super().__init__(f"{shown(self.shards[0].parent)} ({len(self.shards)} tar shards)", decoder)
        scan = _TarScan()
        for number, shard in enumerate(tqdm(self.shards, "reading headers of tar shards", disable=not sys.stderr.isatty())):
            scan.add(number, shard)
        if not scan.offset:
            raise DataError(f"{self.where} hold no pictures ({', '.join(SUFFIXES)}).")
        self._shard, self._offset, self._size = np.array(scan.shard), np.array(scan.offset), np.array(scan.size)
        self.identity = digest(self._offset, self._size)
        label, folder = np.array(scan.label), np.array(scan.folder)
        if (label >= 0).any():
            if (label < 0).any():
                raise DataError(f"{self.name(int(label.argmin()))} has no class (.cls) beside it, but other pictures have.")
            self.labels, self.classes = label, tuple(classes or numbered_classes(label, self.where))
            check_labels(label, len(self.classes), self.where)
        elif (folder >= 0).all():
            order, self.classes = label_by_name(list(scan.folders), classes, self.where)
            self.labels = order[folder]

    def __len__(self) -> int:
        return len(self._offset)

    def encoded(self, index: Sequence[int]) -> Iterator[bytes]:
        for i in index:
            shard = self.shards[self._shard[i]]
            try:
                with shard.open("rb", buffering=0) as file:
                    yield os.pread(file.fileno(), int(self._size[i]), int(self._offset[i]))
            except OSError as error:
                raise DataError(f"{shown(shard)} cannot be read ({error.strerror or short(error)}).") from error

    def name(self, i: int) -> str:
        shard, offset = self.shards[self._shard[i]], self._offset[i]
        found = (name for name, start, _ in _tar_files(shard) if start == offset)
        return f"{shown(shard)}: {shown(next(found, f'byte {offset}'))}"


class _TarScan:
    """What the headers of tar shards say of their pictures, in flat memory; −1 where there is no class or folder."""

    def __init__(self) -> None:
        self.shard, self.offset, self.size, self.label, self.folder = (array(kind) for kind in "iqiii")
        self.folders: dict[str, int] = {}

    def add(self, number: int, shard: Path) -> None:
        picture = label_of = None  # path of the last picture and of the last class, without suffix: a pair lies together
        label = -1
        for name, offset, size in _tar_files(shard):
            stem, suffix = name.with_suffix(""), name.suffix.lower()
            if suffix == ".cls":
                label_of, label = stem, _read_label(shard, name, offset, size)
                if picture == stem:
                    self.label[-1] = label
            elif suffix in SUFFIXES:
                if not 0 < size <= MAX_BYTES:
                    raise DataError(
                        f"{shown(shard)}: {shown(name)} has {size} bytes; a picture has from 1 to {MAX_BYTES // 2**20} MiB."
                    )
                picture = stem
                folder = self.folders.setdefault(name.parts[0], len(self.folders)) if len(name.parts) == 2 else -1
                self.shard.append(number)
                self.offset.append(offset)
                self.size.append(size)
                self.label.append(label if label_of == stem else -1)
                self.folder.append(folder)


class _Headers(io.FileIO):
    """A tar file of which headers are read and no more: one that claims gigabytes takes no memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= 2**16:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _tar_files(shard: Path) -> Iterator[tuple[PurePosixPath, int, int]]:
    """Name, first byte and size of each file in a tar shard."""
    try:
        if shard.exists() and not shard.is_file():
            raise DataError(f"{shown(shard)} is not a file; remove or rename it.")
        with _Headers(shard) as stream:
            if stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                raise DataError(
                    f"{shown(shard)} is compressed, so that single pictures cannot be read: unpack it (gzip -d, zstd -d)."
                )
            stream.seek(0)
            yield from _members(shard, stream)
    except (OSError, tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{shown(shard)} is not a tar file, or damaged ({short(error)}); copy it again.") from error


def _members(shard: Path, stream: _Headers) -> Iterator[tuple[PurePosixPath, int, int]]:
    end = os.fstat(stream.fileno()).st_size
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"{shown(shard)}: '{shown(name)}' lies outside of the archive; make the shard again.")
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise DataError(
                    f"{shown(shard)}: {shown(name)} is a link or another special member; pack plain files (tar --dereference)."
                )
            if member.size < 0 or member.offset_data + member.size > end:
                raise DataError(f"{shown(shard)} ends within {shown(name)}; copy it again.")
            if member.isreg():
                yield name, member.offset_data, member.size
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # which tarfile takes for the end without a word
            raise DataError(f"{shown(shard)} ends early, or is damaged at byte {tar.offset}; copy it again.")
        while block := stream.read(2**16):
            if block.strip(b"\0"):
                raise DataError(
                    f"{shown(shard)} goes on behind its end at byte {tar.offset}: it is damaged, or joined from several; "
                    "copy it again, or keep the archives apart."
                )


def _read_label(shard: Path, name: PurePosixPath, offset: int, size: int) -> int:
    """The class in a `.cls` member."""
    with shard.open("rb", buffering=0) as file:
        text = os.pread(file.fileno(), min(size, 32), offset)
    if not text.strip().isdigit() or int(text) >= MAX_CLASSES:
        raise DataError(f"{shown(shard)}: {shown(name)} says {text!r}; a class is a number from 0 to {MAX_CLASSES - 1}.")
    return int(text)
