"""Brings robosuite in: quietly, without OpenGL, and with an error that names the remedy where it is missing."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from daps_robot.errors import SimulationError

ROBOSUITE_VERSION = "1.5.2"

CONTROL_FREQUENCY = 20
"""Control steps a second of simulated time."""

_MODEL_SEED = 0
"""Seeds what robosuite draws while it builds a model (Lift's cube is 40 to 44 mm), so that all processes get the same one."""

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def import_robosuite() -> Any:
    """The `robosuite` module, imported once.

    Importing it has side effects that this function undoes or avoids: it prints notices about optional parts, sets
    `MUJOCO_GL` for the whole process and its children, and imports OpenCV and MuJoCo's viewer, which need system libraries
    for windows although nothing here opens one. MuJoCo's own warnings go to the log of this module rather than to a file in
    the working directory.

    Raises:
        SimulationError: robosuite or MuJoCo is not installed, or does not import.
    """
    mujoco_gl = os.environ.get("MUJOCO_GL")
    logger = logging.getLogger("robosuite_logs")
    logger.addFilter(_only_errors)
    try:
        _import_mujoco().set_mju_user_warning(_log.warning)
        with _windowless():
            robosuite = importlib.import_module("robosuite")
            # robosuite.make reads the arm's settings through this module, which logs where it found them.
            importlib.import_module("robosuite.utils.control_utils")
    except ImportError as error:
        raise SimulationError(
            f"The simulated tasks need robosuite {ROBOSUITE_VERSION} and MuJoCo, and importing them failed ({error}).\n"
            "Install them with: pip install 'daps-robot[sim]'"
        ) from error
    finally:
        _restore("MUJOCO_GL", mujoco_gl)
    logger.removeFilter(_only_errors)
    logger.setLevel(logging.ERROR)
    return robosuite


def build_robosuite(name: str, actions: str = "relative") -> Any:
    """A robosuite environment for one Panda, without cameras or windows.

    Args:
        name: robosuite's own name of the task, such as "Lift".
        actions: that its own controller takes: "relative" (its default), "absolute" or "joint".

    Raises:
        SimulationError: robosuite is missing.
    """
    robosuite = import_robosuite()
    mujoco_gl = os.environ.get("MUJOCO_GL")
    try:
        return robosuite.make(name, seed=_MODEL_SEED, **robosuite_arguments(actions))
    finally:
        _restore("MUJOCO_GL", mujoco_gl)


def robosuite_arguments(actions: str = "relative") -> dict[str, Any]:
    """The keyword arguments of `robosuite.make`, also written into the data sets (`env_args`).

    robosuite's absolute poses have a rotation vector where ours have two columns of the matrix.
    """
    more = {} if actions == "relative" else {"controller_configs": _controller_configs(actions)}
    return more | {
        "robots": ["Panda"],
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "use_object_obs": True,
        "reward_shaping": False,
        "control_freq": CONTROL_FREQUENCY,
        "lite_physics": True,
        "ignore_done": True,
        "hard_reset": False,
        "renderer": "mujoco",
    }


def _controller_configs(actions: str) -> dict[str, Any]:
    """robosuite's default controllers of a Panda, with the arm's changed."""
    from daps_robot.envs.control import JOINT_STIFFNESS

    import_robosuite()
    configs: dict[str, Any] = importlib.import_module("robosuite.controllers").load_composite_controller_config(robot="Panda")
    arm = configs["body_parts"]["right"]
    arm["input_type"] = "absolute"
    if actions == "absolute":
        arm["input_ref_frame"] = "world"
    else:
        arm |= {"type": "JOINT_POSITION", "kp": JOINT_STIFFNESS, "output_max": 0.05, "output_min": -0.05}
    return configs


def _import_mujoco() -> Any:
    """MuJoCo, also where `MUJOCO_GL` asks for a library that is missing: simulating needs none."""
    platform = os.environ.get("PYOPENGL_PLATFORM")
    try:
        return importlib.import_module("mujoco")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
            raise
        _restore("PYOPENGL_PLATFORM", platform)
        _log.info("importing MuJoCo without OpenGL, since with it: %s", error)
        for module in [name for name in sys.modules if name == "mujoco" or name.startswith("mujoco.")]:
            del sys.modules[module]
        os.environ["MUJOCO_GL"] = "disable"  # import_robosuite puts the old value back
        return importlib.import_module("mujoco")


@contextmanager
def _windowless() -> Iterator[None]:
    """Stands in for the libraries for windows while robosuite imports, where they do not import themselves."""
    stand_ins = []
    for name in ("cv2", "mujoco.viewer"):
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):
            sys.modules[name] = types.ModuleType(name)
            stand_ins.append(name)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _restore(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value
