"""Names of files in messages, and files that the system will not let us look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from daps_robot.data.hdf5 import short
from daps_robot.errors import DataError


def shown(name: object) -> str:
    """A name as a message may print it: with line breaks, escape sequences and bytes that are no text spelt out."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def spelt(text: str) -> str:
    """A message of several lines, with escape sequences spelt out: what it quotes may come from a file."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


@contextmanager
def unreadable_named() -> Iterator[None]:
    """Turns an OSError, such as `Path.is_file` raises below a folder without permission, into an error for a person."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or short(error)
        raise DataError(f"{shown(error.filename or 'a file')} cannot be read ({reason}); check its permissions.") from error
