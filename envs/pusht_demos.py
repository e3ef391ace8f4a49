"""The human demonstrations of Push-T (Chi et al. 2023, 206 of them, 25 650 steps) in robomimic's HDF5 layout.

They are read from `pusht.npz`, an archive of the arrays of Diffusion Policy's `pusht_cchi_v7_replay.zarr`, as it comes:

    action        (t, 2)  pixels
    state         (t, 5)  agent x, y, block x, y (pixels), block angle (radians), before each action
    episode_ends  (n,)    the step after the last of each demonstration

Other arrays are not looked at. Observations are computed from the states by the environment's own `observe`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from daps_robot.data.catalog import data_folders, find_file
from daps_robot.data.demo_writer import write_demos
from daps_robot.data.npz import read_npz
from daps_robot.envs.pusht import PushTEnv, observe
from daps_robot.errors import DataError
from daps_robot.types import Demo

SOURCE_FILE = "pusht.npz"
SOURCE = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
VALID_FRACTION = 0.1
MAX_STEPS = 1_000_000
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {"action": ("fiu", (2,)), "state": ("fiu", (5,)), "episode_ends": ("iu", ())}
"""Name -> the kinds of numbers that it may hold, and its shape without the first axis."""


def convert_pusht(out: Path) -> None:
    """Writes the file of demonstrations; every tenth is for validation.

    Raises:
        DataError: pusht.npz is not where data sets are looked for, or is damaged or something else, or `out` cannot be written.
    """
    source = find_file(SOURCE_FILE)
    if source is None:
        raise DataError(
            f"{SOURCE_FILE} is not in {' or '.join(map(str, data_folders()))}. Its origin is {SOURCE},\n"
            "whose zarr archive docs/tasks.md shows how to turn into it; put it there, or set DAPS_ROBOT_DATA to its folder."
        )
    env_args = {"env_name": "PushT", "type": 2, "env_kwargs": {}, "gymnasium_id": PushTEnv.env_id}
    write_demos(out, read_pusht(source), VALID_FRACTION, env_args)


def read_pusht(path: Path) -> list[Demo]:
    """The demonstrations of pusht.npz.

    Raises:
        DataError: the file is damaged, or its arrays are not those of Push-T.
    """
    arrays = {name: _read(path, name) for name in _ARRAYS}
    actions, states = arrays["action"].astype(np.float32), arrays["state"].astype(np.float64)
    ends = arrays["episode_ends"].astype(np.int64)
    starts = np.append(0, ends[:-1])
    if not len(ends) or (starts >= ends).any() or not len(actions) == len(states) == ends[-1]:
        raise DataError(
            f"{path}: {len(actions)} actions, {len(states)} states and {len(ends)} episode_ends do not fit; "
            "the ends must increase from 1 to the number of steps"
        )
    for name, values in (("action", actions), ("state", states)):
        if not (finite := np.isfinite(values).all(axis=1)).all():
            raise DataError(f"{path}: '{name}' is NaN or infinite at step {int(np.argmin(finite))}; download the data again")
    spans = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return [Demo(f"demo_{i}", actions[span], observe(states[span]), states[span]) for i, span in enumerate(spans)]


def _read(path: Path, name: str) -> np.ndarray:
    kinds, columns = _ARRAYS[name]

    def check(shape: tuple[int, ...], dtype: np.dtype) -> None:
        if not shape or shape[1:] != columns or shape[0] > MAX_STEPS or dtype.kind not in kinds:
            raise DataError(f"{path}: '{name}' is {dtype} of shape {shape}; Push-T's are numbers of shape {('t', *columns)}")

    return read_npz(path, name, check, "docs/tasks.md says how to make it")
