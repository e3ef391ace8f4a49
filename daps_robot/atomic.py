"""Files that are there whole or not at all. No torch here: simulator processes write, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def put(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)`, flush the file to disk, rename it to `path` and flush that too.

    A reader finds the old file or the new one, never half, after a kill and after a power failure. Whatever `write` or the file
    system raises is raised, with the old file as it was and nothing beside it.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        rename_whole(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # which would hide what led here
            temporary.unlink(missing_ok=True)
        raise


def rename_whole(temporary: Path, path: Path) -> None:
    """Flush a file that is complete to disk, rename it to `path`, and flush that too."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    flush_names(path.parent)


def flush_names(folder: Path) -> None:
    """Flush to disk which files a folder holds, and under which names; where a file system cannot, it does so in its own time."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
