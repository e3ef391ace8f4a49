"""Scripted experts: proportional control of the hand, and the phase read off the observation.

An expert keeps no memory but that of its noise. What to do next (approach, grasp, carry, let go, retreat) follows from the
present observation alone. So an expert can take over in any state, can be driven in a copy of the simulator, and picks up what
it dropped, unless that leans on something or lies out of reach. The one exception to "from the observation" is knowledge of the
fixed scene: where bins and pegs stand, and how big the objects are (metres, in the world).

Distances are in metres, angles in radians.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float

OPEN, CLOSED = -1.0, 1.0
_EASY_YAW = 1.9
_METRES_PER_UNIT, _RADIANS_PER_UNIT = 0.05, 0.5

Vector = Float[np.ndarray, " 3"]


class Expert:
    """Base of the scripted experts: from a target pose of the hand to an action.

    Subclasses say in `_decide` where the hand should go. All state is that of the noise, so a deep copy is cheap and the
    copy acts as the original would have.
    """

    _gain: ClassVar[float] = 1.6
    _turn_gain: ClassVar[float] = 1.2
    _speed: ClassVar[float] = 0.5
    _turn_speed: ClassVar[float] = 0.6
    _nudge_steps: ClassVar[int] = 6
    _nudge_size: ClassVar[float] = 0.5

    def __init__(self, noise: float = 0.0, seed: int = 0, nudges: float = 0.0) -> None:
        """Args:
        noise: standard deviation of the Gaussian noise on the six arm actions, in action units; never on the gripper.
        seed: of noise and nudges.
        nudges: chance that a step begins a nudge, six steps in which a constant push in a random direction is added to the
            translation. What follows shows how to come back from some centimetres off, which white noise never does.
        """
        self.noise, self.nudges = noise, nudges
        self._rng = np.random.default_rng((seed, 1))  # not the stream that the start state comes from
        self._push = np.zeros(3)
        self._push_left = 0

    def act(self, observation: Mapping[str, np.ndarray]) -> Float[np.ndarray, " 7"]:
        """The action for an observation of the task.

        Returns:
            (7,) float32 in [-1, 1], clipped after the noise is added; the gripper is exactly -1 or +1.
        """
        hand = Hand(observation)
        move, yaw, gripper = self._decide(hand, np.asarray(observation["object"], np.float64))
        action = np.empty(7)
        action[:3] = self._gain * move / _METRES_PER_UNIT
        action[:2] *= min(1.0, self._speed / max(1e-9, float(np.hypot(*action[:2]))))
        action[2] = np.clip(action[2], -self._speed, self._speed)
        action[3:6] = np.clip(self._turn_gain * hand.turn_upright(yaw) / _RADIANS_PER_UNIT, -self._turn_speed, self._turn_speed)
        if self.noise > 0.0:
            action[:6] += self._rng.normal(0.0, self.noise, 6)
        if self.nudges > 0.0:
            action[:3] += self._nudge()
        action[6] = gripper
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _nudge(self) -> Vector:
        """The push at this step, which is zero between nudges."""
        if self._push_left == 0 and self._rng.random() < self.nudges:
            direction = self._rng.normal(size=3)
            self._push = self._nudge_size * direction / np.linalg.norm(direction)
            self._push_left = self._nudge_steps
        if self._push_left == 0:
            return np.zeros(3)
        self._push_left -= 1
        return self._push

    def _decide(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float, float]:
        """Where to go from here.

        Args:
            hand: the robot's hand.
            obj: the observation "object".

        Returns:
            How far the hand should move, the yaw it should have (see `Hand.yaw`), and OPEN or CLOSED.
        """
        raise NotImplementedError


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


class LiftExpert(Expert):
    """Goes down over the cube in a funnel, grasps it across two of its faces, and lifts."""

    _held_opening = 0.0445  # the cube is 40 to 44 mm wide

    def _decide(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float, float]:
        cube, quat = obj[:3], obj[3:7]
        to_cube = cube - hand.position
        aside = float(np.hypot(*to_cube[:2]))
        yaw = wrap(yaw_of(rotation_matrix(quat)), np.pi / 2)  # never more than an eighth of a turn from rest
        reach = 0.012 if hand.opening > 0.07 else 0.02  # fingers that have begun to close go on closing
        around = aside < reach and abs(to_cube[2]) < reach
        if around and hand.opening < self._held_opening:
            return np.array([0.0, 0.0, 0.1]), yaw, CLOSED
        if around:
            return to_cube, yaw, CLOSED
        misaligned = abs(wrap(yaw - hand.yaw, np.pi / 2))
        return approach(to_cube, aside, misaligned, hand.opening, wide=0.06), yaw, OPEN


class CanExpert(Expert):
    """Grasps the can from above, carries it over the bins' walls into its quarter, lets go and moves away."""

    _quarter_low, _quarter_high = np.array([0.12, 0.3]), np.array([0.275, 0.5])  # of the can's centre, a margin off the walls
    _speed = 0.9
    _goal = np.array([0.155, 0.36, 0.865])  # in that quarter, on the robot's side: the far half is at the end of its reach
    _clear_height = 0.985  # of the can's centre, its lower end above the walls
    _walls_y = (-0.5, 0.0, 0.03, 0.28, 0.53)  # beside them the fingers close along x
    _held_opening = 0.056  # the can is 50 mm wide

    def _decide(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float, float]:
        can, quat = obj[7:10], obj[10:14]
        if (self._quarter_low < can[:2]).all() and (can[:2] < self._quarter_high).all() and can[2] < self._goal[2] + 0.015:
            return np.array([0.0, 0.0, 0.1]) if hand.opening > 0.07 else np.zeros(3), 0.0, OPEN
        axis = rotation_matrix(quat)[:, 2]
        standing = abs(axis[2]) > 0.7
        if standing:
            yaw = np.pi / 2 if min(abs(can[1] - wall) for wall in self._walls_y) < 0.07 else 0.0
        else:
            yaw = hand.nearest_yaw(float(np.arctan2(axis[1], axis[0])), np.pi)
        to_can = can - hand.position
        aside = float(np.hypot(*to_can[:2]))
        reach = 0.012 if hand.opening > 0.07 else 0.025
        around = aside < reach and abs(to_can[2]) < reach + 0.01
        if around and hand.opening < self._held_opening:
            return self._carry(can), yaw, CLOSED
        if around:
            return to_can, yaw, CLOSED
        misaligned = abs(wrap(yaw - hand.yaw, np.pi))
        return approach(to_can, aside, misaligned, hand.opening, wide=0.07, top=0.14), yaw, OPEN

    def _carry(self, can: Vector) -> Vector:
        """Up, across, and down: sideways only as far as the height allows, down only over the goal."""
        to_goal = self._goal - can
        aside = float(np.hypot(*to_goal[:2]))
        if aside > 0.03:
            to_goal[2] = self._clear_height + 0.01 - can[2]
            to_goal[:2] *= np.clip(1.0 - (self._clear_height - can[2]) / 0.03, 0.0, 1.0)
        return to_goal


class SquareExpert(Expert):
    """Grasps the nut by its handle, turns it square to the peg, and lowers it over."""

    _speed = 0.7
    _peg = np.array([0.23, 0.1])
    _handle = np.array([0.054, 0.0, 0.0])  # in the nut's axes
    _clear_height = 0.98  # of the nut, its lower side above the peg
    _peg_top = 0.95
    _placed_height = 0.865
    _held_opening = 0.038  # the handle is 32 mm wide

    def _decide(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float, float]:
        nut, rotation = obj[7:10], rotation_matrix(obj[10:14])
        to_peg = self._peg - nut[:2]
        if (np.abs(to_peg) < 0.025).all() and nut[2] < self._placed_height:
            return np.array([0.0, 0.0, 0.1]) if hand.opening > 0.06 else np.zeros(3), hand.yaw, OPEN
        yaw = hand.nearest_yaw(yaw_of(rotation), np.pi)  # the fingers close along the nut's y axis, either way round
        to_handle = nut + rotation @ self._handle - hand.position
        aside = float(np.hypot(*to_handle[:2]))
        reach = 0.012 if hand.opening > 0.07 else 0.025
        around = aside < reach and abs(to_handle[2]) < reach
        if around and hand.opening < self._held_opening:
            return *self._carry(nut, yaw_of(rotation), hand), CLOSED
        if around:
            return to_handle, yaw, CLOSED
        misaligned = abs(wrap(yaw - hand.yaw, np.pi))
        return approach(to_handle, aside, misaligned, hand.opening, wide=0.06), yaw, OPEN

    def _carry(self, nut: Vector, nut_yaw: float, hand: Hand) -> tuple[Vector, float]:
        """Up, across while turning square, and down when the nut is over the peg and square to it."""
        quarters = (np.pi / 2, np.pi, -np.pi / 2)  # not 0: the handle would point outwards, at the end of the arm's reach
        crooked = min((wrap(nut_yaw - quarter, 2 * np.pi) for quarter in quarters), key=abs)
        yaw = hand.yaw - crooked
        move = np.array([*(self._peg - nut[:2]), 0.0])
        aside = float(np.hypot(*move[:2]))
        if ((aside > 0.006 or abs(crooked) > 0.08) and nut[2] > 0.95) or aside > 0.02:
            move[2] = self._clear_height - nut[2]
            move[:2] *= np.clip(1.0 - (self._clear_height - 0.015 - nut[2]) / 0.06, 0.0, 1.0)
        else:
            move[2] = self._placed_height - 0.02 - nut[2]
        return move, yaw


def approach(to_grasp: Vector, aside: float, misaligned: float, opening: float, wide: float, top: float = 0.08) -> Vector:
    """The way down to a grasp: inside a funnel above it, so that open fingers pass the object on both sides.

    Args:
        to_grasp: from the hand to the grasp.
        aside: horizontal distance.
        misaligned: how much the hand must still turn.
        opening: of the fingers.
        wide: an opening that passes the object.
        top: height of the funnel.
    """
    height = 3.0 * max(0.0, aside - 0.008) + 0.12 * max(0.0, misaligned - 0.15)
    if opening < wide:
        height = max(height, 0.6 * top)
    return to_grasp + np.array([0.0, 0.0, min(height, top)])


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


EXPERTS: dict[str, type[Expert]] = {"Lift": LiftExpert, "PickPlaceCan": CanExpert, "NutAssemblySquare": SquareExpert}
"""robosuite's name of a task -> its expert."""
