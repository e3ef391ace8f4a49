"""Draws the states of one demonstration. Worker processes import this module, so it imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from daps_robot.data.cameras import HAND, check_hand, image_key
from daps_robot.envs import tasks
from daps_robot.envs.registration import ENV_CLASSES


class Painter:
    """An environment that is set to recorded states, and its cameras."""

    def __init__(self, task: str, cameras: Sequence[str], size: int) -> None:
        self._env = getattr(tasks, ENV_CLASSES[task])(cameras=cameras, camera_size=size)

    def paint(
        self, where: str, states: Float[np.ndarray, "t s"], hand: Float[np.ndarray, "t 3"] | None
    ) -> dict[str, UInt8[np.ndarray, "t size size 3"]]:
        """What the cameras see in each state, by observation key.

        Args:
            where: file and name of the demonstration, for messages.
            states: flattened MuJoCo states.
            hand: where the demonstration says that the hand was, if it does: a state of another model shows in it.

        Raises:
            DataError: the hand is elsewhere.
            SimulationError: the states are not of this task, or no OpenGL library works here.
        """
        seen: dict[str, list[np.ndarray]] = {image_key(camera): [] for camera in self._env.cameras}
        for step, state in enumerate(states):
            observation, _ = self._env.reset(options={"state": state})
            if hand is not None:
                check_hand(f"{where}: step {step}", observation[HAND], hand[step])
            for key, pictures in seen.items():
                pictures.append(observation[key])
        return {key: np.stack(pictures) for key, pictures in seen.items()}


_worker: Painter


def start_worker(task: str, cameras: Sequence[str], size: int) -> None:
    """Prepares a worker process."""
    global _worker
    _worker = Painter(task, cameras, size)


def work(
    where: str, states: Float[np.ndarray, "t s"], hand: Float[np.ndarray, "t 3"] | None
) -> dict[str, UInt8[np.ndarray, "t size size 3"]]:
    """`Painter.paint` in a worker process."""
    return _worker.paint(where, states, hand)
