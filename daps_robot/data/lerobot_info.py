"""meta/info.json of a LeRobotDataset v3: what it says, checked before anything is done with it."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from daps_robot.data.cameras import MAX_SIDE
from daps_robot.data.files import shown
from daps_robot.data.hdf5 import listing, short, suggest
from daps_robot.errors import DataError

ACTION = "action"
OBSERVATION = "observation."
ENVIRONMENT = "observation.environment_state"
"""Where things are, which a policy with cameras is not shown by default: it is to see that for itself."""

_NUMBERS = ("float16", "float32", "float64", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
_MAX_BYTES = 4 * 2**20
_MAX_PATH, _MAX_PART = 1000, 200
_USUAL = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


@dataclass(frozen=True)
class Camera:
    """A feature that is pictures in colour.

    Attributes:
        key: of the feature.
        filmed: whether they are frames of films, else they are pictures in the data files.
        size: height and width.
    """

    key: str
    filmed: bool
    size: tuple[int, int]


@dataclass(frozen=True)
class Info:
    """What meta/info.json says.

    Attributes:
        path: of the data set's folder.
        fps: steps a second.
        data_path: template of the data files' paths, which lead to nowhere but into the folder.
        dtypes: of all features.
        dims: how many numbers a step has, of the features that are rows of numbers.
        episodes, frames: how many there should be.
        splits: name -> "first:end" of episodes.
        robot: its type, where it is named.
        cameras: name -> camera, by `camera_name`, sorted.
        video_path: template of the films' paths, not looked at yet.
    """

    path: Path
    fps: float
    data_path: str
    dtypes: Mapping[str, str]
    dims: Mapping[str, int]
    episodes: int
    frames: int
    splits: Mapping[str, str]
    robot: str | None
    cameras: Mapping[str, Camera]
    video_path: object

    @property
    def observations(self) -> list[str]:
        """Features under "observation." that are rows of numbers."""
        return sorted(key for key in self.dims if key.startswith(OBSERVATION))

    def data_file(self, chunk: int, file: int) -> Path:
        """A data file of the folder."""
        return self.path / self.data_path.format(chunk_index=chunk, file_index=file)

    def film(self, key: str, chunk: int, file: int) -> Path:
        """A film of the folder.

        Raises:
            DataError: the template leads elsewhere.
        """
        fields = {"video_key": key, "chunk_index": chunk, "file_index": file}
        template = _checked_template(self.path / "meta" / "info.json", "video_path", self.video_path, fields)
        return self.path / template.format(**fields)


def is_lerobot(path: Path) -> bool:
    """Whether a path is a LeRobotDataset's folder, of whatever version."""
    return (path / "meta" / "info.json").is_file()


def read_info(path: Path) -> Info:
    """The metadata of a folder.

    Raises:
        DataError: they are damaged, of another version, or lead out of the folder.
    """
    file = path / "meta" / "info.json"
    if file.stat().st_size > _MAX_BYTES:
        raise DataError(f"{file} is larger than {_MAX_BYTES // 2**20} MiB: that is no LeRobot metadata.")
    try:
        info = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({short(error)}); copy or download it again.") from error
    if not isinstance(info, dict):
        raise DataError(f"{file} is not a JSON object.")
    _check_version(path, info.get("codebase_version"))
    features = info.get("features")
    if not isinstance(features, dict) or not all(_is_feature(*item) for item in features.items()):
        raise DataError(f"{file}: 'features' is not an object of names, each with a dtype and a shape of positive whole numbers.")
    rows = {key: feature for key, feature in features.items() if feature["dtype"] in _NUMBERS and len(feature["shape"]) < 2}
    if ACTION not in rows:
        raise DataError(f"{file}: no feature '{ACTION}' that is a row of numbers. {listing('There are', sorted(features))}")
    fps, splits = info.get("fps"), info.get("splits") or {}
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise DataError(f"{file}: fps is {_shown(fps)}, not a positive number.")
    for name in ("total_episodes", "total_frames"):
        if type(info.get(name)) is not int:
            raise DataError(f"{file}: {name} is {_shown(info.get(name))}, not a whole number.")
    if not isinstance(splits, dict):
        raise DataError(f"{file}: 'splits' is not an object such as {{'train': '0:50'}}.")
    robot = info.get("robot_type")
    return Info(
        path,
        float(fps),
        _checked_template(file, "data_path", info.get("data_path"), ("chunk_index", "file_index")),
        {key: feature["dtype"] for key, feature in features.items()},
        {key: feature["shape"][0] if feature["shape"] else 1 for key, feature in rows.items()},
        info["total_episodes"],
        info["total_frames"],
        splits,
        robot if isinstance(robot, str) else None,
        _cameras(features),
        info.get("video_path"),
    )


def camera_name(key: str) -> str:
    """What a feature's camera is called: "observation.images.top" top, "observation.image" image; other text as it is."""
    return key.removeprefix(OBSERVATION).removeprefix("images.")


def _cameras(features: Mapping[str, Any]) -> dict[str, Camera]:
    """Those of features; of two that would be called the same, the second in alphabetical order keeps its key.

    Height and width are told from the three colours, first or last: the names of the axes are wrong in some data sets.
    """
    found: dict[str, Camera] = {}
    for key in sorted(features):
        dtype, shape = features[key]["dtype"], features[key]["shape"]
        if not key.startswith(OBSERVATION) or re.search(r"[/\\]", key) or dtype not in ("video", "image"):
            continue
        if len(shape) != 3 or (shape[0] == 3) == (shape[2] == 3) or max(shape) > MAX_SIDE:
            continue
        size = (shape[0], shape[1]) if shape[2] == 3 else (shape[1], shape[2])
        name = camera_name(key)
        found[key if name in found or not name else name] = Camera(key, dtype == "video", size)
    return dict(sorted(found.items()))


def _check_version(path: Path, version: object) -> None:
    if re.fullmatch(r"v?3\.\d+", str(version)):
        return
    if re.fullmatch(r"v?[12]\.\d+", str(version)):
        raise DataError(
            f"{path} is a LeRobotDataset {version}; version 3 is read. Convert it where lerobot is installed (older than "
            f"v2.1: to that first):\npython -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=local/{path.absolute().name} "
            f"--root={path} --push-to-hub=false"
        )
    raise DataError(f"{path}: meta/info.json has codebase_version {_shown(version)}; LeRobotDataset v3.0 is read.")


def _shown(value: object) -> str:
    return shown(value)[:80]


def _is_feature(name: str, feature: object) -> bool:
    """Names are for messages too: they must be printable, and not endless."""
    if not name.isprintable() or len(name) > 100 or not isinstance(feature, dict):
        return False
    dtype, shape = feature.get("dtype"), feature.get("shape")
    if not isinstance(dtype, str) or not dtype.isprintable() or len(dtype) > 100:
        return False
    return isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)


def _checked_template(file: Path, what: str, template: object, fields: Collection[str]) -> str:
    """A path, if it can only lead to files inside the folder: `str.format` would follow attributes and pad without end."""
    try:
        parts = list(string.Formatter().parse(template)) if isinstance(template, str) else []
    except ValueError:
        parts = []
    named = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    plain = all(re.fullmatch("" if name == "video_key" else r"(0?\dd?)?", str(spec)) and not conv for name, spec, conv in named)
    path = PurePosixPath(str(template))
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in str(template) and str(template).isprintable()
    short_enough = len(str(template)) <= _MAX_PATH and all(len(part) <= _MAX_PART for part in path.parts)
    if sorted(name for name, *_ in named) != sorted(fields) or not plain or not inside or not short_enough:
        raise DataError(f"{file}: {what} is {_shown(template)}; a path inside the folder is needed, such as '{_USUAL[what]}'.")
    return str(template)


def resolve_keys(info: Info, wanted: Sequence[str] | None, seeing: bool) -> tuple[str, ...]:
    """The observation keys to read: those that are wanted, else all under "observation." that are rows of numbers.

    Beside cameras (`seeing`) without `ENVIRONMENT`.
    """
    if wanted is None:
        found = tuple(key for key in info.observations if not (seeing and key == ENVIRONMENT))
        if not found:
            raise DataError(
                f"{info.path}: no feature under 'observation.' is a row of numbers. {listing('There are', sorted(info.dtypes))}"
            )
        return found
    for key in wanted:
        if key in info.dims:
            continue
        if key in info.dtypes:
            raise DataError(f"{info.path}: '{key}' ({info.dtypes[key]}) is no row of numbers, and only those are read.")
        raise DataError(f"{info.path}: no feature '{key}'. {suggest(key, sorted(info.dims))}")
    return tuple(wanted)


def read_splits(info: Info) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names of the train and validation splits; None where info.json leaves them open, as by calling all of it "train"."""
    found: dict[str, tuple[str, ...]] = {}
    for name, text in info.splits.items():
        limits = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(text))
        if limits is None or not int(limits[1]) <= int(limits[2]) <= info.episodes:
            raise DataError(
                f"{info.path}: meta/info.json: the split {_shown(name)} is {_shown(text)}; a range of its {info.episodes} "
                "episodes is needed, such as 0:40."
            )
        found[name] = tuple(f"demo_{i}" for i in range(int(limits[1]), int(limits[2])))
    valid = next((found[name] for name in ("valid", "val", "validation") if name in found), None)
    train = found.get("train")
    return (None, None) if valid is None and train is not None and len(train) == info.episodes else (train, valid)
