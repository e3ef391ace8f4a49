"""Demonstrations: what a set of them is, and the reader of robomimic's HDF5 layout (`lerobot.py` has the other one).

    data                      attributes env_args (JSON), total, collection (JSON, of files that our experts made)
    data/demo_0               attributes num_samples, model_file (XML), seed
    data/demo_0/actions       (t a)
    data/demo_0/obs/<key>     (t o_key) what was seen before each action; (t) is read as (t 1)
    data/demo_0/obs/<camera>_image  (t height width 3) uint8, see `cameras.py`
    data/demo_0/next_obs/…    (t o_key) what was seen after it
    data/demo_0/states        (t s) flattened MuJoCo states before each action
    data/demo_0/rewards, dones  (t)
    mask/train, mask/valid    names of demos

`demo_writer.py` writes the same layout. A file comes from anywhere, so nothing in it is believed: links that lead elsewhere and
sizes that the file cannot hold are refused before memory is taken, and every value that is handed on is finite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import UInt8

from daps_robot.data.cameras import OBJECT_KEY, cameras_in, check_cameras, image_key, read_pictures
from daps_robot.data.demo_checks import asked_keys, check_bytes, check_finite, natural, rounded, split_names
from daps_robot.data.env_args import env_differences, named_env, nonsense, rate_of
from daps_robot.data.hdf5 import (
    bytes_of,
    check_printable,
    damage_named,
    listing,
    members,
    open_file,
    refuse_link,
    short,
    subgroup,
    suggest,
)
from daps_robot.data.lerobot_info import is_lerobot
from daps_robot.errors import ConfigError, DataError
from daps_robot.types import JSON, Demo

ROBOMIMIC_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
"""The low-dimensional observations that robomimic uses by default."""

DEMO_SEED_START = 0
"""Demonstrations start from the seeds DEMO_SEED_START + 1_000_000 · (collection seed) + attempt, below EVAL_SEED_START."""

EVAL_SEED_START = 1_000_000_000
"""Episode i of an evaluation starts from the seed EVAL_SEED_START + i: no demonstration was collected from it."""


@dataclass(frozen=True)
class DemoSet:
    """What a file or folder of demonstrations holds, checked.

    Attributes:
        path: of the file or folder.
        demos: all demonstrations, in natural order of their names (demo_2 before demo_10).
        train, valid: names of the demonstrations of the two splits, from the file's masks; without masks, every tenth
            demonstration in natural order (of fewer than ten: the last) is for validation.
        obs_keys: the observation keys that were read; every demo has them.
        env_args: what the file says of its environment; empty where it says nothing.
        sha256: of the file, in hexadecimal (of a folder: see `lerobot.folder_sha256`).
        env_id: the Gymnasium id of the environment that the demonstrations are from, or None where it is not known, or where
            ours of that name is another one (`env_args.env_differences`).
        cameras: that the file has pictures of -> their height and width, whether they were read (`Demo.images`) or not.
    """

    path: Path
    demos: tuple[Demo, ...]
    train: tuple[str, ...]
    valid: tuple[str, ...]
    obs_keys: tuple[str, ...]
    env_args: JSON
    sha256: str
    env_id: str | None
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.demos)

    def select(self, names: Sequence[str]) -> tuple[Demo, ...]:
        """The demonstrations of these names, in the order of the names."""
        by_name = {demo.name: demo for demo in self.demos}
        return tuple(by_name[name] for name in names)

    def fewer(self, count: int | None, seed: int) -> DemoSet:
        """The same with `count` training demonstrations (None: all), drawn by the seed, a smaller draw within a larger one.

        Raises:
            DataError: there are not so many.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self.train):
            raise DataError(f"{self.path}: {count} of its {len(self.train)} training demonstrations cannot be had")
        drawn = np.random.default_rng(seed).permutation(len(self.train))[:count]
        return replace(self, train=tuple(self.train[i] for i in sorted(drawn)))

    @property
    def action_dim(self) -> int:
        """Number of action dimensions."""
        return self.demos[0].actions.shape[1]

    @property
    def action_units(self) -> tuple[str, ...] | None:
        """What each action dimension is measured in, where the file says it (`action_units` in env_args: a list of names)."""
        units = self.env_args.get("action_units")
        if units is not None and not (isinstance(units, list) and all(isinstance(u, str) for u in units)):
            raise DataError(f"{self.path}: action_units in env_args is {short(ValueError(units))}, not a list of names.")
        if units is not None and len(units) != self.action_dim:
            raise DataError(f"{self.path}: action_units names {len(units)} dimensions, but actions have {self.action_dim}.")
        return None if units is None else tuple(units)

    @property
    def obs_dims(self) -> dict[str, int]:
        """Observation key -> number of its dimensions."""
        return {key: self.demos[0].obs[key].shape[1] for key in self.obs_keys}

    @property
    def seen(self) -> tuple[str, ...]:
        """The cameras whose pictures were read, in the order in which they were asked for."""
        return tuple(self.demos[0].images)

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """Height and width of these pictures, or None where none were read."""
        if not self.seen:
            return None
        _, height, width, _ = self.demos[0].images[self.seen[0]].shape
        return height, width

    @property
    def rate(self) -> float | None:
        """Steps a second, or None where the file does not say."""
        return rate_of(self.env_args)


def read_demos(
    path: str | Path,
    obs_keys: Sequence[str] | None = None,
    finite: bool = True,
    cameras: Sequence[str] = (),
    picture_size: tuple[int, int] | None = None,
) -> DemoSet:
    """Reads and checks demonstrations.

    Args:
        path: an HDF5 file in robomimic's layout, or the folder of a LeRobotDataset v3.
        obs_keys: observations to read, in this order. None takes robomimic's four (`ROBOMIMIC_KEYS`) where the file has them,
            else every numeric key with one row of numbers per step, sorted; beside cameras without `OBJECT_KEY`, in a folder
            without `lerobot_info.ENVIRONMENT`.
        finite: refuse NaN and infinity; without, they are handed on, for a look at what is wrong with the data.
        cameras: whose pictures to read, in this order; of a folder by their names (top) or keys (observation.images.top). They
            stay in memory as they are: 21 kB for 84 × 84.
        picture_size: height and width that their pictures have, or, of a folder, are scaled to. None leaves them as they are.

    Raises:
        DataError: the file is missing, damaged or of another layout, or a demonstration in it cannot be used. The message
            names file, demonstration, key and what to do.
        ConfigError: reading it takes a package that is not installed, or there is a picture size and no camera.
    """
    path = Path(path)
    if picture_size is not None and not cameras:
        raise ConfigError(f"pictures of {picture_size} pixels of no camera: name some with --cameras, or leave the size out")
    if is_lerobot(path):
        from daps_robot.data.lerobot import read_lerobot  # which needs this module

        return read_lerobot(path, obs_keys, finite, cameras, picture_size)
    demos = read_hdf5(path, obs_keys, finite, cameras)
    if picture_size is not None and demos.picture_size != picture_size:
        raise DataError(
            f"{path}: pictures of {demos.picture_size} pixels, where {picture_size} are asked for, and only those of a LeRobot "
            "folder are scaled: render them again, or take the data set that the policy was trained on."
        )
    return demos


def read_hdf5(path: Path, obs_keys: Sequence[str] | None, finite: bool = True, cameras: Sequence[str] = ()) -> DemoSet:
    """`read_demos` of a file in robomimic's layout."""
    with open_file(path) as file, damage_named(path):
        data = subgroup(path, file, "data", "is robomimic's layout meant (groups data/demo_0, data/demo_1, …)?")
        names = sorted((name for name in data if _is_demo(data, name)), key=natural)
        if not names:
            raise DataError(f"{path}: the group 'data' holds no demonstration (groups data/demo_0, data/demo_1, …).")
        for name in names:
            check_printable(path, name)
            refuse_link(path, data, name, f"data/{name}")
        reader = _DemoReader(path, data, names, obs_keys, finite, cameras)
        reader.check_sizes()
        demos = tuple(reader.read(name) for name in names)
        _check_same_shapes(path, demos, reader.obs_keys)
        mask = subgroup(path, file, "mask", "masks are lists of names.") if "mask" in file else {}
        train, valid = split_names(path, names, *(_read_mask(path, mask, split, names) for split in ("train", "valid")))
        env_args = _read_env_args(path, data)
        unused = sorted(set(data) - set(names))
        for name in unused:
            check_printable(path, name)
    if reader.left_out and obs_keys is None:
        read = f"observations read: {', '.join(reader.obs_keys)}"
        print(f"{path}: {listing(f'{read}; left out', reader.left_out)}", flush=True)
    if unused:
        print(f"{path}: {listing('in the group data, and no demonstrations', unused)}", flush=True)
    if rest := len(names) - len(train) - len(valid):
        print(f"{path}: {rest} of {len(names)} demonstrations are in neither mask/train nor mask/valid, and left out", flush=True)
    env_id = None if env_differences(env_args) else named_env(env_args)
    return DemoSet(path, demos, train, valid, reader.obs_keys, env_args, file_sha256(path), env_id, reader.there)


def images_of(demos: DemoSet, name: str) -> dict[str, UInt8[np.ndarray, "t height width 3"]]:
    """The pictures of one demonstration, of every camera that its file has some of; of a LeRobot folder none.

    Raises:
        DataError: they are damaged, or too large.
    """
    if not demos.cameras or is_lerobot(demos.path):
        return {}
    with open_file(demos.path) as file, damage_named(demos.path):
        reader = _DemoReader(demos.path, file["data"], [name], demos.obs_keys, True, ())
        return reader.images(name, tuple(demos.cameras), len(demos.select([name])[0]))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _DemoReader:
    """Reads the demonstrations of one open file, each checked by itself."""

    def __init__(
        self,
        path: Path,
        data: h5py.Group,
        names: Sequence[str],
        obs_keys: Sequence[str] | None,
        finite: bool,
        cameras: Sequence[str],
    ) -> None:
        self.path, self.data, self.names, self.finite, self.cameras = path, data, names, finite, cameras
        obs = subgroup(path, data[names[0]], "obs", f"{names[0]} has no observations.", where=f"data/{names[0]}/obs")
        for key in obs:
            check_printable(path, key)
        self.there = cameras_in(obs)
        render = f"python scripts/render_demos.py --dataset {path} --cameras {' '.join(cameras)}"
        unlike = "render them again at one size, or choose cameras alike."
        check_cameras(path, cameras, self.there, f"Of a simulated task they are made by: {render}", unlike)
        self.obs_keys = self._resolve_keys(obs, obs_keys)
        all_keys = set().union(*(_obs_members(data[each]) for each in names))
        self.left_out = sorted(all_keys - {*self.obs_keys, *map(image_key, cameras)})
        for key in self.left_out:
            check_printable(path, key)

    def _resolve_keys(self, obs: h5py.Group, wanted: Sequence[str] | None) -> tuple[str, ...]:
        """The observation keys to read, by the first demonstration's (`read` finds out where another lacks one)."""
        if wanted is not None:
            return asked_keys(self.path, wanted, sorted(obs))
        hidden = {OBJECT_KEY} if self.cameras else set()
        if all(key in obs for key in ROBOMIMIC_KEYS):
            return tuple(key for key in ROBOMIMIC_KEYS if key not in hidden)
        keys = tuple(sorted(key for key in obs if _is_rows_of_numbers(obs, key) and key not in hidden))
        if not keys:
            raise DataError(
                f"{self.path}: {self.names[0]}: no observation key holds one row of numbers per step; "
                f"the keys are {', '.join(sorted(obs)) or 'none'}."
            )
        return keys

    def check_sizes(self) -> None:
        """Refuses, before anything is read, a file that declares more than it can hold or than is sensible."""
        declared = 0
        for name in self.names:
            for where in ("actions", *(f"obs/{key}" for key in (*self.obs_keys, *map(image_key, self.cameras)))):
                declared += bytes_of(self._dataset(name, where))
            if "states" in self.data[name]:
                declared += bytes_of(self._dataset(name, "states"))
        check_bytes(self.path, declared, self.path.stat().st_size)

    def read(self, name: str) -> Demo:
        """One demonstration, every value of it finite."""
        group = self.data[name]
        actions = self._numbers(name, "actions", np.float32)
        steps = len(actions)
        if steps == 0:
            raise DataError(f"{self.path}: {name}: 'actions' has no steps; remove this demonstration.")
        declared = group.attrs.get("num_samples", steps)
        if not np.issubdtype(np.asarray(declared).dtype, np.number) or np.size(declared) != 1 or int(declared) != steps:
            raise DataError(f"{self.path}: {name}: num_samples says {declared} steps, but 'actions' has {steps}.")
        obs = {key: self._numbers(name, f"obs/{key}", np.float32, steps) for key in self.obs_keys}
        states = self._numbers(name, "states", np.float64, steps) if "states" in group else None
        seed = group.attrs.get("seed")
        images = self.images(name, self.cameras, steps)
        return Demo(name, actions, obs, states, int(seed) if isinstance(seed, int | np.integer) else None, images)

    def images(self, name: str, cameras: Sequence[str], steps: int) -> dict[str, UInt8[np.ndarray, "t height width 3"]]:
        """What cameras saw of one demonstration of so many steps."""
        sets = {camera: self._dataset(name, f"obs/{image_key(camera)}") for camera in cameras}
        check_bytes(self.path, sum(map(bytes_of, sets.values())), self.path.stat().st_size)
        what = f"{self.path}: {name}"
        return {camera: read_pictures(found, what, camera, (steps, *self.there[camera])) for camera, found in sets.items()}

    def _numbers(self, name: str, where: str, dtype: Any, steps: int | None = None) -> np.ndarray:
        """(t d) finite numbers of a demonstration, `steps` rows of them where that is given."""
        dataset = self._dataset(name, where)
        what = f"{self.path}: {name}: '{where}'"
        if dataset.dtype.kind not in "fiub":
            raise DataError(f"{what} holds {dataset.dtype} instead of numbers; choose other keys, or convert it.")
        if dataset.ndim not in ((1, 2) if where.startswith("obs/") else (2,)) or 0 in dataset.shape[1:]:
            raise DataError(f"{what} has shape {dataset.shape}; one row of numbers per step, (t, d), is needed.")
        if steps is not None and len(dataset) != steps:
            raise DataError(f"{what} has {len(dataset)} steps, but 'actions' has {steps}; they must be as long.")
        try:
            stored = dataset[()].reshape(len(dataset), *(dataset.shape[1:] or (1,)))
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"{what} cannot be read ({short(error)}); the file is damaged, copy it again.") from error
        if self.finite:
            check_finite(what, stored)
        return rounded(what, stored, dtype)

    def _dataset(self, name: str, where: str) -> h5py.Dataset:
        """A data set of a demonstration, which lies in this very file."""
        group = self.data[name]
        *parents, key = where.split("/", 1) if where.startswith("obs/") else (where,)
        if parents:
            group = subgroup(self.path, group, parents[0], "every demonstration needs observations.", f"data/{name}/obs")
        if key not in group:
            raise DataError(f"{self.path}: {name}: no '{where}'. {suggest(key, members(group))}")
        refuse_link(self.path, group, key, f"data/{name}/{where}")
        dataset = group[key]
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(f"{self.path}: {name}: '{where}' is a group, not numbers; choose one of its members.")
        if dataset.shape is None or dataset.is_virtual or dataset.external:
            raise DataError(f"{self.path}: {name}: '{where}' is empty or keeps its values in another file; copy them into it.")
        return dataset


def _is_demo(data: h5py.Group, name: str) -> bool:
    """Whether a member of 'data' is a demonstration. A link is: reading it then says what is wrong with it."""
    return data.get(name, getclass=True, getlink=True) is not h5py.HardLink or isinstance(data[name], h5py.Group)


def _obs_members(demo: h5py.Group) -> set[str]:
    """Names of a demonstration's observations; none where reading it will say what is wrong with them."""
    there = isinstance(demo, h5py.Group) and isinstance(demo.get("obs", getlink=True), h5py.HardLink)
    return set(demo["obs"]) if there and isinstance(demo["obs"], h5py.Group) else set()


def _is_rows_of_numbers(obs: h5py.Group, key: str) -> bool:
    if not isinstance(obs.get(key, getlink=True), h5py.HardLink):
        return False
    value = obs[key]
    return isinstance(value, h5py.Dataset) and value.ndim in (1, 2) and value.dtype.kind in "fiub" and 0 not in value.shape[1:]


def _check_same_shapes(path: Path, demos: Sequence[Demo], obs_keys: Sequence[str]) -> None:
    """Every demonstration must have as many action and observation dimensions as the first."""
    first = demos[0]
    for demo in demos[1:]:
        pairs = [("actions", first.actions, demo.actions)]
        pairs += [(f"obs/{key}", first.obs[key], demo.obs[key]) for key in obs_keys]
        for where, expected, found in pairs:
            if found.shape[1] != expected.shape[1]:
                raise DataError(
                    f"{path}: {demo.name}: '{where}' has {found.shape[1]} dimensions, but {first.name} has "
                    f"{expected.shape[1]}; a file must hold one kind of robot and task."
                )


def _read_mask(path: Path, mask: Any, split: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """The names that a mask lists, in natural order, or None where there is no such mask."""
    if split not in mask:
        return None
    where = f"mask/{split}"
    refuse_link(path, mask, split, where)
    dataset = mask[split]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind not in "OS":
        raise DataError(f"{path}: '{where}' is not a list of names such as demo_0.")
    if len(dataset) > len(names):
        raise DataError(f"{path}: '{where}' lists {len(dataset)} demonstrations, but the file has {len(names)}.")
    check_bytes(path, bytes_of(dataset), path.stat().st_size)
    listed = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in dataset[()]]
    if absent := sorted(set(listed) - set(names), key=natural):
        raise DataError(f"{path}: '{where}' names {absent[0]}, which is not in the file. {suggest(absent[0], names)}")
    if len(set(listed)) != len(listed):
        raise DataError(f"{path}: '{where}' names a demonstration twice.")
    return tuple(sorted(listed, key=natural))


def _read_env_args(path: Path, data: h5py.Group) -> JSON:
    """What the file says of its environment: the JSON object in the attribute env_args, or nothing."""
    text = data.attrs.get("env_args")
    if text is None:
        return {}
    try:
        env_args = json.loads(text)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: the attribute env_args of 'data' is not JSON ({short(error)}).") from error
    if not isinstance(env_args, dict):
        raise DataError(f"{path}: the attribute env_args of 'data' is not a JSON object.")
    if found := nonsense(env_args):
        raise DataError(f"{path}: in the attribute env_args of 'data', {found}: correct it, or leave it out.")
    return env_args
