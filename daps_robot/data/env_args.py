"""What a file of demonstrations says of its environment (`env_args`), and whether an evaluation here would play in the same one.

robomimic's files come in two layouts. Those of robosuite up to 1.4 (robomimic's v0.1) describe the arm's controller itself:

    env_kwargs: {robots: [Panda], control_freq: 20, controller_configs: {type: OSC_POSE, control_delta: true, …}}

and those of robosuite 1.5 a controller of the whole body, of which the arm is a part:

    env_kwargs: {…, controller_configs: {type: BASIC, body_parts: {right: {type: OSC_POSE, input_type: delta, …}}}}

What a file leaves out is taken to be robosuite's default, which is what the environments of this package have.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from daps_robot.types import JSON

ENV_IDS = {
    "Lift": "daps_robot/Lift-v0",
    "PickPlaceCan": "daps_robot/Can-v0",
    "NutAssemblySquare": "daps_robot/Square-v0",
}
"""robosuite's name of a task -> the Gymnasium id of ours."""

ROBOSUITE = ("1.4", "1.5")
"""The versions whose OSC_POSE, set as below, moves the arm alike; these environments are built on the last."""

SETTINGS: dict[str, Any] = {"robots": "Panda", "gripper_types": "default", "control_freq": 20}

ARM: dict[str, Any] = {
    "type": "OSC_POSE",
    "control_delta": True,
    "input_type": "delta",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
}
"""Without input_ref_frame: the robots' bases stand as the world does, so that its two values are one and the same."""


def nonsense(env_args: JSON) -> str | None:
    """What env_args says that cannot be meant, of what is read from it; None where there is nothing of the kind."""
    kwargs = _object(env_args.get("env_kwargs"))
    for name, value in (("control_freq", kwargs.get("control_freq")), ("fps", env_args.get("fps"))):
        if value is not None and not _is_rate(value):
            return f"{name} is {_shown(value)}, not a number of steps a second between 0 and a million"
    for name in ("gymnasium_id", "env_name"):
        if not isinstance(env_args.get(name, ""), str | None):
            return f"{name} is {_shown(env_args[name])}, not a name"
    return None


def named_env(env_args: JSON) -> str | None:
    """The Gymnasium id that env_args names, itself or by robosuite's name of the task; None where it names none that is known."""
    named = env_args.get("gymnasium_id")
    return named if isinstance(named, str) else ENV_IDS.get(str(env_args.get("env_name")))


def env_differences(env_args: JSON) -> list[str]:
    """How the environment of env_args differs from ours of the same name, in words; nothing where it names none of ours."""
    if named_env(env_args) not in ENV_IDS.values():
        return []
    kwargs = _object(env_args.get("env_kwargs"))
    controller = _single(kwargs.get("controller_configs"))
    found = _version_difference(env_args.get("env_version"))
    found += [_instead(name, kwargs[name], ours) for name, ours in SETTINGS.items() if _differs(name, kwargs, ours)]
    if controller is None:
        return found
    arm = _object(controller)
    if "body_parts" in arm:
        if arm.get("type", "BASIC") != "BASIC":
            found.append(_instead("controller", arm["type"], "BASIC"))
        parts = _object(arm["body_parts"])
        arm = _object(_object(parts.get("arms", parts)).get("right"))
        if not arm:
            return [*found, "no controller of the right arm"]
    if arm.get("control_delta") is False or arm.get("input_type") == "absolute":
        found.append("absolute actions instead of relative ones")
    named = (name for name in ARM if name not in ("control_delta", "input_type"))
    return found + [_instead(name, arm[name], ARM[name]) for name in named if _differs(name, arm, ARM[name])]


def rate_of(env_args: JSON) -> float | None:
    """Steps a second, where env_args says so (env_kwargs.control_freq of robosuite, else fps)."""
    rate = _object(env_args.get("env_kwargs")).get("control_freq")
    rate = env_args.get("fps") if rate is None else rate
    return float(rate) if _is_rate(rate) else None


def _is_rate(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def _version_difference(stated: object) -> list[str]:
    """Of robosuite, where a version is stated."""
    version = re.match(r"\d+\.\d+(?!\d)", str(stated))
    return [] if stated is None or (version and version[0] in ROBOSUITE) else [_instead("robosuite", stated, ROBOSUITE[-1])]


def _differs(name: str, found: JSON, ours: Any) -> bool:
    """Whether a setting that is stated is another than ours; a number may be given once for each axis."""
    value = _single(found.get(name, ours))
    if name == "gripper_types" and value in (None, "PandaGripper"):
        return False
    if isinstance(value, list) and isinstance(ours, int):
        return any(item != ours for item in value)
    return bool(value != ours)


def _instead(name: str, found: object, ours: object) -> str:
    return f"{name} {_shown(_single(found))} instead of {ours}"


def _shown(value: object) -> str:
    text = " ".join(str(value).split())
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _single(value: Any) -> Any:
    """robosuite takes a value for each robot, or one for all."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _object(value: object) -> JSON:
    return value if isinstance(value, dict) else {}
