"""Pictures of a simulation, drawn off screen. Nothing here is imported, and no OpenGL is needed, until a picture is asked for."""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from daps_robot.errors import SimulationError

_REMEDY = (
    "Install one and name it: apt-get install libegl1 libgl1 and MUJOCO_GL=egl, or apt-get install libosmesa6 and "
    "MUJOCO_GL=osmesa. Simulation itself needs neither."
)
_COLLISION_GEOMS = 0


class Camera:
    """Draws a model as one of its cameras sees it, without shadows, reflections or anti-aliasing (they cost most of the time).

    The simulation is not touched: its positions are copied into a second `MjData`.
    """

    def __init__(self, model: Any, name: str = "agentview", width: int = 256, height: int = 256) -> None:
        """Opens an OpenGL context.

        Args:
            model: a `mujoco.MjModel`.
            name: the camera.
            width, height: of the picture, in pixels.

        Raises:
            SimulationError: no OpenGL library is there, or it gives no context; the message says what to install.
        """
        import mujoco

        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._context = _open_context(width, height)
        self._context.make_current()
        model.vis.quality.offsamples = 0
        self._painter = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        atexit.register(self.close)  # registered after MuJoCo's own end of EGL, so it runs before that
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._painter)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options = mujoco.MjvOption()
        self._options.geomgroup[_COLLISION_GEOMS] = 0
        self._viewpoint = mujoco.MjvCamera()
        self._viewpoint.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewpoint.fixedcamid = model.camera(name).id
        self._pixels = np.empty((height, width, 3), np.uint8)

    def draw(self, data: Any) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of the simulation as it stands.

        Args:
            data: a `mujoco.MjData` of the model.

        Returns:
            RGB in 0..255, first row at the top.
        """
        mujoco = self._mujoco
        self._data.qpos[:] = data.qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        self._context.make_current()
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            None,
            self._viewpoint,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_render(self._rectangle, self._scene, self._painter)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._painter)
        return np.ascontiguousarray(self._pixels[::-1])

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
