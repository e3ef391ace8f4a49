"""A real training in a process that is killed, has no disk left or loses a worker, and what its directory must then hold.

Every training is a fork of this process, which has imported everything and computed nothing: a run takes a second or two.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from daps_robot.checkpoints import load_state
from daps_robot.commands import cli
from daps_robot.commands.train_action_vae import TrainActionVAE
from daps_robot.commands.train_action_vae import run as train
from daps_robot.data.demo_writer import write_demos
from daps_robot.data.demos import ROBOMIMIC_KEYS
from daps_robot.training.logger import read_rows
from daps_robot.types import Demo

logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says of every resumed run that it was resumed

NETWORKS = "--dataset demos.hdf5 --env none --device cpu --width 16 --layers 1 --vocabulary 16 --batch-size 8 --ema 0.9"
STEPS = "--warm-start-steps 15 --max-steps 40 --eval-every 5 --log-every 3 --keep-last 3"
ARGUMENTS = [*NETWORKS.split(), *STEPS.split()]

TIMES = {"seconds", "steps_per_second", "train_seconds"}
"""What no two runs have in common."""

END_WITHIN = 30
"""Seconds in which a run that cannot go on has ended."""

WRITES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "shutil.rmtree")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status, or minus the signal that ended it.
        cpu: seconds of the processor that it took.
        said: standard error.
        writes: how often it changed the file system.
    """

    status: int
    cpu: float
    said: str
    writes: int


def prepare(place: Path) -> None:
    """Demonstrations to train on."""
    demos = []
    for i in range(6):
        rng = np.random.default_rng(i)
        actions = rng.uniform(-1, 1, (20 + i, 3)).astype(np.float32)
        sizes = zip(ROBOMIMIC_KEYS, (3, 4, 2, 5), strict=True)
        demos.append(Demo(f"demo_{i}", actions, {key: rng.normal(size=(20 + i, n)).astype(np.float32) for key, n in sizes}))
    write_demos(place / "demos.hdf5", demos, 0.34, {})


def start(place: Path, out: str, *more: str, kill_at: int = 0, largest_file: int = 0) -> int:
    """Begin, or go on with, a training in a process of its own; its number.

    Args:
        kill_at: the change of the file system before which it kills itself; 0 for none.
        largest_file: bytes that a file may have: a disk that is full sooner or later; 0 for no limit.
    """
    if process := os.fork():
        return process
    status = 1
    try:
        os.chdir(place)
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        counted = os.open("writes.bin", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in WRITES or (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            ):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        sys.argv = ["train_action_vae.py", *ARGUMENTS, "--out", out, *more]
        try:
            cli.main(TrainActionVAE, train)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        os.write(counted, seen.to_bytes(8, "little"))
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def end(process: int, place: Path) -> Ended:
    """Wait for a process."""
    _, status, used = os.wait4(process, 0)
    writes = (place / "writes.bin").read_bytes() if (place / "writes.bin").exists() else b""
    said = (place / "stderr.txt").read_text() if (place / "stderr.txt").exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, said, int.from_bytes(writes, "little"))


def whole(place: Path, out: str = "whole", *more: str) -> Ended:
    """A run to its end."""
    found = end(start(place, out, *more), place)
    if found.status:
        raise RuntimeError(f"the run itself fails: {found.said}")
    return found


def kill_after(process: int, cpu: float) -> None:
    """SIGKILL once a process has taken so much of the processor; it may end before."""
    path = Path(f"/proc/{process}/schedstat")
    while int(path.read_text().split()[0]) < 1e9 * cpu:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)


def killed_run(place: Path, out: str, rng: Random, model: Ended, by_writes: bool) -> list[str]:
    """A run that is killed one to three times and then goes on to its end; when it was killed.

    Args:
        model: the run that was not interrupted.
        by_writes: kill before a change of the file system, else at any time.
    """
    times: list[str] = []
    wanted = rng.choice((1, 1, 2, 3))
    while len(times) < wanted:
        if by_writes:
            at: float = rng.randint(1, model.writes)
            process = start(place, out, "--resume", kill_at=int(at))
        else:
            at = rng.uniform(0.01, model.cpu)
            kill_after(process := start(place, out, "--resume"), at)
        found = end(process, place)
        if found.status == 0:  # it was nearly done, or began too late to be killed
            if not times:
                remove(place / out)
                continue
            break
        if found.status != -signal.SIGKILL:
            raise RuntimeError(f"a resumed run ends with status {found.status}: {found.said}")
        times.append(f"write {at:.0f}" if by_writes else f"{at:.2f} s")
    whole(place, out, "--resume")
    return times


def remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


# -- what a run leaves -------------------------------------------------------------------------------------------------------


def differences(one: Path, other: Path) -> list[str]:
    """In what two runs differ, but for times."""
    found = [] if files(one) == files(other) else [f"files: {sorted(files(one) ^ files(other))}"]
    for name in sorted(files(one) & files(other)):
        a, b = one / name, other / name
        if name == "metrics.jsonl":
            same = without_times(read_rows(a)) == without_times(read_rows(b))
        elif name == "state.pt":
            same = equal(without_times([load_state(a)]), without_times([load_state(b)]))
        elif name in ("best.json", "timing.json"):
            same = name == "timing.json" or without_times([json.loads(a.read_text())]) == without_times(
                [json.loads(b.read_text())]
            )
        else:
            same = a.read_bytes() == b.read_bytes()
        found += [] if same else [name]
    return found if scalars(one) == scalars(other) else [*found, "tensorboard"]


def files(folder: Path) -> set[str]:
    every = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(folder)) for path in every} - {".lock"}


def without_times(rows: list[Any]) -> list[Any]:
    kept = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return [{**row, "progress": {**row["progress"], "seconds": 0}} if "progress" in row else row for row in kept]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, list | tuple) else a == b


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: name → steps and values."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if name.split("/")[-1] not in TIMES]
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in names}


# -- what ends a run ---------------------------------------------------------------------------------------------------------


def full_disk(place: Path, rng: Random, reference: Path) -> str:
    """A run that can write no further, and what is wrong about how it ends; then it goes on."""
    sizes = sorted(path.stat().st_size for path in reference.rglob("*") if path.is_file() and path.stat().st_size > 64)
    limit = rng.randint(32, sizes[-1] - 1)
    return ended_badly(place, reference, lambda: start(place, "full", largest_file=limit), "", f"files of {limit} bytes")


def dead_worker(place: Path, rng: Random, reference: Path, cpu: float) -> str:
    """A run one of whose loading processes is killed, and what is wrong about how it ends; then it goes on."""

    def begin() -> int:
        while True:
            process, moment = start(place, "worker", "--workers", "1"), rng.uniform(0, cpu / 2)
            children = Path(f"/proc/{process}/task/{process}/children")
            since: float | None = None
            while not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                workers = children.read_text().split()
                since = since or (time.monotonic() if workers else None)
                if workers and since and time.monotonic() - since >= moment:
                    os.kill(int(workers[0]), signal.SIGKILL)
                    return process
                time.sleep(0.001)
            end(process, place)  # it was done before its worker could be killed
            remove(place / "worker")

    return ended_badly(place, reference, begin, "a process that loads data died", "a worker was killed", "--workers", "1")


def ended_badly(place: Path, reference: Path, begin: Callable[[], int], words: str, what: str, *more: str) -> str:
    process = begin()
    before = time.monotonic()
    found = end(process, place)
    seconds = time.monotonic() - before
    lines = [line for line in found.said.splitlines() if not line.startswith("warning:")]
    clear = found.status == 2 and len(lines) in (1, 2) and lines[0].startswith("error: ") and words in found.said
    out = "worker" if more else "full"
    wrong = [] if clear else [f"status {found.status}, said {found.said[-600:]!r}"]
    wrong += [f"took {seconds:.0f} s"] * (seconds > END_WITHIN)
    if not wrong:
        whole(place, out, "--resume", *more)
        wrong = [each for each in differences(reference, place / out) if each != "config.json"]  # which names the workers
    remove(place / out)
    return f"{what}: {'; '.join(wrong) if wrong else 'ended well'} ({lines[0][:110] if lines else ''})" if wrong else ""


@contextmanager
def under_torchrun(place: Path, out: str) -> Iterator[subprocess.Popen[str]]:
    """The same training by two processes."""
    script = Path(__file__).parents[2] / "scripts" / "train_action_vae.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    long = ["5000" if each == "40" else each for each in ARGUMENTS]
    with subprocess.Popen([*launcher, *long, "--out", out], cwd=place, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def dead_rank(place: Path) -> str:
    """Two processes train together, one is killed: what is wrong about how the other ends."""
    with under_torchrun(place, "together") as launcher:
        state = place / "together" / "state.pt"
        while not state.exists():
            if launcher.poll() is not None:
                return f"two processes do not train: {launcher.stderr.read()[-600:]}"  # type: ignore[union-attr]
            time.sleep(0.1)
        ranks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(ranks[1]), signal.SIGKILL)
        before = time.monotonic()
        try:
            _, said = launcher.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            return "the other process hangs"
        seconds = time.monotonic() - before
    load_state(state)
    wrong = [f"took {seconds:.0f} s"] * (seconds > 2 * END_WITHIN) + ["ended with status 0"] * (launcher.returncode == 0)
    errors = [line for line in said.splitlines() if line.startswith("error")]
    print(f"the other of two processes ended after {seconds:.0f} s and said {errors}", flush=True)
    return "; ".join(wrong)
