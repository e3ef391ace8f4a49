"""A long study in pieces: each runs in a process of its own, in a folder of its own, and none that is finished runs again.

<folder>/job.json     what the piece is: a frozen dataclass; a piece with other settings is refused, not mixed in
<folder>/result.json  what it found, written last
"""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from daps_robot.atomic import put
from daps_robot.commands.cli import errors_for_a_person
from daps_robot.config import differences, load_json, save_json
from daps_robot.errors import ConfigError, DapsRobotError
from daps_robot.types import JSON


def results_folder(study: str, name: str) -> Path:
    """Where the results of a study of that name go; made if need be."""
    out = Path("runs") / study / name
    out.mkdir(parents=True, exist_ok=True)
    return out


def start_process(function: str, folder: Path, job: Any, *arguments: str) -> None:
    """Call "package.module:name" with a folder that holds the job, in a process of its own, whose peak memory is its own.

    Args:
        function: takes the folder, and `arguments`.
        folder: gets job.json.
        job: a dataclass.
        arguments: what changes no result, such as the number of workers.

    Raises:
        DapsRobotError: the process failed; it has said why on the standard error that it shares with this one.
        KeyboardInterrupt: after SIGINT or SIGTERM; the process was given the time to save.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_json(job, folder / "job.json")
    code = "import sys; from daps_robot.commands.pieces import work; work(*sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, function, str(folder), *arguments]) as child, _ended_with(child):
        status = child.wait()
    if status:
        raise DapsRobotError(
            f"{folder} failed with exit status {status}, as said above; what is finished is kept.\n"
            f"The same command goes on from there; delete {folder} to run or train this piece anew"
        )


def work(function: str, *arguments: str) -> None:
    """What the process of a piece does."""
    module, _, name = function.partition(":")
    with errors_for_a_person():
        getattr(import_module(module), name)(*arguments)


@contextmanager
def _ended_with(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """While a process runs, what is to end this one ends that one first, and it may save; a second Ctrl-C does not wait."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    except KeyboardInterrupt:
        child.terminate()  # of Ctrl-C in a terminal it knows already: a training takes both for one
        try:
            child.wait()
        except KeyboardInterrupt:
            child.kill()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def finished(folder: Path, job: Any) -> bool:
    """Whether the result of this very job lies in a folder.

    Fields of a job with `made_of` in their metadata tell what it is made of, such as the weights of another piece.

    Raises:
        ConfigError: the result there is of another job.
    """
    if not (folder / "result.json").is_file():
        return False
    saved = readable(folder / "job.json", folder)
    if changed := differences(saved, job):
        parts = {field.name: field.metadata["made_of"] for field in fields(job) if "made_of" in field.metadata}
        other = [words for name, words in parts.items() if any(text.startswith(f"{name}: ") for text in changed)]
        if len(other) == len(changed):
            raise ConfigError(
                f"{folder} was made with another {other[0]} than is there now, trained anew or replaced since: "
                f"delete {folder} to run this piece anew"
            )
        raise ConfigError(f"{folder} holds a run with other settings ({'; '.join(changed[:3])}): choose another --name")
    return True


def result_of(function: str, folder: Path, job: Any, *arguments: str, check: Callable[[JSON], object]) -> JSON:
    """The result of a piece, run first if it is not there yet; arguments as those of `start_process`.

    Args:
        check: raises ConfigError for what is no result of such a piece.

    Raises:
        ConfigError: the result there is of another job, or one of the two is damaged.
    """
    if not finished(folder, job):
        start_process(function, folder, job, *arguments)
    found = readable(path := folder / "result.json", folder)
    try:
        check(found)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged ({error}): delete {folder} to run this piece anew") from error
    return found


def readable(path: Path, piece: Path) -> JSON:
    """The JSON object in a file.

    Raises:
        ConfigError: it holds none; the message says that `piece` is to be deleted.
    """
    try:
        found = load_json(path)
    except ConfigError as error:
        raise ConfigError(f"{error}: delete {piece} to run this piece anew") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is damaged: delete {piece} to run this piece anew")
    return found


def save_results(out: Path, results: Sequence[JSON], more: Any = None) -> None:
    """results.csv, one row a run, and results.json, of the same rows or of what is given in their place."""
    save_json(list(results) if more is None else more, out / "results.json")

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(results[0]))
            writer.writeheader()
            writer.writerows(results)

    put(out / "results.csv", write)
