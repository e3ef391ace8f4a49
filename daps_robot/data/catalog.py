"""Data-set names: where a data set lies, or how it is made or fetched.

A name is looked for as the file `<name>.hdf5` or the LeRobot folder `<name>` in the directory of the environment variable
DAPS_ROBOT_DATA, then in `./data`; what is in neither and can be generated or downloaded goes to `./data/<name>.hdf5`. Anything
with a path separator or a suffix, and a LeRobot folder in the working directory, is the user's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daps_robot.data.lerobot_info import is_lerobot
from daps_robot.errors import ConfigError, DataError
from daps_robot.registry import Registry


@dataclass(frozen=True)
class GeneratedDataset:
    """Demonstrations that a scripted expert collects in simulation, or that are converted from another layout, or downloaded.

    Attributes:
        name: what `--dataset` takes.
        env_id: the Gymnasium environment that they come from.
        description: one line for people.
        generate: writes the complete HDF5 file at a path.
    """

    name: str
    env_id: str
    description: str
    generate: Callable[[Path], None]


DATASETS: Registry[GeneratedDataset] = Registry("data set", "daps_robot.datasets")


def is_path(dataset: str) -> bool:
    """Whether `--dataset` names a file or folder rather than an entry of the catalogue."""
    return Path(dataset).suffix != "" or os.sep in dataset or is_lerobot(Path(dataset))


def dataset_name(dataset: str) -> str:
    """What runs on this data set are filed under."""
    if not is_path(dataset):
        return dataset
    path = Path(dataset).absolute()
    return path.name if is_lerobot(path) else path.stem


def locate(dataset: str) -> Path | None:
    """The file or folder of a data set if it exists, without generating it."""
    if is_path(dataset):
        return Path(dataset)
    folders = (folder / dataset for folder in data_folders() if is_lerobot(folder / dataset))
    return find_file(f"{dataset}.hdf5") or next(folders, None)


def data_folders() -> list[Path]:
    """Where data sets are looked for: the folder that DAPS_ROBOT_DATA names, then ./data."""
    return [Path(folder) for folder in (os.environ.get("DAPS_ROBOT_DATA"), "data") if folder]


def find_file(name: str) -> Path | None:
    """A file in the first of `data_folders` that has it."""
    return next((folder / name for folder in data_folders() if (folder / name).is_file()), None)


def fetch(dataset: str) -> Path:
    """The file or folder of a data set, generated or downloaded where it is not there yet.

    Raises:
        ConfigError: an unknown name (with the nearest one), or one that a folder of the user's has too.
        DataError: it could not be generated or downloaded here.
    """
    found = locate(dataset)
    if found is not None:
        if os.sep not in dataset and dataset in DATASETS and found.is_dir():
            raise ConfigError(
                f"{dataset} is a data set of the catalogue, and {found} a LeRobot folder: "
                f"pass --dataset {found.absolute()} for the folder, or rename it"
            )
        return found
    entry = DATASETS[dataset]
    path = Path("data") / f"{dataset}.hdf5"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create {path.parent.resolve()} for {dataset}: {error.strerror}") from error
    print(f"{dataset} is not there yet, it is put at {path} ({entry.description})", flush=True)
    entry.generate(path)
    return path
