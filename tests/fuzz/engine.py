"""Spoilt inputs, read in a process of their own, which may take only so much memory and time.

Every input is a function of (seed, reader, number). A reader may refuse it with an error of ours, or read it; anything else is a
finding: another exception, a crash, memory or time beyond the limits, damaged bytes under a checksum that change what is read.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

MEMORY = 2**30
"""Bytes that reading an input may take beyond those of the idle process."""

SECONDS = 5
"""Of the processor, for one input; sixty times as many by the clock, since the machine may be busy."""

ROOT = Path(__file__).parents[2]


@dataclass
class Tally:
    """What became of a reader's inputs.

    Attributes:
        refused, read: how many.
        unmade: inputs at whose making a library crashed, which says nothing of the reader.
        findings: number of the input → what happened.
    """

    refused: int = 0
    read: int = 0
    unmade: int = 0
    findings: dict[int, str] = field(default_factory=dict)


def fuzz(readers: Sequence[str], inputs: int, seed: int, keep: Path, seconds: float = SECONDS) -> dict[str, Tally]:
    """Inputs 0 … inputs − 1 of each reader, each within `seconds`; inputs of findings stay in `keep`."""
    tallies = {name: Tally() for name in readers}
    work = [(name, 0, inputs) for name in readers]
    while work:
        command = [sys.executable, "-m", "tests.fuzz", "--child", json.dumps([seed, str(keep), seconds, work])]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors) as child,
        ):
            begun: tuple[str, int, str] | None = None
            for said in _lines(child):
                name, number, outcome = said["reader"], said["number"], said["outcome"]
                begun = (name, number, outcome) if outcome in ("making", "reading") else None
                if begun:
                    continue
                if outcome in ("refused", "read"):
                    setattr(tallies[name], outcome, getattr(tallies[name], outcome) + 1)
                else:
                    tallies[name].findings[number] = outcome
            if child.wait() == 0:
                return tallies
            how = f"{signal.Signals(-child.returncode).name if child.returncode < 0 else child.returncode}"
            if begun is None:
                errors.seek(0)
                raise RuntimeError(f"the fuzzing process itself failed ({how}): {errors.read().decode()[-2000:]}")
        name, number, stage = begun
        slow = how in ("SIGPROF", "SIGKILL")
        if stage == "making":
            tallies[name].unmade += 1
        else:
            tallies[name].findings[number] = "takes too long" if slow else f"ends the interpreter ({how})"
        work = [(each, number + 1 if each == name else start, stop) for each, start, stop in work if _left(each, name, work)]
        work = [each for each in work if each[1] < each[2]]
    return tallies


def _left(name: str, at: str, work: Sequence[tuple[str, int, int]]) -> bool:
    names = [each for each, _, _ in work]
    return names.index(name) >= names.index(at)


def _lines(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What a child says; it is killed when it says nothing for long."""
    assert child.stdout is not None
    rest = b""
    while True:
        if not select.select([child.stdout], [], [], 60 * SECONDS)[0]:
            child.kill()
        block = os.read(child.stdout.fileno(), 2**16)
        if not block:
            return
        *whole, rest = (rest + block).split(b"\n")
        yield from map(json.loads, whole)


def run_child(seed: int, keep: Path, seconds: float, work: Sequence[tuple[str, int, int]]) -> None:
    """The process that reads: a line before each input is made, one before it is read, and one after."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)

    def speak(outcome: str) -> None:
        out.write(json.dumps({"reader": name, "number": number, "outcome": outcome}).encode() + b"\n")

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from .readers import FAULTS, READERS

    warnings.simplefilter("ignore")
    limited = False
    for name, start, stop in work:
        reader = {**READERS, **FAULTS}[name]
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)  # for names without a folder
            valid, spoilt = Path(place) / "valid", Path(place) / "spoilt"
            valid.mkdir()
            reader.build(valid)
            shutil.copytree(valid, spoilt)
            whole = _plain(reader.read(spoilt))  # imports what it needs, too
            if not limited:
                _limit_memory()
                limited = True
            for number in range(start, stop):
                speak("making")
                shutil.rmtree(spoilt)
                shutil.copytree(valid, spoilt)
                rng = Random(f"{seed} {name} {number}")
                torch.manual_seed(0)
                bytes_only = reader.change(rng, spoilt)
                kept = Path(place) / "kept"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(spoilt, kept, symlinks=True)
                speak("reading")
                outcome = _outcome(reader, spoilt, seconds, whole if reader.exact and bytes_only else None)
                if outcome not in ("refused", "read"):
                    target = keep / f"{name}-{number}"
                    shutil.rmtree(target, ignore_errors=True)
                    shutil.copytree(kept, target)
                speak(outcome)


def _limit_memory() -> None:
    """To that of the idle process and MEMORY; the timer of `_outcome` then ends the process, which no C library can put off."""
    words = Path("/proc/self/status").read_text().split()
    idle = int(words[words.index("VmData:") + 1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (idle + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _outcome(reader: Any, folder: Path, seconds: float, whole: Any) -> str:
    from daps_robot.errors import DapsRobotError

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        found = reader.read(folder)
    except DapsRobotError as error:
        if out_of_memory(error) and not known(error):
            return f"takes memory before it is refused: {str(error)[:300]}"
        text = str(error)
        return "refused" if text and len(text) < 2500 and len(text.splitlines()) <= 4 else f"a message of no use: {text[:300]!r}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "site-packages" not in f.filename]
        return f"{type(error).__name__} at {' '.join(ours[-4:])}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read" if whole is None or _plain(found) == whole else "damaged bytes are read as something else"


def known(error: BaseException | None) -> bool:
    """Whether HDF5 itself took the memory: it allocates what a length among its own records claims before it looks there."""
    while error is not None:
        if re.search("memory allocation failed for (chunk|on disk)", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error began as one of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or re.search("allocate|memory allocation|out of memory", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _plain(value: Any) -> Any:
    """What can be compared."""
    if isinstance(value, torch.Tensor):
        value = value.numpy() if value.dtype != torch.bfloat16 else value.float().numpy()
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return value


def lines_of(tallies: dict[str, Tally]) -> list[str]:
    """A table, and the findings, each once."""
    lines = [f"{'reader':>16}{'inputs':>9}{'refused':>9}{'read':>9}{'unmade':>9}{'findings':>9}"]
    total = Counter[str]()
    for name, tally in tallies.items():
        figures = {"refused": tally.refused, "read": tally.read, "unmade": tally.unmade, "findings": len(tally.findings)}
        total.update(figures)
        lines.append(
            f"{name:>16}{sum(figures.values()):>9}" + "".join(f"{n:>{9 + (k == 'findings')}}" for k, n in figures.items())
        )
    lines.append(f"{'all':>16}{sum(total.values()):>9}" + "".join(f"{n:>9}" for n in total.values()))
    for name, tally in tallies.items():
        for text in dict.fromkeys(tally.findings.values()):
            numbers = [number for number, other in tally.findings.items() if other == text]
            lines.append(f"{name} {numbers[:4]}{f' and {len(numbers) - 4} more' if len(numbers) > 4 else ''}: {text}")
    return lines
