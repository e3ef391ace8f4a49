"""Pictures of a simulation, drawn off screen. Nothing here is imported, and no OpenGL is needed, until a picture is asked for."""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from daps_robot.errors import SimulationError

_REMEDY = (
    "Install one and name it: apt-get install libegl1 libgl1 and MUJOCO_GL=egl, or apt-get install libosmesa6 and "
    "MUJOCO_GL=osmesa. Simulation itself needs neither."
)
_COLLISION_GEOMS = 0


class Cameras:
    """Draws a model as some of its cameras see it, without shadows, reflections or anti-aliasing (they cost most of the time).

    The simulation is not touched: its positions are copied into a second `MjData`. A picture is a function of the model and
    these positions alone, the same for a recorded state and for one that a rollout passes through.
    """

    def __init__(self, model: Any, names: Sequence[str], size: int) -> None:
        """Opens an OpenGL context.

        Args:
            model: a `mujoco.MjModel`.
            names: the cameras, which the model must have.
            size: height and width of a picture, in pixels.

        Raises:
            SimulationError: no OpenGL library is there, or it gives no context; the message says what to install.
        """
        import mujoco

        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._context = _open_context(size, size)
        self._context.make_current()
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)  # of the buffer that is drawn into
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self._painter = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        atexit.register(self.close)  # registered after MuJoCo's own end of EGL, so it runs before that
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._painter)
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_COLLISION_GEOMS] = 0
        self._viewpoint = mujoco.MjvCamera()
        self._viewpoint.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._ids = [model.camera(name).id for name in names]
        self._size = size

    def draw(self, data: Any) -> UInt8[np.ndarray, "c size size 3"]:
        """Pictures of the simulation as it stands, one for each camera.

        Args:
            data: a `mujoco.MjData` of the model.

        Returns:
            RGB in 0..255, first row at the top.
        """
        mujoco, pixels = self._mujoco, np.empty((len(self._ids), self._size, self._size, 3), np.uint8)
        self._data.qpos[:] = data.qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        for picture, camera in zip(pixels, self._ids, strict=True):
            self._viewpoint.fixedcamid = camera
            mujoco.mjv_updateScene(self._model, self._data, self._options, None, self._viewpoint, everything, self._scene)
            mujoco.mjr_render(self._rectangle, self._scene, self._painter)
            mujoco.mjr_readPixels(picture, None, self._rectangle, self._painter)
        return np.ascontiguousarray(pixels[:, ::-1])  # OpenGL begins at the bottom

    def close(self) -> None:
        """Gives the OpenGL context back."""
        atexit.unregister(self.close)
        self._context.make_current()
        self._painter.free()
        self._context.free()


def _open_context(width: int, height: int) -> Any:
    """An off-screen OpenGL context: the one that MUJOCO_GL names, or else EGL, or else OSMesa."""
    named = os.environ.get("MUJOCO_GL", "").lower().strip()
    if named in ("disable", "disabled", "off", "false", "0"):
        raise SimulationError(f"Rendering is switched off (MUJOCO_GL={named}). {_REMEDY}")
    backend = named or ("egl" if ctypes.util.find_library("EGL") else "osmesa")
    backend = "glfw" if backend in ("glx", "wgl", "on", "true", "1", "enable", "enabled") else backend
    try:
        return importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
    except Exception as error:  # every back end fails in its own way: ImportError, AttributeError, GLError, RuntimeError
        raise SimulationError(f"Rendering needs an OpenGL library, and '{backend}' did not work ({error}).\n{_REMEDY}") from error
