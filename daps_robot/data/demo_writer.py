"""Demonstrations in robomimic's HDF5 layout (see `demos.py`): the writer.

A collection may be killed at any time. Therefore each attempt is one small file in the folder `<file>.partial`, put there whole
(written beside, flushed to disk, renamed); what lies there counts as done when collection starts again. The file itself is
assembled from them at the end, beside its place, and moved there when it is complete: under its own name there is never half a
file. An HDF5 file that is appended to would not do, because a kill in the middle of a write can damage all of it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from jaxtyping import Float, Int

from daps_robot.atomic import put
from daps_robot.data.demo_checks import check_bytes
from daps_robot.data.files import shown
from daps_robot.data.hdf5 import bytes_of, short
from daps_robot.errors import DataError

if TYPE_CHECKING:
    from daps_robot.types import Demo

JSON = dict[str, Any]  # not from daps_robot.types, which imports torch: worker processes need none


@dataclass(frozen=True)
class Episode:
    """An episode as it was recorded, one row more of observations than of actions.

    Attributes:
        actions: (t a) as executed.
        observations: key -> (t+1 o_key); row i was seen before action i, the last row after the last action.
        states: (t s) flattened MuJoCo states before each action.
        rewards, dones: (t) after each action.
        seed: that the environment was reset with; the record may begin later in that episode (states[0, 0] is the time).
        model_file: the MuJoCo model, as XML.
    """

    actions: Float[np.ndarray, "t a"]
    observations: Mapping[str, Float[np.ndarray, "t+1 _"]]
    states: Float[np.ndarray, "t s"]
    rewards: Float[np.ndarray, " t"]
    dones: Int[np.ndarray, " t"]
    seed: int
    model_file: str


class DemoWriter:
    """Gathers episodes, in any order and over several sittings, and makes one file of them.

    Attempts are numbered. The file holds the first `demos` successful ones by number, whichever order they came in. A writer
    is a context manager: until its end, no other writer may collect for the same file.
    """

    def __init__(self, path: str | Path, settings: JSON) -> None:
        """Opens the collection, or goes on with one that was interrupted.

        Args:
            path: of the file to be; an existing one is replaced, when the new one is complete.
            settings: what the episodes depend on (task, noise, seed, versions); an interrupted collection with other settings
                is not mixed with this one.

        Raises:
            DataError: the folder cannot be written, another process is collecting there, or an interrupted collection had
                other settings.
        """
        self.path, self._settings = Path(path), settings
        self.folder = self.path.with_name(f"{self.path.name}.partial")
        text = json.dumps(settings, sort_keys=True)
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            self._take_lock()
            for leftover in self.folder.glob("*.tmp"):
                leftover.unlink()
            note = self.folder / "settings.json"
            if not note.exists():
                put(note, lambda temporary: temporary.write_text(text))
            elif (before := note.read_text(errors="replace")) != text:
                raise DataError(
                    f"{self.folder} holds an interrupted collection with other settings ({_difference(before, settings)}).\n"
                    "Use those settings to go on with it, or delete the folder to start anew."
                )

    def __enter__(self) -> DemoWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others collect for this file. What was added is on disk already."""
        self._lock.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise DataError(
                f"{self.folder}: another process is collecting there; wait for it, or choose another file."
            ) from error

    def attempts(self) -> dict[int, bool]:
        """Attempts that are done: number -> whether it succeeded."""
        kept = [*self.folder.glob("*.hdf5"), *self.folder.glob("*.failed")]
        if stray := [file for file in kept if not (file.stem.isdecimal() and file.stem.isascii())]:
            raise DataError(f"{shown(stray[0])} is no attempt of this collection; move it away, or delete {self.folder}.")
        return {int(file.stem): file.suffix == ".hdf5" for file in kept}

    def add(self, attempt: int, episode: Episode | None) -> None:
        """Keeps a successful episode; None notes that the attempt failed.

        Raises:
            DataError: the disk is full, or the folder cannot be written.
        """
        with self._writing():
            if episode is None:
                put(self.folder / f"{attempt:07d}.failed", lambda temporary: temporary.touch())
            else:
                put(self.folder / f"{attempt:07d}.hdf5", lambda temporary: _write_shard(temporary, episode))

    def finish(self, demos: int, valid_fraction: float, env_args: JSON) -> int:
        """Makes the file from the first successful attempts, and removes the folder.

        Returns:
            The number of steps in the file.

        Args:
            demos: how many to keep; so many attempts must have succeeded.
            valid_fraction: of the demonstrations are for validation (every tenth for 0.1), at least one of them if it is > 0.
            env_args: what the file says of its environment.

        Raises:
            DataError: the disk is full, or the folder cannot be written.
        """
        shards = sorted(self.folder.glob("*.hdf5"))[:demos]
        if len(shards) < demos:
            raise DataError(f"{self.folder} holds {len(shards)} demonstrations, fewer than the {demos} asked for.")
        names = [f"demo_{i}" for i in range(demos)]
        for shard in shards:
            _check_shard(shard, self.folder)
        with self._writing():
            put(self.path, lambda temporary: _assemble(temporary, shards, names, valid_fraction, env_args, self._settings))
            shutil.rmtree(self.folder)
            self.close()
        with h5py.File(self.path, "r") as file:
            return int(file["data"].attrs["total"])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a refusal of the file system into an error for a person."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py raises both where the disk is full
            raise DataError(
                f"{self.path} cannot be written ({short(error)}); free some space, or choose another place. "
                "What is already collected is kept beside it."
            ) from error


def write_demos(path: Path, demos: Sequence[Demo], valid_fraction: float, env_args: JSON) -> None:
    """Writes demonstrations that are all there already; under the file's own name there is never half a file.

    Args:
        path: of the file to be, or to be replaced.
        demos: named and written in this order; their names and seeds are left out.
        valid_fraction, env_args: as `DemoWriter.finish` takes them.

    Raises:
        DataError: the file cannot be written.
    """
    names = [f"demo_{i}" for i in range(len(demos))]

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            for name, demo in zip(names, demos, strict=True):
                group = data.create_group(name)
                group.create_dataset("actions", data=demo.actions)
                for key, values in demo.obs.items():
                    group.create_dataset(f"obs/{key}", data=values)
                if demo.states is not None:
                    group.create_dataset("states", data=demo.states)
                group.attrs["num_samples"] = len(demo)
            _describe(file, names, valid_fraction, env_args)

    put_whole(path, write)


def put_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Puts a file there, in a folder that is made if need be, by a function that writes it elsewhere.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, write)
    except (OSError, RuntimeError) as error:  # h5py raises both where the disk is full
        raise DataError(f"{path} cannot be written ({short(error)}); free some space, or choose another place.") from error


def _write_shard(path: Path, episode: Episode) -> None:
    with h5py.File(path, "w") as file:
        demo = file.create_group("demo")
        demo.create_dataset("actions", data=episode.actions)
        demo.create_dataset("states", data=episode.states)
        demo.create_dataset("rewards", data=episode.rewards)
        demo.create_dataset("dones", data=episode.dones)
        for key, values in episode.observations.items():
            demo.create_dataset(f"obs/{key}", data=values[:-1])
            demo.create_dataset(f"next_obs/{key}", data=values[1:])
        demo.attrs["num_samples"] = len(episode.actions)
        demo.attrs["seed"] = episode.seed
        demo.attrs["model_file"] = episode.model_file


def _check_shard(shard: Path, folder: Path) -> None:
    """Raises DataError for a file that holds no attempt, as after a failure of the disk."""
    sizes: list[int] = []
    try:
        with h5py.File(shard, "r") as file:
            int(file["demo"].attrs["num_samples"])
            file.visititems(lambda _, item: sizes.append(bytes_of(item)) if isinstance(item, h5py.Dataset) else None)
        check_bytes(shard, sum(sizes), shard.stat().st_size)
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise DataError(
            f"{shard} is damaged ({short(error)}); delete it to collect it again, or {folder} to start anew."
        ) from error


def _assemble(path: Path, shards: list[Path], names: list[str], valid_fraction: float, env_args: JSON, settings: JSON) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, shard in zip(names, shards, strict=True):
            with h5py.File(shard, "r") as source:
                source.copy("demo", data, name)
        _describe(file, names, valid_fraction, env_args)
        data.attrs["collection"] = json.dumps(settings)


def _describe(file: h5py.File, names: list[str], valid_fraction: float, env_args: JSON) -> None:
    """What a file says beside its demonstrations: how many steps, of which environment, and the splits."""
    data, valid = file["data"], _validation_names(names, valid_fraction)
    data.attrs["total"] = sum(int(data[name].attrs["num_samples"]) for name in names)
    data.attrs["env_args"] = json.dumps(env_args)
    train = [name for name in names if name not in set(valid)]
    for split, members in (("train", train), ("valid", valid)):
        file.create_dataset(f"mask/{split}", data=np.array(members, dtype="S"))


def _validation_names(names: list[str], fraction: float) -> list[str]:
    """Evenly spread over the collection, so that a file with more demonstrations keeps the validation set of one with fewer."""
    return [name for i, name in enumerate(names) if int((i + 1) * fraction + 1e-9) > int(i * fraction + 1e-9)] or (
        names[-1:] if fraction > 0 and len(names) > 1 else []
    )


def _difference(before: str, settings: JSON) -> str:
    """What an interrupted collection had set differently."""
    try:
        old = json.loads(before)
    except (ValueError, RecursionError):
        old = None
    if not isinstance(old, dict):
        return "its settings.json is damaged"
    changed = [key for key in sorted({*old, *settings}) if old.get(key) != settings.get(key)]
    return "; ".join(f"{key[:100]}: {old.get(key)!s:.100} then, {settings.get(key)!s:.100} now" for key in changed[:5])
