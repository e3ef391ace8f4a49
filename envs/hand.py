"""The hand as an expert sees it, and the geometry of its ways. Distances are in metres, angles in radians."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

_EASY_YAW = 1.9

Vector = Float[np.ndarray, " 3"]


class Hand:
    """The hand as an observation shows it.

    Attributes:
        position: of the point between the fingers.
        yaw: angle from the world's y axis to the axis that the fingers move along, about the world's z axis; 0 at the start
            of an episode but for the noise on the joints.
        opening: distance between the fingers, 0 to 0.08.
    """

    def __init__(self, observation: Mapping[str, np.ndarray]) -> None:
        self.position = np.asarray(observation["robot0_eef_pos"], np.float64)
        self._rotation = rotation_matrix(np.asarray(observation["robot0_eef_quat"], np.float64))
        finger_axis = -self._rotation[:, 1]
        self.yaw = float(np.arctan2(-finger_axis[0], finger_axis[1]))
        fingers = observation["robot0_gripper_qpos"]
        self.opening = float(fingers[0] - fingers[1])

    def turn_upright(self, yaw: float) -> Vector:
        """The rotation vector that points the hand straight down and turns it to `yaw` (by way of 0: the wrist ends at ±π)."""
        turn = np.cross(self._rotation[:, 2], (0.0, 0.0, -1.0))
        turn[2] = yaw - self.yaw
        return turn

    def nearest_yaw(self, yaw: float, period: float) -> float:
        """The nearest of the yaws that differ from `yaw` by a multiple of `period`, of those the wrist reaches with ease."""
        first = wrap(yaw, period)
        easy = [first + k * period for k in (-1, 0, 1) if abs(first + k * period) <= _EASY_YAW]
        return min(easy, key=lambda candidate: abs(candidate - self.yaw))


def approach(
    to_grasp: Vector,
    aside: float,
    misaligned: float,
    opening: float,
    wide: float,
    top: float,
    steep: float,
    twisted: tuple[float, float],
) -> Vector:
    """The way down to a grasp: inside a funnel above it, so that open fingers pass the object on both sides.

    Args:
        to_grasp: from the hand to the grasp.
        aside: horizontal distance.
        misaligned: how much the hand must still turn.
        opening: of the fingers.
        wide: an opening that passes the object.
        top: height of the funnel.
        steep: metres that its wall rises a metre aside.
        twisted: radians that the hand may be turned off at its bottom, and metres that its wall rises a radian beyond.
    """
    free, rise = twisted
    height = steep * max(0.0, aside - 0.008) + rise * max(0.0, misaligned - free)
    if opening < wide:
        height = max(height, 0.6 * top)
    return to_grasp + np.array([0.0, 0.0, min(height, top)])


def bent(move: Vector, aside: float, angle: float) -> Vector:
    """A way that swings off by an angle, about the vertical and to the left, while the goal is more than some 10 cm aside."""
    angle *= float(np.clip((aside - 0.05) / 0.1, 0.0, 1.0))
    if angle == 0.0:
        return move
    x, y, z = move
    return np.array([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z])


def within_reach(yaw: float) -> bool:
    """Whether the wrist can hold a yaw wherever the objects lie, with some room left to turn."""
    return -1.6 <= yaw <= 2.4


def rotation_matrix(quat: Float[np.ndarray, " 4"]) -> Float[np.ndarray, "3 3"]:
    """The rotation of a quaternion x y z w (of any length but zero)."""
    x, y, z, w = quat / np.linalg.norm(quat)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def yaw_of(rotation: Float[np.ndarray, "3 3"]) -> float:
    """The angle of an object's x axis about the world's z axis."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def wrap(angle: float, period: float) -> float:
    """The same angle modulo `period`, in [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2
