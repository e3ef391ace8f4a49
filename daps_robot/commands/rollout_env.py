"""The environment that a policy is to be rolled out in: which one, and, before anything is trained, whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from daps_robot.data.cameras import image_key
from daps_robot.data.demos import DemoSet
from daps_robot.data.env_args import env_differences, named_env
from daps_robot.errors import ConfigError, SimulationError
from daps_robot.rollout.channel import ProcessWorker
from daps_robot.rollout.simulation import Layout, find_spec, layout_of, make_env, with_cameras
from daps_robot.rollout.vector import worker_count


def rollout_env(demos: DemoSet, env: str | None) -> str | None:
    """The Gymnasium id to roll out in: the given one, else what the data set names; None for "none", or where it names none.

    Raises:
        ConfigError: the data set names one of our environments, and was recorded in another set-up of it.
    """
    if env is None and (differences := env_differences(demos.env_args)):
        named = named_env(demos.env_args)
        raise ConfigError(
            f"{demos.path} was recorded in another set-up than {named} has here ({'; '.join(differences[:3])}), so rollouts\n"
            f"would say little of it. Pass --env none to do with the held-out error, or --env {named} to roll out all the same."
        )
    return demos.env_id if env is None else None if env == "none" else env


def check_rollout_env(demos: DemoSet, env: str | None, obs_keys: Sequence[str]) -> None:
    """Before a training: whether rollouts could follow. Without the simulator, that is left to the machine that has it.

    Args:
        demos: what is learned from.
        env: as `rollout_env` takes it.
        obs_keys: that the environment will have to observe.

    Raises:
        ConfigError: as `rollout_env`; or observations or actions of the environment are not those of the demonstrations.
        SimulationError: an environment that was asked for is not registered, has no numbers to observe or to act by, or does not
            draw the pictures that were read.
    """
    env_id = rollout_env(demos, env)
    if env_id is None:
        return
    if env is not None:
        find_spec(env_id)
    try:
        made = make_env(find_spec(env_id), seeing(demos, env_id))
    except SimulationError as error:
        print(f"whether {env_id} fits was not checked: {error}", flush=True)
        return
    with closing(made):
        check_layout(demos, layout_of(made, env_id), env_id, obs_keys)
    check_drawing(demos, env_id)


def study_env(demos: DemoSet, env: str | None) -> str:
    """The environment of a study, which cannot do without rollouts.

    Raises:
        ConfigError: there is none, or it does not fit the demonstrations.
        SimulationError: it cannot be had here.
    """
    if env == "none":
        raise ConfigError("--env none: policies are ranked by their rollouts; compare_codes.py compares tokenizers without")
    env_id = rollout_env(demos, env)
    if env_id is None:
        raise ConfigError(f"{demos.path} names no environment to roll out in: pass --env")
    check_layout(demos, look_at(env_id, demos), env_id, demos.obs_keys)
    return env_id


def look_at(env_id: str, demos: DemoSet) -> Layout:
    """The sizes of the observations and actions of an environment, which observes the cameras whose pictures were read.

    Raises:
        SimulationError: it cannot be had here, or draws no pictures here.
    """
    with closing(make_env(find_spec(env_id), seeing(demos, env_id))) as env:
        layout = layout_of(env, env_id)
    check_drawing(demos, env_id)
    return layout


def seeing(demos: DemoSet, env_id: str) -> dict[str, Any]:
    """Arguments of an environment under which it observes the cameras whose pictures were read."""
    return with_cameras(find_spec(env_id), {}, demos.seen, demos.picture_size)


def check_drawing(demos: DemoSet, env_id: str) -> None:
    """Raises SimulationError where pictures were read, and the environment does not draw such pictures here."""
    if not demos.seen:
        return
    keys = [image_key(camera) for camera in demos.seen]
    looker = ProcessWorker(
        "daps_robot.rollout.player:FirstLook", find_spec(env_id), seeing(demos, env_id), keys, keep_stderr=True
    )
    try:
        looker.result()
    except SimulationError as error:
        raise SimulationError(
            f"{error}\nA policy with cameras is rolled out where they draw; --env none does without."
        ) from error
    finally:
        looker.close()


def check_layout(demos: DemoSet, layout: Layout, env_id: str, obs_keys: Sequence[str]) -> None:
    """Raises ConfigError where demonstrations do not fit an environment."""
    remedy = "choose others with --obs-keys, or pass --env none to do without rollouts"
    for key in obs_keys:
        if key not in layout.obs_dims:
            raise ConfigError(
                f"{env_id} does not observe '{key}' of {demos.path}; it observes {', '.join(layout.obs_dims)}: {remedy}"
            )
        if layout.obs_dims[key] != demos.obs_dims[key]:
            raise ConfigError(
                f"'{key}' has {demos.obs_dims[key]} numbers in {demos.path}, {layout.obs_dims[key]} in {env_id}: {remedy}"
            )
    for camera in demos.seen:
        size, key = layout.pictures.get(image_key(camera)), image_key(camera)
        if size != demos.picture_size:
            raise ConfigError(
                f"'{key}' is of {demos.picture_size} pixels in {demos.path}, {size or 'not observed'} in {env_id}: "
                "render the demonstrations again, or pass --env none to do without rollouts"
            )
    if len(layout.low) != demos.action_dim:
        raise ConfigError(
            f"{demos.path} has actions of {demos.action_dim} dimensions, {env_id} takes {len(layout.low)}: "
            "pass another --env, or --env none to do without rollouts"
        )


def check_counts(workers: int | None, max_steps: int | None) -> None:
    """Raises ConfigError for numbers that no rollout could have."""
    worker_count(workers, 1)
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"--max-steps {max_steps}: an episode has one step or more")
