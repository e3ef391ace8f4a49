"""Converts one demonstration's actions, and replays them. Worker processes import this module, so it imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from daps_robot.envs import tasks
from daps_robot.envs.control import AbsolutePoseController, JointController
from daps_robot.envs.registration import ENV_CLASSES
from daps_robot.errors import DataError


@dataclass(frozen=True)
class Replay:
    """What became of a demonstration's new actions, played open loop from its first state.

    Attributes:
        success: whether the task was solved at any step.
        hand_mm, object_mm: how far hand and object are from where they were in the demonstration, at its last state.
    """

    success: bool
    hand_mm: float
    object_mm: float


class Converter:
    """The two environments that a conversion needs: one for the actions as they are, one for what they become."""

    def __init__(self, task: str, source: str, to: str) -> None:
        make = getattr(tasks, ENV_CLASSES[task])
        self._to = make(actions=to)
        self._from = self._to if to != "relative" else make(actions=source)

    def convert(
        self, name: str, actions: Float[np.ndarray, "t a"], states: Float[np.ndarray, "t s"]
    ) -> tuple[Float[np.ndarray, "t b"], Replay]:
        """A demonstration's new actions (float32), and how their replay went.

        Raises:
            DataError: a pose lies further from the hand than a relative action can name.
            SimulationError: the states are not of this task.
        """
        if isinstance(self._to.controller, JointController):
            new = self._led_along(actions[:, -1], states)
        else:
            steps = enumerate(zip(actions.astype(np.float64), states, strict=True))
            new = np.stack([self._one(f"{name}: step {i}", *step) for i, step in steps]).astype(np.float32)
        return new, self._replay(new, states)

    def _one(self, where: str, action: Float[np.ndarray, " a"], state: Float[np.ndarray, " s"]) -> Float[np.ndarray, " b"]:
        """The action for the pose that one means in the state it was recorded in."""
        self._from.reset(options={"state": state})
        controller = self._from.controller
        if self._to.actions == "absolute":
            return controller.from_relative(action)
        assert isinstance(controller, AbsolutePoseController)
        new = controller.to_relative(action)
        if np.abs(new).max() > 1.0 + 1e-4:  # rounding of a float32 in metres
            raise DataError(
                f"{where}: the pose is {np.abs(new).max():.2f} times as far from the hand as a relative action reaches; "
                "it cannot be written as one."
            )
        return new.clip(-1.0, 1.0)

    def _led_along(self, gripper: Float[np.ndarray, " t"], states: Float[np.ndarray, "t s"]) -> Float[np.ndarray, "t 8"]:
        """Goals of the joints that keep them on the recorded states; the last goal stays, as no state after it is recorded."""
        env, controller = self._to, self._to.controller
        assert isinstance(controller, JointController)
        env.reset(options={"state": states[0]})
        actions: list[Float[np.ndarray, " 8"]] = []
        for step in range(len(states)):
            if step + 1 < len(states) or not actions:
                goal = controller.reaching(states[min(step + 1, len(states) - 1)], gripper[step])[:7]
            actions.append(np.append(goal, gripper[step]).astype(np.float32))
            env.step(actions[-1])
        return np.stack(actions)

    def _replay(self, actions: Float[np.ndarray, "t a"], states: Float[np.ndarray, "t s"]) -> Replay:
        env = self._to
        env.reset(options={"state": states[0]})
        success, reached = False, env.positions()
        for action in actions:
            reached = env.positions()
            success |= env.step(action)[4]["success"]
        env.reset(options={"state": states[-1]})
        hand, moved = (1e3 * float(np.linalg.norm(a - b)) for a, b in zip(reached, env.positions(), strict=True))
        return Replay(success, hand, moved)


_worker: Converter


def start_worker(task: str, source: str, to: str) -> None:
    """Prepares a worker process."""
    global _worker
    _worker = Converter(task, source, to)


def work(
    name: str, actions: Float[np.ndarray, "t a"], states: Float[np.ndarray, "t s"]
) -> tuple[Float[np.ndarray, "t b"], Replay]:
    """`Converter.convert` in a worker process."""
    return _worker.convert(name, actions, states)
