"""A long study in pieces: each runs in a process of its own, in a folder of its own, and none that is finished runs again.

<folder>/job.json     what the piece is: a frozen dataclass; a piece with other settings is refused, not mixed in
<folder>/result.json  what it found, written last
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        DapsRobotError: the process failed; with the last line that it wrote to its standard error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_json(job, folder / "job.json")
    module, _, name = function.partition(":")
    code = f"import sys; from {module} import {name}; {name}(*sys.argv[1:])"
    ended = subprocess.run([sys.executable, "-c", code, str(folder), *arguments], stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit status {ended.returncode}"]
        raise DapsRobotError(f"{folder.name}: {last[0]} (in {folder}; what is finished is kept)")


def finished(folder: Path, job: Any) -> bool:
    """Whether the result of this very job lies in a folder.

    Raises:
        ConfigError: the result there is of another job.
    """
    if not (folder / "result.json").is_file():
        return False
    changed = differences(load_json(folder / "job.json"), job)
    if changed:
        raise ConfigError(f"{folder} holds a run with other settings ({'; '.join(changed[:3])}): choose another --name")
    return True


def result_of(function: str, folder: Path, job: Any, *arguments: str) -> JSON:
    """The result of a piece, run first if it is not there yet; arguments as those of `start_process`."""
    if not finished(folder, job):
        start_process(function, folder, job, *arguments)
    return load_json(folder / "result.json")


def save_results(out: Path, results: Sequence[JSON], more: Any = None) -> None:
    """results.csv, one row a run, and results.json, of the same rows or of what is given in their place."""
    save_json(list(results) if more is None else more, out / "results.json")
    temporary = out / "results.csv.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    temporary.replace(out / "results.csv")
