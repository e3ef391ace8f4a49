"""robomimic's human demonstrations by name: state observations, robosuite 1.5, from its repository on the Hugging Face hub.

The checksum of a file is the one that the hub states when it is downloaded (see `download.hub_file`): it finds what was damaged
or exchanged on the way from the hub, not what the repository's owners changed there. For that, every run keeps the checksum
of its data in config.json.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from daps_robot.data.catalog import GeneratedDataset
from daps_robot.data.download import download, hub_file

REPOSITORY = "https://huggingface.co/datasets/robomimic/robomimic_datasets"
_KINDS = {"ph": "200 demonstrations of one proficient person", "mh": "300 demonstrations of six people, skilled and less so"}


def _download(name: str, path: Path) -> None:
    found = hub_file(REPOSITORY, name)
    download(found.url, path, found.sha256, found.size)
    print(f"SHA-256 {found.sha256}, as the hub states it")


def _dataset(task: str, kind: str, env_id: str) -> GeneratedDataset:
    get = partial(_download, f"v1.5/{task}/{kind}/low_dim_v15.hdf5")
    return GeneratedDataset(f"{task}-{kind}", env_id, f"robomimic's {task}: {_KINDS[kind]}", get)


LIFT_PH = _dataset("lift", "ph", "daps_robot/Lift-v0")
CAN_PH = _dataset("can", "ph", "daps_robot/Can-v0")
CAN_MH = _dataset("can", "mh", "daps_robot/Can-v0")
SQUARE_PH = _dataset("square", "ph", "daps_robot/Square-v0")
SQUARE_MH = _dataset("square", "mh", "daps_robot/Square-v0")
