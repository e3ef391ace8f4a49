"""Pictures for demonstrations that have none: the simulator is set to every recorded state, and its cameras draw it.

They are what a rollout would see of the same states: the same model, renderer and flags.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from daps_robot.data.cameras import HAND
from daps_robot.data.catalog import dataset_name, fetch
from daps_robot.data.demo_writer import put_whole
from daps_robot.data.demos import DemoSet, read_demos
from daps_robot.envs.painter import Painter, start_worker, work
from daps_robot.envs.recorded import recorded_task
from daps_robot.envs.workers import worker_pool
from daps_robot.errors import ConfigError, DataError
from daps_robot.rollout.vector import worker_count

CHUNK, GZIP = 16, 4
"""Pictures that are compressed together, and how hard: a fifth of the size, and 70 µs to read a picture of 84 × 84."""


@dataclass(frozen=True)
class RenderDemos:
    """Add pictures of a simulated task's cameras to its demonstrations, as `obs/<camera>_image`.

    Attributes:
        dataset: a name of the catalogue (generated where it is not there yet) or an HDF5 file with simulator states.
        cameras: that look; a wrong name lists those of the task.
        size: height and width of a picture, in pixels.
        out: file to write; data/<data set>-images.hdf5 by default.
        workers: processes; one per processor by default. The file does not depend on it.
        overwrite: replace an existing file.
    """

    dataset: str = "lift"
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    size: int = 84
    out: Path | None = None
    workers: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        worker_count(self.workers, 1)  # a number that cannot be is refused at once
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise ConfigError("--cameras names at least one camera, and none twice")


def run(config: RenderDemos) -> Path:
    """Draws; the file, which appears when it is complete."""
    out = config.out or Path("data", f"{dataset_name(config.dataset)}-images.hdf5")
    if out.exists() and not config.overwrite:
        raise DataError(f"{out} exists: choose another --out, or pass --overwrite to replace it.")
    demos = read_demos(fetch(config.dataset))
    task, _ = recorded_task(demos)
    rendering = {
        "cameras": list(config.cameras),
        "size": config.size,
        "source_sha256": demos.sha256,
        "versions": {package: version(package) for package in ("mujoco", "robosuite")},
    }

    def write(temporary: Path) -> None:
        shutil.copyfile(demos.path, temporary)
        drawn = _in_workers(task, config, demos)
        with h5py.File(temporary, "r+") as file:
            for demo, pictures in tqdm(zip(demos.demos, drawn, strict=True), total=len(demos), unit="demo", disable=None):
                for key, values in pictures.items():
                    _replace(file["data"][demo.name]["obs"], key, values)
            file["data"].attrs["rendering"] = json.dumps(rendering)

    put_whole(out, write)
    steps = sum(len(demo) for demo in demos.demos)
    print(
        f"{out}: {len(demos)} demonstrations with {steps:,} pictures of {config.size} × {config.size} "
        f"from each of {', '.join(config.cameras)}; {out.stat().st_size / 2**20:.0f} MiB"
    )
    return out


def _in_workers(task: str, config: RenderDemos, demos: DemoSet) -> Iterator[dict[str, UInt8[np.ndarray, "t size size 3"]]]:
    """The pictures of every demonstration, in order."""
    count = worker_count(config.workers, len(demos))
    wheres = [f"{demos.path}: {demo.name}" for demo in demos.demos]
    states = [demo.states for demo in demos.demos]
    hands = [demo.obs.get(HAND) for demo in demos.demos]
    if count == 1:
        yield from map(Painter(task, config.cameras, config.size).paint, wheres, states, hands)
        return
    with worker_pool(count, start_worker, task, config.cameras, config.size) as pool:
        jobs = list(zip(wheres, states, hands, strict=True))
        for first in range(0, len(jobs), 4 * count):  # no more pictures wait than the file takes in
            yield from pool.map(work, *zip(*jobs[first : first + 4 * count], strict=True))


def _replace(obs: h5py.Group, key: str, pictures: UInt8[np.ndarray, "t size size 3"]) -> None:
    if key in obs:
        del obs[key]
    chunk = (min(CHUNK, len(pictures)), *pictures.shape[1:])
    obs.create_dataset(key, data=pictures, chunks=chunk, compression="gzip", compression_opts=GZIP)
