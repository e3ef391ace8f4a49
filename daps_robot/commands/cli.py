"""From a configuration class and a function to a command line: flags, grouped help, errors for a person."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tyro

from daps_robot import parallel
from daps_robot.data.files import spelt
from daps_robot.errors import DapsRobotError

C = TypeVar("C")


def main(config: type[C], run: Callable[[C], object]) -> None:
    """Parse the command line into `config` and call `run`.

    A class method `default(arguments)` of `config` may give the defaults, where they depend on an argument.

    A `DapsRobotError` is printed without a traceback and exits with status 2, Ctrl-C with 130; `--debug` shows tracebacks.
    """
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    description = (config.__doc__ or "").split("\n\n")[0] + "\n\n--debug shows the traceback of an error."
    with errors_for_a_person(debug):
        given: dict[str, Any] = {}
        if defaults := getattr(config, "default", None):
            given["default"] = defaults(arguments)
        given |= {"prog": Path(sys.argv[0]).name, "description": description, "config": (tyro.conf.OmitArgPrefixes,)}
        parsed = tyro.cli(config, args=arguments, **given)
        keep_freed_memory()
        if not parallel.is_main():
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - of several processes, one speaks, to the end
        run(parsed)


@contextmanager
def errors_for_a_person(debug: bool = False) -> Iterator[None]:
    """Ends the process with what a person can act on: one line on standard error, and a status; tracebacks with `debug`."""
    try:
        yield
    except DapsRobotError as error:
        if debug:
            raise
        print(f"error: {spelt(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if debug:
            raise
        print(f"error: {error.filename or ''}: {error.strerror or error}".replace("error: : ", "error: "), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        if debug:
            raise
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        raise SystemExit(130) from None


def given(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option of the command line, if it is there."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    values = [b for a, b in pairwise(words) if a.startswith("--") and a.replace("_", "-") == option]
    return values[-1] if values else None


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for reuse: training otherwise spends 8 to 15% of its time on page faults.

    Does nothing on another C library.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 20 << 20)  # the few larger blocks go back at once, which keeps the peak low
        mallopt(trim_threshold, (1 << 31) - 1)
