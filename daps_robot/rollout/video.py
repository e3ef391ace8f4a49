"""Films of an evaluation's first successes and failures, and of recorded states, where rendering works.

The chosen episodes of an evaluation are played again from their seeds, with the actions that were executed. Cameras are in a
process of their own: a broken GL driver cannot take anything else down, and no simulator of an evaluation has one. Rendering
MuJoCo without a screen needs EGL (`apt-get install libegl1 libgl1`; with or without GPU) or OSMesa (`libosmesa6`); where the
variable MUJOCO_GL does not choose, both are tried.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daps_robot.errors import DapsRobotError, SimulationError
from daps_robot.rollout.channel import ProcessWorker
from daps_robot.rollout.player import Clip
from daps_robot.rollout.results import EpisodeRecord, Evaluation
from daps_robot.rollout.simulation import find_spec


@dataclass(frozen=True)
class Films:
    """The files written, and why there are none or fewer than asked for (None where all is well)."""

    paths: tuple[Path, ...]
    note: str | None = None


def choose_outcomes(records: Sequence[EpisodeRecord], count: int) -> list[EpisodeRecord]:
    """The first successes and the first failures, half and half where there are enough of both, by index."""
    won = [record for record in records if record.success]
    lost = [record for record in records if not record.success]
    failures = min(len(lost), max(count // 2, count - len(won)))
    return sorted(won[: count - failures] + lost[:failures], key=lambda record: record.index)


def film_outcomes(evaluation: Evaluation, folder: Path, *, count: int = 2, env_kwargs: Mapping[str, Any] | None = None) -> Films:
    """Films up to `count` episodes into `folder`, as `episode_003_success.mp4`; never raises where rendering fails.

    Args:
        evaluation: with its executed actions.
        folder: made where missing.
        count: how many films at most.
        env_kwargs: further arguments of `gymnasium.make`, as given to the evaluation.
    """
    chosen = choose_outcomes(evaluation.records, count)
    if not chosen:
        return Films(())
    if any(record.name is not None for record in chosen):
        return Films((), "no videos: replayed demonstrations do not start from a seed; film an evaluation")
    paths: list[Path] = []
    try:
        camera = open_camera(evaluation.env_id, dict(env_kwargs or {}))
    except SimulationError as error:
        return Films((), f"no videos: {error}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strayed = []
        for record in chosen:
            path = folder / f"episode_{record.index:03d}_{'success' if record.success else 'failure'}.mp4"
            camera.submit("film", record.seed, evaluation.actions[record.index], str(path))
            if camera.result() != record.success:
                strayed.append(record.index)
            paths.append(path)
    except (SimulationError, OSError) as error:
        return Films(tuple(paths), f"{len(paths)} of {len(chosen)} videos: {error}")
    finally:
        camera.close()
    if strayed:
        return Films(
            tuple(paths),
            f"episode {', '.join(map(str, strayed))} ended otherwise when played again for its film: the environment's "
            "reset(seed) does not give the same start state",
        )
    return Films(tuple(paths))


def film_states(env_id: str, groups: Sequence[Sequence[Clip]], folder: Path) -> Films:
    """Films recorded states into `folder`, a film for each group of clips; never raises where rendering fails.

    Args:
        env_id: whose `reset` takes `options={"state": state}`, and whose `flat_state()` gives such a state.
        groups: of clips that are shown side by side.
        folder: which is there.

    Returns:
        `group_000.mp4`, …: of all groups, or of the first ones where it failed at one.
    """
    paths: list[Path] = []
    try:
        with closing(open_camera(env_id, {})) as camera:
            for index, clips in enumerate(groups):
                path = folder / f"group_{index:03d}.mp4"
                camera.submit("film_states", list(clips), str(path))
                camera.result()
                paths.append(path)
    except (DapsRobotError, OSError) as error:
        return Films(tuple(paths), str(error))
    return Films(tuple(paths))


def open_camera(env_id: str, env_kwargs: Mapping[str, Any]) -> ProcessWorker:
    """A process with a `Camera` in it.

    Raises:
        SimulationError: where nothing renders, with what each attempt said, or no film could be written.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise SimulationError('imageio-ffmpeg is not installed (pip install "daps-robot[sim]")')
    spec = find_spec(env_id)
    chosen = os.environ.get("MUJOCO_GL")
    backends = ["egl", "osmesa"] if sys.platform == "linux" and not chosen else [chosen or ""]
    reasons = []
    for backend in backends:
        environment = {"MUJOCO_GL": backend} if backend else {}
        camera = ProcessWorker(
            "daps_robot.rollout.player:Camera", spec, dict(env_kwargs), environment=environment, keep_stderr=True
        )
        try:
            camera.result()
        except SimulationError as error:
            camera.close()
            reasons.append(f"MUJOCO_GL={backend}: {error}" if backend else str(error))
        except BaseException:
            camera.close()
            raise
        else:
            return camera
    raise SimulationError(
        f"{env_id} cannot be rendered here ({'; '.join(reasons)}); MuJoCo needs EGL (libegl1) or OSMesa (libosmesa6)"
    )
