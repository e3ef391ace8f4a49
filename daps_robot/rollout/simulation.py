"""An environment by its Gymnasium id: finding, making and reading it. No torch here (see `worker`)."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from jaxtyping import Bool, Float

from daps_robot.control import within_bounds
from daps_robot.errors import SimulationError

SUCCESS_KEYS = ("success", "is_success")
"""Where an environment's `info` says that its task is done: the first that is there counts."""

EXPERT = ("make_expert", "get_state", "set_state")
"""What an environment needs for its scripted expert to look ahead."""


@dataclass(frozen=True)
class Layout:
    """The sizes of an environment's interface.

    Attributes:
        obs_dims: observation key -> number of values.
        low, high: (a,) the bounds of the actions, in the environment's units.
        dtype: of the actions.
        pictures: observation key -> height and width, of those that are RGB pictures.
    """

    obs_dims: dict[str, int]
    low: Float[np.ndarray, " a"]
    high: Float[np.ndarray, " a"]
    dtype: str
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)


def find_spec(env_id: str) -> EnvSpec:
    """The registration of an environment; "module:Id" imports the module first.

    An id "namespace/Name" that is not registered yet is looked for behind the `gymnasium.envs` entry point of that
    name, which Gymnasium itself has not followed since 1.0.

    Raises:
        SimulationError: for an unknown id, with near misses, or a module that cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if name not in gym.registry:
            for plugin in entry_points(group="gymnasium.envs", name=name.partition("/")[0]):
                plugin.load()()
        return gym.spec(name)
    except (ImportError, gym.error.Error) as error:
        near = [] if "Did you mean" in str(error) else difflib.get_close_matches(name, list(gym.registry), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise SimulationError(f"environment {env_id} is not to be had: {error}{hint}") from error


def make_env(spec: EnvSpec, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """The environment of a registration.

    Raises:
        SimulationError: where it cannot be made (its simulator is not installed, an argument that it does not take).
    """
    try:
        return gym.make(spec, disable_env_checker=True, **env_kwargs)
    except SimulationError:
        raise
    except Exception as error:
        raise SimulationError(f"environment {spec.id} cannot be made: {type(error).__name__}: {error}") from error


def with_cameras(
    spec: EnvSpec, env_kwargs: Mapping[str, Any], cameras: Sequence[str], size: tuple[int, int] | None
) -> dict[str, Any]:
    """Arguments of an environment under which it observes the pictures of cameras (under `image_key` of each).

    An environment that takes `cameras` and `camera_size`, as ours do, is given them; of any other the pictures must be among
    its observations as it is.

    Raises:
        SimulationError: its module cannot be imported.
    """
    kwargs = dict(env_kwargs)
    if not cameras:
        return kwargs
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        takes = creator is not None and "cameras" in inspect.signature(creator).parameters
    except Exception as error:
        raise SimulationError(f"environment {spec.id} cannot be made: {type(error).__name__}: {error}") from error
    return {"cameras": tuple(cameras), "camera_size": size[0], **kwargs} if takes and size else kwargs


def as_dict(observation: Any) -> Mapping[str, Any]:
    """A dictionary observation as it is; any other as {"state": observation}."""
    return observation if isinstance(observation, Mapping) else {"state": observation}


def flatten(observation: Mapping[str, Any], keys: Sequence[str]) -> Float[np.ndarray, " o"]:
    """The values of `keys` side by side, as float32; empty for no keys."""
    parts = [np.asarray(observation[key], dtype=np.float32).ravel() for key in keys]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def succeeded(info: Mapping[str, Any], env_id: str) -> bool:
    """Whether a step's `info` reports success.

    Raises:
        SimulationError: where it does not say either way.
    """
    for key in SUCCESS_KEYS:
        if key in info:
            return bool(info[key])
    raise SimulationError(
        f"{env_id} does not say whether its task is done: `info` has none of {', '.join(SUCCESS_KEYS)}; "
        'wrap it so that info["success"] is a bool'
    )


def score_of(info: Mapping[str, Any], success: bool, env_id: str) -> float:
    """How well the task is done after a step: `info["score"]`, or 1 for success and 0 without where there is none.

    Raises:
        SimulationError: for a score outside [0, 1].
    """
    score = float(info.get("score", success))
    if not 0.0 <= score <= 1.0:
        raise SimulationError(f'{env_id} reports info["score"] = {score}; scores go from 0 to 1: wrap it so that they do')
    return score


def layout_of(env: gym.Env[Any, Any], env_id: str) -> Layout:
    """The sizes of an environment's observations and actions.

    Raises:
        SimulationError: for spaces other than boxes of numbers (observations: or a dictionary of such).
    """
    space, action = env.observation_space, env.action_space
    parts = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"state": space}
    for name, part in [*parts.items(), ("the action", action)]:
        if not isinstance(part, gym.spaces.Box):
            raise SimulationError(f"{env_id}: the space of {name} is {part}; only Box spaces are supported")
    assert isinstance(action, gym.spaces.Box)
    if len(action.shape) != 1:
        raise SimulationError(f"{env_id}: actions have shape {action.shape}; only flat vectors are supported")
    dims = {name: math.prod(part.shape or ()) for name, part in parts.items()}
    boxes = {name: (part.shape or (), part.dtype) for name, part in parts.items()}
    pictures = {
        name: (shape[0], shape[1])
        for name, (shape, dtype) in boxes.items()
        if dtype == np.uint8 and len(shape) == 3 and shape[2] == 3
    }
    return Layout(dims, action.low, action.high, str(action.dtype), pictures)


def fit_actions(
    actions: Float[np.ndarray, "*rows a"], layout: Layout
) -> tuple[Float[np.ndarray, "*rows a"], Bool[np.ndarray, "*rows a"]]:
    """Actions within the environment's bounds and in its dtype, and where that took clipping (see `within_bounds`)."""
    fitted, outside = within_bounds(actions, layout.low, layout.high)
    return fitted.astype(layout.dtype), outside
