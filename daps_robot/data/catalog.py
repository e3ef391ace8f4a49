"""Data-set names: where a data set lies, or how it is made.

A name is looked for as `<name>.hdf5` in the directory of the environment variable DAPS_ROBOT_DATA, then in `./data`; if it is in
neither and can be generated, it is generated into `./data`. Anything with a path separator or a suffix is a file of the user's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daps_robot.errors import DataError
from daps_robot.registry import Registry


@dataclass(frozen=True)
class GeneratedDataset:
    """Demonstrations that a scripted expert collects in simulation.

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
    """Whether `--dataset` names a file rather than an entry of the catalogue."""
    return Path(dataset).suffix != "" or os.sep in dataset


def dataset_name(dataset: str) -> str:
    """What runs on this data set are filed under."""
    return Path(dataset).stem if is_path(dataset) else dataset


def locate(dataset: str) -> Path | None:
    """The file of a data set if it exists, without generating it."""
    if is_path(dataset):
        return Path(dataset)
    return find_file(f"{dataset}.hdf5")


def data_folders() -> list[Path]:
    """Where data sets are looked for: the folder that DAPS_ROBOT_DATA names, then ./data."""
    return [Path(folder) for folder in (os.environ.get("DAPS_ROBOT_DATA"), "data") if folder]


def find_file(name: str) -> Path | None:
    """A file in the first of `data_folders` that has it."""
    return next((folder / name for folder in data_folders() if (folder / name).is_file()), None)


def fetch(dataset: str) -> Path:
    """The file of a data set, generated where it is not there yet.

    Raises:
        ConfigError: an unknown name (with the nearest one).
        DataError: it could not be generated here.
    """
    found = locate(dataset)
    if found is not None:
        return found
    entry = DATASETS[dataset]
    path = Path("data") / f"{dataset}.hdf5"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create {path.parent.resolve()} for {dataset}: {error.strerror}") from error
    print(f"{dataset} is not there yet; generating {path} ({entry.description})", flush=True)
    entry.generate(path)
    return path
