"""The scripted experts of the tasks: where each object is taken, carried and let go. Metres in the world, radians."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from daps_robot.envs.expert import BEND, Expert
from daps_robot.envs.hand import Hand, Vector, bent, rotation_matrix, within_reach, wrap, yaw_of
from daps_robot.envs.styles import PLAIN


class LiftExpert(Expert):
    """Goes down over the cube in a funnel, grasps it across two of its faces, and lifts."""

    _held_opening = 0.0445  # the cube is 40 to 44 mm wide
    _closing_reach = 0.02
    _half_turns = np.pi / 2

    def _grasp(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float]:
        yaw = wrap(yaw_of(rotation_matrix(obj[3:7])), np.pi / 2)  # never more than an eighth of a turn from rest
        turned = yaw + np.pi / 2 * round(self.style.side)
        if within_reach(turned):
            yaw = turned
        return obj[:3] - hand.position, yaw

    def _carry(self, hand: Hand, obj: Float[np.ndarray, " o"], yaw: float) -> tuple[Vector, float]:
        return np.array([0.0, 0.0, 0.1]), yaw


class CanExpert(Expert):
    """Grasps the can from above, carries it over the bins' walls into its quarter, lets go and moves away."""

    _quarter_low, _quarter_high = np.array([0.12, 0.3]), np.array([0.275, 0.5])  # of the can's centre, a margin off the walls
    _speed = 0.9
    _goal = np.array([0.155, 0.36, 0.865])  # in that quarter, on the robot's side: the far half is at the end of its reach
    _clear_height = 0.985  # of the can's centre, its lower end above the walls
    _walls_x = (-0.1, 0.3)
    _walls_y = (-0.5, 0.0, 0.03, 0.28, 0.53)  # beside them the fingers close along x
    _held_opening = 0.056  # the can is 50 mm wide
    _let_go_opening = 0.058  # and away: an expert that waits over it for fingers to open teaches to wait
    _tall = 0.01
    _wide, _top, _steep = 0.07, 0.14, 6.0  # taller than wide: fingers that come in aslant land on its rim
    _miss_above = 0.07

    def _placed(self, obj: Float[np.ndarray, " o"]) -> bool:
        can = obj[7:10]
        inside = (self._quarter_low < can[:2]).all() and (can[:2] < self._quarter_high).all()
        return bool(inside and can[2] < self._goal[2] + 0.015)

    def _rest_yaw(self, hand: Hand) -> float:
        return 0.6 * self.style.side

    def _grasp(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float]:
        can, axis = obj[7:10], rotation_matrix(obj[10:14])[:, 2]
        standing = abs(axis[2]) > 0.7
        yaw = self._standing_yaw(can) if standing else hand.nearest_yaw(float(np.arctan2(axis[1], axis[0])), np.pi)
        return can + 0.02 * self.style.along * axis - hand.position, yaw

    def _standing_yaw(self, can: Vector) -> float:
        """Any yaw would do, if it were not for the walls and, over its quarter, for where the wrist must end."""
        if self.style is not PLAIN and can[2] > 0.93:
            return 0.6 * self.style.side
        if min(abs(can[1] - wall) for wall in self._walls_y) < 0.07:
            return np.pi / 2
        clear = min(abs(can[0] - wall) for wall in self._walls_x) > 0.07
        return np.pi / 2 * self.style.side if clear else 0.0

    def _carry(self, hand: Hand, obj: Float[np.ndarray, " o"], yaw: float) -> tuple[Vector, float]:
        """Up, across, and down: sideways only as far as the height allows, down only over the goal."""
        can, style = obj[7:10], self.style
        goal = self._goal + np.array([0.0, 0.03 * (1.0 + style.along), 0.0]) if style is not PLAIN else self._goal
        to_goal = goal - can
        aside = float(np.hypot(*to_goal[:2]))
        if aside > 0.03:
            to_goal[2] = self._clear_height + 0.01 + style.lift - can[2]
            to_goal[:2] *= np.clip(1.0 - (self._clear_height - can[2]) / 0.03, 0.0, 1.0)
        return bent(to_goal, aside, BEND * max(style.bend, -0.3)), yaw  # to the right lies the end of the arm's reach

    def _miss(self, hand: Hand, obj: Float[np.ndarray, " o"], yaw: float) -> Vector:
        """Above the can where walls are near."""
        near = min(abs(obj[8] - wall) for wall in self._walls_y) < 0.12 or min(abs(obj[7] - x) for x in self._walls_x) < 0.12
        return np.array([0.0, 0.0, self._miss_above]) if near else super()._miss(hand, obj, yaw)


class SquareExpert(Expert):
    """Grasps the nut by its handle, turns it square to the peg, and lowers it over."""

    _speed, _turn_speed = 0.4, 0.3  # as slow as people are: faster, half of a demonstration's care lies in a chunk or two
    _peg = np.array([0.23, 0.1])
    _handle = np.array([0.062, 0.0, 0.0])  # in the nut's axes; nearer to the nut, fingers a centimetre off land on it
    _clear_height = 0.98  # of the nut, its lower side above the peg
    _peg_top = 0.95
    _placed_height = 0.865
    _held_opening = 0.038  # the handle is 32 mm wide
    _let_go_opening = 0.06
    _reach = 0.008
    _twisted = (0.05, 0.3)  # turned first, then down
    _aslant = 0.2
    _miss_above = 0.035

    def _placed(self, obj: Float[np.ndarray, " o"]) -> bool:
        return bool((np.abs(self._peg - obj[7:9]) < 0.025).all() and obj[9] < self._placed_height)

    def _grasp(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float]:
        nut, rotation = obj[7:10], rotation_matrix(obj[10:14])
        yaw = hand.nearest_yaw(yaw_of(rotation), np.pi)  # the fingers close along the nut's y axis, either way round
        handle = self._handle
        if self.style is not PLAIN:
            yaw = wrap(yaw_of(rotation), np.pi)
            other = yaw - np.copysign(np.pi, yaw)
            ends = other - self._crooked(yaw_of(rotation))
            if self.style.side > 0.0 and within_reach(other) and within_reach(ends):
                yaw = other
            handle = handle + np.array([0.008 * self.style.along, 0.0, 0.0])
        return nut + rotation @ handle - hand.position, yaw

    def _crooked(self, nut_yaw: float) -> float:
        """How far the nut is turned from the nearest angle at which it fits over the peg."""
        quarters = (np.pi / 2, np.pi, -np.pi / 2)  # not 0: the handle would point outwards, at the end of the arm's reach
        return min((wrap(nut_yaw - quarter, 2 * np.pi) for quarter in quarters), key=abs)

    def _carry(self, hand: Hand, obj: Float[np.ndarray, " o"], yaw: float) -> tuple[Vector, float]:
        """Up, across while turning square, and down when the nut is over the peg and square to it."""
        nut, crooked = obj[7:10], self._crooked(yaw_of(rotation_matrix(obj[10:14])))
        move = np.array([*(self._peg - nut[:2]), 0.0])
        aside = float(np.hypot(*move[:2]))
        if ((aside > 0.006 or abs(crooked) > 0.25) and nut[2] > 0.95) or aside > 0.02:
            move[2] = self._clear_height - nut[2]
            move[:2] *= np.clip(1.0 - (self._clear_height - 0.015 - nut[2]) / 0.06, 0.0, 1.0)
            move[2] += self.style.lift * (aside > 0.03)
        else:
            move[2] = self._placed_height - 0.02 - nut[2]
        return bent(move, aside, BEND * self.style.bend), hand.yaw - crooked

    def _miss(self, hand: Hand, obj: Float[np.ndarray, " o"], yaw: float) -> Vector:
        """Beyond the end of the handle, where it does not close above it."""
        if self.style.miss_above:
            return super()._miss(hand, obj, yaw)
        return 0.045 * rotation_matrix(obj[10:14])[:, 0]


EXPERTS: dict[str, type[Expert]] = {"Lift": LiftExpert, "PickPlaceCan": CanExpert, "NutAssemblySquare": SquareExpert}
"""robosuite's name of a task -> its expert."""
