"""Pictures in files: JPEGs in HDF5, and folders. Those in tar shards: `tar_files.py`.

A source holds a few bytes for each picture, and reads and decodes it when asked, so a data set may be larger than memory. It
keeps no file open: it can be pickled, forked, and used by several threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from daps_robot.data.decode import MAX_BYTES, PictureDecoder
from daps_robot.data.files import shown, unreadable_named
from daps_robot.data.hdf5 import bytes_of, damage_named, open_file, refuse_link, short, subgroup, suggest
from daps_robot.data.pictures import SKIP, EncodedPictures, check_labels, digest, label_by_name, numbered_classes
from daps_robot.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_OTHER_SUFFIXES = (".tif", ".tiff", ".gif", ".heic", ".avif", ".jp2")
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
            declared = sum(bytes_of(each) for each in (data, offset, label) if each is not None)
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
            self.identity = digest(self._offset)
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
            raise DataError(f"{self.where}: no '{name}'. {suggest(name, [*map(shown, sorted(group))])}")
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
    """Every picture below a folder (jpg, jpeg, png, webp, bmp), sorted by path. How many are of other formats is printed.

    Where all of them lie one level down, in sub-folders, these are the classes, as in ImageNet's `train/<class>/*.JPEG`.
    """

    @unreadable_named()
    def __init__(self, folder: Path, decoder: PictureDecoder, classes: Sequence[str] = ()) -> None:
        """Looks for pictures, without opening them.

        Args:
            folder: where they lie.
            decoder: what becomes of them.
            classes: names of the classes, in order; () takes the sub-folders, sorted.

        Raises:
            DataError: there is no picture, a link leaves the folder, a name is no file's, or a sub-folder is no class.
        """
        super().__init__(shown(folder), decoder)
        if not folder.is_dir():
            raise DataError(f"{self.where} is not a folder of pictures; give one with {', '.join(SUFFIXES)} files in it.")
        self.folder = folder
        found = list(picture_files(folder))
        names = sorted(name for name in found if _has_suffix(name, SUFFIXES))
        if len(found) > len(names):
            print(f"passed over {len(found) - len(names)} files in {self.where} ({', '.join(_OTHER_SUFFIXES)}): convert them")
        if not names:
            raise DataError(f"{self.where} holds no pictures ({', '.join(SUFFIXES)}).")
        self._names = np.array(names)  # of bytes: a list of a million Python strings would be copied by every worker
        self.identity = digest(self._names)
        if all(name.count(b"/") == 1 for name in names):
            self.labels, self.classes = label_by_name([os.fsdecode(name.split(b"/")[0]) for name in names], classes, self.where)

    def __len__(self) -> int:
        return len(self._names)

    def encoded(self, index: Sequence[int]) -> Iterator[bytes]:
        for i in index:
            path = self.path(i)
            try:
                if path.stat().st_size > MAX_BYTES:
                    raise DataError(f"{self.name(i)} has more than {MAX_BYTES // 2**20} MiB; make it smaller{SKIP}")
                data = path.read_bytes()
            except OSError as error:
                raise DataError(f"{self.name(i)} cannot be read ({error.strerror or short(error)}).") from error
            yield data

    def path(self, i: int) -> Path:
        """Of a picture's file."""
        return self.folder / os.fsdecode(self._names[i])

    def name(self, i: int) -> str:
        return shown(self.path(i))


def _has_suffix(name: bytes, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(map(str.encode, suffixes)))


def picture_files(folder: Path) -> Iterator[bytes]:
    """Paths of the pictures below a folder, from there; also of those with suffixes that are not read.

    Raises:
        DataError: a link leaves the folder or goes round in a circle, a name is no file's, or something may not be looked at.
    """
    root = folder.resolve()
    pending, start = [root], len(os.fsencode(root)) + 1
    try:
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    name = os.fsencode(entry.path)[start:]
                    is_picture = _has_suffix(name, SUFFIXES)
                    if entry.is_symlink() and (is_picture or entry.is_dir()):
                        _check_link(Path(entry.path), root)
                    if entry.is_dir():
                        pending.append(Path(entry.path))
                    elif is_picture and not entry.is_file():
                        raise DataError(f"{shown(entry.path)} has a picture's name, but is not a file; remove it.")
                    elif is_picture or _has_suffix(name, _OTHER_SUFFIXES):
                        yield name
    except OSError as error:
        raise DataError(f"{shown(error.filename)} cannot be read ({error.strerror}); check its permissions.") from error


def _check_link(link: Path, root: Path) -> None:
    """A link may stand for a picture of the same data set, but not for a folder (which could hold the link)."""
    try:
        allowed = link.resolve().is_relative_to(root) and not link.is_dir()
    except RuntimeError:  # it leads to itself
        allowed = False
    if not allowed:
        raise DataError(f"{shown(link)} is a link to {shown(link.readlink())}; move or copy the pictures into {shown(root)}.")
