"""Pictures in files: JPEGs in HDF5, folders, tar shards.

A source holds a few bytes for each picture, and reads and decodes it when asked, so a data set may be larger than memory. It
keeps no file open: it can be pickled, forked, and used by several threads.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from tqdm import tqdm

from daps_robot.data.decode import MAX_BYTES, PictureDecoder
from daps_robot.data.hdf5 import damage_named, open_file, refuse_link, short, subgroup, suggest
from daps_robot.data.pictures import MAX_CLASSES, EncodedPictures, check_labels, label_by_name, numbered_classes
from daps_robot.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_SMALLEST_PICTURE = 64
_MAX_COMPRESSION = 200
_UNSUSPICIOUS_BYTES = 64 * 2**20


class JpegPictures(EncodedPictures):
    """An HDF5 group in which picture i is the JPEG `jpeg[offset[i]:offset[i+1]]`, of class `label[i]` where there are labels.

    The names of the classes are those given, else the file's attribute `classes` (with commas between), else numbers.
    """

    def __init__(self, path: Path, group: str, decoder: PictureDecoder, classes: Sequence[str] = ()) -> None:
        """Raises DataError if the file is missing, damaged, of another layout, or claims more than it can hold."""
        super().__init__(f"{path}: {group}", decoder)
        self.path, self.group = path, group
        with open_file(path) as file, damage_named(path):
            data = self._integers(file, "jpeg")
            offset = self._integers(file, "offset")
            label = self._integers(file, "label") if "label" in file[group] else None
            pictures, stored = len(offset) - 1, path.stat().st_size
            declared = data.nbytes + offset.nbytes + (label.nbytes if label is not None else 0)
            if declared > max(_UNSUSPICIOUS_BYTES, _MAX_COMPRESSION * stored) or pictures * _SMALLEST_PICTURE > stored:
                raise DataError(
                    f"{self.where}: declares {pictures} pictures of {declared / 2**20:.0f} MiB in a file of "
                    f"{stored / 2**20:.2f} MiB; it is damaged or made to exhaust memory."
                )
            if data.dtype != np.uint8 or pictures < 1 or (label is not None and len(label) != pictures):
                raise DataError(
                    f"{self.where}: 'jpeg' ({data.dtype}), 'offset' ({len(offset)}) and 'label' do not belong together: "
                    "bytes as uint8, the n + 1 ends of at least one picture, and n labels are needed."
                )
            self._offset = offset[()].astype(np.int64)
            self._check_offsets(len(data))
            if label is not None:
                self.labels = label[()].astype(np.int64)
                names = file.attrs.get("classes")
                named = names.split(",") if isinstance(names, str) else numbered_classes(self.labels, self.where)
                self.classes = tuple(classes or named)
                check_labels(self.labels, len(self.classes), self.where)

    def __len__(self) -> int:
        return len(self._offset) - 1

    def encoded(self, index: Sequence[int]) -> Iterator[bytes]:
        with open_file(self.path) as file, damage_named(self.path):
            data = self._integers(file, "jpeg")
            for i in index:
                yield data[self._offset[i] : self._offset[i + 1]].tobytes()

    def name(self, i: int) -> str:
        return f"{self.where}: picture {i}"

    def _integers(self, file: h5py.File, name: str) -> h5py.Dataset:
        """A list of integers that lies in this very file."""
        group = subgroup(self.path, file, self.group, "pictures lie in groups with 'jpeg', 'offset' and 'label'.")
        if name not in group:
            raise DataError(f"{self.where}: no '{name}'. {suggest(name, sorted(group))}")
        refuse_link(self.path, group, name, f"{self.group}/{name}")
        dataset = group[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind not in "iu":
            raise DataError(f"{self.where}: '{name}' must be a list of integers.")
        if dataset.is_virtual or dataset.external:
            raise DataError(f"{self.where}: '{name}' keeps its values in another file; copy them into this one.")
        return dataset

    def _check_offsets(self, end: int) -> None:
        """Every picture has bytes, not too many, and they lie inside the data."""
        sizes = np.diff(self._offset)
        wrong = (sizes < 1) | (sizes > MAX_BYTES) | (self._offset[:-1] < 0) | (self._offset[1:] > end)
        if wrong.any():
            i = int(wrong.argmax())
            span = f"{self._offset[i]} to {self._offset[i + 1]}"
            raise DataError(f"{self.where}: picture {i} goes from byte {span} of {end}; the file is damaged, copy it again.")


class FolderPictures(EncodedPictures):
    """Every picture below a folder (jpg, jpeg, png, webp, bmp), sorted by path.

    Where all of them lie one level down, in sub-folders, these are the classes, as in ImageNet's `train/<class>/*.JPEG`.
    """

    def __init__(self, folder: Path, decoder: PictureDecoder, classes: Sequence[str] = ()) -> None:
        """Looks for pictures, without opening them.

        Args:
            folder: where they lie.
            decoder: what becomes of them.
            classes: names of the classes, in order; () takes the sub-folders, sorted.

        Raises:
            DataError: there is no picture, a link leaves the folder, a name is no file's, or a sub-folder is no class.
        """
        super().__init__(str(folder), decoder)
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder of pictures; give one with {', '.join(SUFFIXES)} files in it.")
        self.folder = folder
        names = sorted(_picture_files(folder))
        if not names:
            raise DataError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
        self._names = np.array(names)  # of bytes: a list of a million Python strings would be copied by every worker
        if all(name.count(b"/") == 1 for name in names):
            self.labels, self.classes = label_by_name([os.fsdecode(name.split(b"/")[0]) for name in names], classes, self.where)

    def __len__(self) -> int:
        return len(self._names)

    def encoded(self, index: Sequence[int]) -> Iterator[bytes]:
        for i in index:
            path = self.folder / os.fsdecode(self._names[i])
            try:
                if path.stat().st_size > MAX_BYTES:
                    raise DataError(f"{path} has more than {MAX_BYTES // 2**20} MiB; make it smaller or leave it out.")
                yield path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read ({short(error)}).") from error

    def name(self, i: int) -> str:
        return str(self.folder / os.fsdecode(self._names[i]))


def _picture_files(folder: Path) -> Iterator[bytes]:
    """Paths of the pictures below a folder, from there."""
    root = folder.resolve()
    pending, start = [root], len(os.fsencode(root)) + 1
    try:
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    is_picture = entry.name.lower().endswith(SUFFIXES)
                    if entry.is_symlink() and (is_picture or entry.is_dir()):
                        _check_link(Path(entry.path), root)
                    if entry.is_dir():
                        pending.append(Path(entry.path))
                    elif is_picture and not entry.is_file():
                        raise DataError(f"{entry.path} has a picture's name, but is not a file; remove it.")
                    elif is_picture:
                        yield os.fsencode(entry.path)[start:]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({short(error)}); check its permissions.") from error


def _check_link(link: Path, root: Path) -> None:
    """A link may stand for a picture of the same data set, but not for a folder (which could hold the link)."""
    if link.is_dir() or not link.resolve().is_relative_to(root):
        raise DataError(f"{link} is a link to {link.readlink()}; move or copy the pictures into {root}.")


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
        super().__init__(f"{self.shards[0].parent} ({len(self.shards)} tar shards)", decoder)
        scan = _TarScan()
        for number, shard in enumerate(tqdm(self.shards, "reading headers of tar shards", disable=not sys.stderr.isatty())):
            scan.add(number, shard)
        if not scan.offset:
            raise DataError(f"{self.where} hold no pictures ({', '.join(SUFFIXES)}).")
        self._shard, self._offset, self._size = np.array(scan.shard), np.array(scan.offset), np.array(scan.size)
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
                raise DataError(f"{shard} cannot be read ({short(error)}).") from error

    def name(self, i: int) -> str:
        shard, offset = self.shards[self._shard[i]], self._offset[i]
        found = (name for name, start, _ in _tar_files(shard) if start == offset)
        return f"{shard}: {next(found, f'byte {offset}')}"


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
                    raise DataError(f"{shard}: {name} has {size} bytes; a picture has from 1 to {MAX_BYTES // 2**20} MiB.")
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
        with _Headers(shard) as stream:
            if stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                raise DataError(f"{shard} is compressed, so that single pictures cannot be read: unpack it (gzip -d, zstd -d).")
            stream.seek(0)
            yield from _members(shard, stream)
    except (OSError, tarfile.TarError, ValueError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{shard} is not a tar file, or damaged ({short(error)}); copy it again.") from error


def _members(shard: Path, stream: _Headers) -> Iterator[tuple[PurePosixPath, int, int]]:
    end = os.fstat(stream.fileno()).st_size
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"{shard}: '{name}' lies outside of the archive; make the shard again.")
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise DataError(f"{shard}: {name} is a link or another special member; pack plain files (tar --dereference).")
            if member.size < 0 or member.offset_data + member.size > end:
                raise DataError(f"{shard} ends within {name}; copy it again.")
            if member.isreg():
                yield name, member.offset_data, member.size
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # which tarfile takes for the end without a word
            raise DataError(f"{shard} ends early, or is damaged at byte {tar.offset}; copy it again.")


def _read_label(shard: Path, name: PurePosixPath, offset: int, size: int) -> int:
    """The class in a `.cls` member."""
    with shard.open("rb", buffering=0) as file:
        text = os.pread(file.fileno(), min(size, 32), offset)
    if not text.strip().isdigit() or int(text) >= MAX_CLASSES:
        raise DataError(f"{shard}: {name} says {text!r}; a class is a number from 0 to {MAX_CLASSES - 1}.")
    return int(text)
