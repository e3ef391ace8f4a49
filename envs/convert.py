"""Demonstrations rewritten in other actions: the same motion as moves of the hand, as poses in the world, or as joint angles.

    relative  <->  absolute     exact: the goal pose that the controller sets, from each recorded state and its action
    either     ->  joint        the joints are led along the recorded states, step by step in the simulator

What comes out is checked in the one way that counts: the new actions are replayed open loop from each demonstration's first
state.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demo_writer import put_whole
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.envs import tasks
from daps_robot.envs.control import CONTROLLERS
from daps_robot.envs.converter import Converter, Replay, start_worker, work
from daps_robot.envs.recorded import recorded_task
from daps_robot.envs.registration import ENV_CLASSES
from daps_robot.envs.workers import worker_pool
from daps_robot.errors import ConfigError, DataError
from daps_robot.rollout.vector import worker_count
from daps_robot.types import JSON, Demo


@dataclass(frozen=True)
class ConvertActions:
    """Rewrite demonstrations of a simulated task in other actions, and check them by replay.

    Attributes:
        dataset: a name of the catalogue (generated where it is not there yet) or an HDF5 file with simulator states.
        to: how the actions are to be written down.
        out: file to write; data/<data set>-<to>.hdf5 by default.
        workers: processes; one per processor by default. The file does not depend on it.
        overwrite: replace an existing file.
    """

    dataset: str = "can"
    to: Literal["relative", "absolute", "joint"] = "absolute"
    out: Path | None = None
    workers: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        worker_count(self.workers, 1)  # a number that cannot be is refused at once


def run(config: ConvertActions) -> list[Replay]:
    """Converts; the replays of the new actions, demonstration by demonstration."""
    out = config.out or Path("data", f"{dataset_name(config.dataset)}-{config.to}.hdf5")
    if out.exists() and not config.overwrite:
        raise DataError(f"{out} exists: choose another --out, or pass --overwrite to replace it.")
    demos = read_demos(fetch(config.dataset))
    task, source = recorded_task(demos)
    _check(demos, source, config.to)
    actions, replays = [], []
    for new, replay in tqdm(_in_workers(task, source, config.to, demos.demos, config.workers), total=len(demos), disable=None):
        actions.append(new)
        replays.append(replay)
    successes = sum(replay.success for replay in replays)
    hand, moved = (np.array([getattr(replay, name) for replay in replays]) for name in ("hand_mm", "object_mm"))
    conversion = {
        "from": source,
        "to": config.to,
        "source_sha256": demos.sha256,
        "replayed": {"successes": successes, "of": len(replays), "hand_mm": hand.tolist(), "object_mm": moved.tolist()},
    }
    kept = {key: value for key, value in demos.env_args.items() if key not in ("actions", "action_units")}
    _write(demos, out, actions, kept | getattr(tasks, ENV_CLASSES[task]).env_args(config.to), conversion)
    print(
        f"{out}: {len(demos)} demonstrations in {config.to} actions. Replayed open loop, {successes} of {len(replays)} succeed;\n"
        f"at the end the hand is {np.median(hand):.2g} mm from where it was (median; at most {hand.max():.2g}), "
        f"the object {np.median(moved):.2g} mm (at most {moved.max():.2g})"
    )
    return replays


def _check(demos: DemoSet, source: str, to: str) -> None:
    """Raises ConfigError or DataError where actions cannot be converted."""
    if source == to:
        raise ConfigError(f"{demos.path} holds {to} actions already.")
    if source == "joint":
        raise ConfigError(f"{demos.path} holds joint angles, which name no pose: convert the file that it was made from.")
    size = len(CONTROLLERS[source].units)
    if demos.action_dim != size:
        raise DataError(f"{demos.path}: its {demos.action_dim}-dimensional actions are not our {source} ones.")


def _in_workers(
    task: str, source: str, to: str, demos: Sequence[Demo], workers: int | None
) -> Iterator[tuple[Float[np.ndarray, "t a"], Replay]]:
    """Converts every demonstration, in order."""
    count = worker_count(workers, len(demos))
    names, actions, states = zip(*((demo.name, demo.actions, demo.states) for demo in demos), strict=True)
    if count == 1:
        yield from map(Converter(task, source, to).convert, names, actions, states)
        return
    with worker_pool(count, start_worker, task, source, to) as pool:
        yield from pool.map(work, names, actions, states)


def _write(demos: DemoSet, out: Path, actions: Sequence[np.ndarray], env_args: JSON, conversion: JSON) -> None:
    """The file of the demonstrations with other actions in it, put there whole."""

    def write(temporary: Path) -> None:
        shutil.copyfile(demos.path, temporary)
        with h5py.File(temporary, "r+") as file:
            data = file["data"]
            for demo, new in zip(demos.demos, actions, strict=True):
                del data[demo.name]["actions"]
                data[demo.name].create_dataset("actions", data=new)
            data.attrs["env_args"] = json.dumps(env_args)
            data.attrs["conversion"] = json.dumps(conversion)

    put_whole(out, write)
