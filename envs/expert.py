"""What all scripted experts share: proportional control of the hand, the phases of fetching something, noise and habits.

What to do next (approach, grasp, carry, let go, retreat) follows from the present observation. So an expert can take over in any
state, can be driven in a copy of the simulator, and picks up what it dropped, unless that leans on something or lies out of
reach. What it remembers is its noise and, in a style other than plain, what it is just about (a pause, a grasp that misses). The
one exception to "from the observation" is knowledge of the fixed scene: where bins and pegs stand, and how big the objects are
(metres, in the world).

Distances are in metres, angles in radians.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from daps_robot.envs.hand import Hand, Vector, approach, bent, wrap
from daps_robot.envs.styles import PLAIN, STYLES

OPEN, CLOSED = -1.0, 1.0
BEND = 0.6
"""Radians by which the ways of a style swing off the straight line at most."""
_METRES_PER_UNIT, _RADIANS_PER_UNIT = 0.05, 0.5

Action = Float[np.ndarray, " 7"]


class Expert:
    """Base of the scripted experts: approach, grasp, carry, let go, and from a target pose of the hand to an action.

    Subclasses say where the object is taken (`_grasp`), where it is carried (`_carry`) and when it is there (`_placed`). All
    state is that of noise and habits, so a deep copy is cheap and the copy acts as the original would have.

    Attributes:
        style: how this episode is gone about.
    """

    _gain: ClassVar[float] = 1.6
    _turn_gain: ClassVar[float] = 1.2
    _speed: ClassVar[float] = 0.5
    _turn_speed: ClassVar[float] = 0.6
    _nudge_steps: ClassVar[int] = 6
    _nudge_size: ClassVar[float] = 0.5
    _slip_steps: ClassVar[int] = 6
    _miss_steps: ClassVar[int] = 25

    _held_opening: ClassVar[float]  # a little wider than what is held
    _reach: ClassVar[float] = 0.012  # metres off the grasp within which fingers begin to close, and go on closing
    _closing_reach: ClassVar[float] = 0.025
    _tall: ClassVar[float] = 0.0  # metres by which the grasp's height matters less than its place
    _wide: ClassVar[float] = 0.06  # an opening that passes the object
    _top: ClassVar[float] = 0.08  # of the funnel that leads down to the object
    _steep: ClassVar[float] = 3.0  # rise of its wall
    _twisted: ClassVar[tuple[float, float]] = (0.15, 0.12)  # radians free, metres a radian beyond
    _let_go_opening: ClassVar[float] = 0.07
    _half_turns: ClassVar[float] = np.pi  # the fingers may hold the object turned by this
    _aslant: ClassVar[float] = np.inf  # radians off the grasp's yaw at which fingers jam before they hold
    _miss_above: ClassVar[float] = 0.04

    def __init__(
        self,
        noise: float = 0.0,
        seed: int = 0,
        nudges: float = 0.0,
        style: str = "plain",
        translate: Callable[[Action], np.ndarray] | None = None,
    ) -> None:
        """Args:
        noise: standard deviation of the Gaussian noise on the six arm actions, in action units; never on the gripper.
        seed: of noise, nudges and style.
        nudges: chance that a step begins a nudge, six steps in which a constant push in a random direction is added to the
            translation. What follows shows how to come back from some centimetres
            off, which white noise never does.
        style: "plain", or "human" with pauses, detours, several grasps, misses and drops (see `styles.Style`).
        translate: from a relative action to one of the environment, which is in the state that was observed.
        """
        self.noise, self.nudges = noise, nudges
        self._rng = np.random.default_rng((seed, 1))  # not the stream that the start state comes from
        self._push = np.zeros(3)
        self._push_left = 0
        self._whims = np.random.default_rng((seed, 2))
        self.style = STYLES[style](self._whims)
        self._translate = translate
        self._misses, self._drops = self.style.misses, self.style.drops
        self._pause_left = self._slip_left = self._missing = self._carried = 0
        self._gripper: float | None = None
        self._wait_left: int | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Expert:
        other = copy.copy(self)  # `translate` belongs to the environment, and is shared
        other._rng, other._whims = copy.deepcopy((self._rng, self._whims))
        return other

    def act(self, observation: Mapping[str, np.ndarray]) -> Float[np.ndarray, " a"]:
        """The action for an observation of the task.

        Returns:
            (7,) float32 in [-1, 1], clipped after the noise is added; the gripper is exactly -1 or +1. Or what `translate`
            makes of it.
        """
        hand = Hand(observation)
        move, yaw, gripper = self._decide(hand, np.asarray(observation["object"], np.float64))
        if self.style is not PLAIN and self._hesitates(gripper):
            move, yaw, gripper = np.zeros(3), hand.yaw, self._gripper
        speed = self._speed * self.style.speed
        action = np.empty(7)
        action[:3] = self._gain * move / _METRES_PER_UNIT
        action[:2] *= min(1.0, speed / max(1e-9, float(np.hypot(*action[:2]))))
        action[2] = np.clip(action[2], -speed, speed)
        action[3:6] = np.clip(self._turn_gain * hand.turn_upright(yaw) / _RADIANS_PER_UNIT, -self._turn_speed, self._turn_speed)
        if self.noise > 0.0:
            action[:6] += self._rng.normal(0.0, self.noise, 6)
        if self.nudges > 0.0:
            action[:3] += self._nudge()
        action[6] = gripper
        action = np.clip(action, -1.0, 1.0).astype(np.float32)
        return action if self._translate is None else self._translate(action).astype(np.float32)

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

    def _hesitates(self, gripper: float) -> bool:
        """Whether the hand stays as it is for this step: in a pause, or before the fingers do something new."""
        if self._slip_left or self._gripper is None:
            self._gripper = gripper
        if gripper != self._gripper:
            if self._wait_left is None:
                self._wait_left = int(self._whims.integers(self.style.longest_wait + 1))
            if self._wait_left > 0:
                self._wait_left -= 1
                return True
            self._wait_left, self._gripper = None, gripper
        if self._pause_left == 0 and self._whims.random() < self.style.pause:
            self._pause_left = int(self._whims.integers(2, self.style.longest_pause + 1))
        if self._pause_left == 0:
            return False
        self._pause_left -= 1
        return True

    def _decide(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float, float]:
        """Where to go from here.

        Args:
            hand: the robot's hand.
            obj: the observation "object".

        Returns:
            How far the hand should move, the yaw it should have (see `Hand.yaw`), and OPEN or CLOSED.
        """
        if self._placed(obj):
            return np.array([0.0, 0.0, 0.1]) if hand.opening > self._let_go_opening else np.zeros(3), self._rest_yaw(hand), OPEN
        to_grasp, yaw = self._grasp(hand, obj)
        if self._slips(hand, to_grasp):
            return np.zeros(3), hand.yaw, OPEN
        if self._around(hand, to_grasp) and hand.opening < self._held_opening:
            return *self._carry(hand, obj, yaw), CLOSED
        if self._misses > 0:
            to_grasp = to_grasp + self._miss(hand, obj, yaw)
            if self._around(hand, to_grasp):
                self._missing += 1
                if hand.opening < 0.01 or self._missing > self._miss_steps:
                    self._misses, self._missing = self._misses - 1, 0
        turn = yaw - hand.yaw
        if self._around(hand, to_grasp) and abs(wrap(turn, self._half_turns)) < self._aslant:
            return to_grasp, yaw, CLOSED
        misaligned = abs(wrap(turn, self._half_turns)) if self.style is PLAIN else abs(turn)
        aside = float(np.hypot(*to_grasp[:2]))
        top = self._top + self.style.lift
        move = approach(to_grasp, aside, misaligned, hand.opening, self._wide, top, self._steep, self._twisted)
        return bent(move, aside, BEND * self.style.bend), yaw, OPEN

    def _around(self, hand: Hand, to_grasp: Vector) -> bool:
        """Whether the fingers are where they should close; fingers that have begun to close go on closing."""
        reach = self._reach if hand.opening > 0.07 else self._closing_reach
        return float(np.hypot(*to_grasp[:2])) < reach and abs(to_grasp[2]) < reach + self._tall

    def _slips(self, hand: Hand, to_grasp: Vector) -> bool:
        """Whether the fingers let the object slip at this step, which they have held for some."""
        if self._slip_left > 0:
            self._slip_left -= 1
            return True
        held = self._drops > 0 and self._around(hand, to_grasp) and hand.opening < self._held_opening
        self._carried = self._carried + 1 if held else 0
        if self._carried <= self.style.drop_after:
            return False
        self._drops, self._slip_left = self._drops - 1, self._slip_steps
        return True

    def _placed(self, obj: Float[np.ndarray, " o"]) -> bool:
        """Whether the object is where it should be let go."""
        return False

    def _rest_yaw(self, hand: Hand) -> float:
        """The hand's yaw when the object is placed."""
        return hand.yaw

    def _grasp(self, hand: Hand, obj: Float[np.ndarray, " o"]) -> tuple[Vector, float]:
        """From the hand to where it should close, and the yaw that it should have."""
        raise NotImplementedError

    def _carry(self, hand: Hand, obj: Float[np.ndarray, " o"], yaw: float) -> tuple[Vector, float]:
        """Where to go with the object, and the yaw that the hand should have."""
        raise NotImplementedError

    def _miss(self, hand: Hand, obj: Float[np.ndarray, " o"], yaw: float) -> Vector:
        """From a grasp to one that misses."""
        if self.style.miss_above:
            return np.array([0.0, 0.0, self._miss_above])
        return np.copysign(0.06, self.style.side) * np.array([np.cos(yaw), np.sin(yaw), 0.0])  # across the fingers' way
