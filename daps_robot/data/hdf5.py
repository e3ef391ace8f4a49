"""HDF5 files from anywhere: opened, and looked into, with errors that a person can act on. Links are never followed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py

from daps_robot.errors import DataError

_SHOWN = 12


def open_file(path: Path) -> h5py.File:
    """The file, open for reading."""
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".hdf5", ".h5"))
        raise DataError(f"{path} is a directory, neither HDF5 nor LeRobot data (no meta/info.json). {listing('It holds', files)}")
    if not path.exists():
        raise DataError(f"{path} does not exist. {_near_files(path)}")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes); copy or download it again.")
        if not h5py.is_hdf5(path):
            remedy = "convert it to robomimic's layout (docs/data.md), or give the folder of a LeRobotDataset v3."
            raise DataError(f"{path} is not an HDF5 file: {remedy}")
        return h5py.File(path, "r")
    except PermissionError as error:
        raise DataError(f"{path} may not be read; check its permissions.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({short(error)}); if it was cut off, copy or download it again.") from error


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns what h5py raises on a damaged file, which is one of many exceptions, into an error for a person."""
    try:
        yield
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise DataError(f"{path} is damaged ({short(error)}); copy or download it again.") from error


def subgroup(path: Path, parent: h5py.Group, name: str, remedy: str, where: str | None = None) -> h5py.Group:
    """A subgroup that must be there, in this very file."""
    where = where or name
    if name not in parent:
        raise DataError(f"{path}: no group '{where}'; {remedy} {listing('It holds', sorted(parent))}")
    refuse_link(path, parent, name, where)
    group = parent[name]
    if not isinstance(group, h5py.Group):
        raise DataError(f"{path}: '{where}' is not a group; {remedy}")
    return group


def refuse_link(path: Path, group: h5py.Group, name: str, where: str) -> None:
    """Raises DataError for a link, soft or to another file."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        target = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
        raise DataError(f"{path}: '{where}' is a link to {target}; links are not followed, copy the data into the file.")


def bytes_of(dataset: h5py.Dataset) -> int:
    """The memory that reading a data set takes: that of its values, or of a chunk, which may be larger and is unpacked whole."""
    values, chunk = math.prod(dataset.shape), math.prod(dataset.chunks or (0,))
    return max(values, chunk) * dataset.dtype.itemsize


def check_printable(path: Path, name: str | bytes) -> None:
    """Refuses a name that a terminal would take for a command, or that would break a line, or that is no text (bytes)."""
    if isinstance(name, bytes) or not name.isprintable():
        raise DataError(f"{path}: the name {name[:100]!r} in it cannot be printed; rename it.")


def members(group: h5py.Group, prefix: str = "") -> list[str]:
    """Names of what a group holds, sorted."""
    return sorted(prefix + name for name in group)


def suggest(wanted: str, available: Sequence[str]) -> str:
    """The near miss of a name that is not there, and what is."""
    near = difflib.get_close_matches(wanted, available, n=1, cutoff=0.5)
    question = f"Did you mean '{near[0]}'? " if near else ""
    return f"{question}{listing('There are', available)}"


def listing(introduction: str, names: Sequence[str]) -> str:
    """A sentence that lists names, not too many."""
    if not names:
        return f"{introduction} nothing."
    shown = ", ".join(names[:_SHOWN])
    return f"{introduction}: {shown}, … ({len(names)} in all)." if len(names) > _SHOWN else f"{introduction}: {shown}."


def short(error: BaseException) -> str:
    """The message of an exception, on one line of at most 120 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."


def _near_files(path: Path) -> str:
    """What lies in the folder of a file that does not exist."""
    folder = path.parent
    if not folder.is_dir():
        return f"Nor does its folder {folder}."
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    near = [name for name in names if difflib.SequenceMatcher(None, path.stem, Path(name).stem).ratio() > 0.6][:3]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return listing("The folder holds", [name for name in names if name.endswith((".hdf5", ".h5"))])
