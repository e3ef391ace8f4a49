"""A fixed number of slots over any number of workers, in groups that are each in lockstep.

    group      0             1                two, so that one is planned while the other is simulated
    slot       0 … S-1       S … 2S-1         one environment each; slot s plays episodes s, s+2S, s+4S, …
    worker     slots w, w+W, … of each group  W processes, or this one

Every slot has its fixed share of episodes, so that early finishers bias nothing, and an episode keeps its row of the
policy's batch whatever W is: what the policy sees, stale rows of finished slots included, is the same to the last bit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from daps_robot.errors import ConfigError, SimulationError
from daps_robot.rollout.channel import Worker, close_all, start_workers
from daps_robot.rollout.simulation import Layout, fit_actions
from daps_robot.rollout.worker import SlotRound, Task


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(workers: int | None, jobs: int) -> int:
    """How many workers to start for `jobs` independent jobs: one a core unless told.

    Raises:
        ConfigError: for a negative number.
    """
    if workers is not None and workers < 0:
        raise ConfigError(f"workers={workers} cannot be; 0 or 1 runs in this process, None takes one a core")
    return max(1, min(usable_cores() if workers is None else workers, jobs))


@dataclass(frozen=True)
class Round:
    """A group of slots between two plans.

    Attributes:
        slots: (S,) their numbers.
        episode: (S,) the episode that needs a plan now, -1 in a slot that has none left.
        observations: (S n o) what to plan from; a finished slot keeps its last observations.
        executed: (S,) steps executed of the last plan.
        ended: (S,) whether the episode that they belong to ended with them.
        success: (S,) whether it succeeded.
        score: (S,) the largest score of its steps so far.
        expert: (S h a) the expert's next actions, where they were asked for; finished slots as above.
        images: (S n c height width 3) what the cameras saw, where the policy has some; finished slots as above.
    """

    slots: Int[np.ndarray, " S"]
    episode: Int[np.ndarray, " S"]
    observations: Float[np.ndarray, "S n o"]
    executed: Int[np.ndarray, " S"]
    ended: Bool[np.ndarray, " S"]
    success: Bool[np.ndarray, " S"]
    score: Float[np.ndarray, " S"]
    expert: Float[np.ndarray, "S h a"] | None
    images: UInt8[np.ndarray, "S n c height width 3"] | None = None

    @property
    def active(self) -> Bool[np.ndarray, " S"]:
        """(S,) the slots that need a plan."""
        return self.episode >= 0


class SlotPool:
    """The slots of a task, in worker processes or in this one; a context manager that ends them.

    Args:
        task: what is played.
        groups: how many groups the task's slots form; they divide evenly.
        workers: how many processes; 0 or 1 plays in this one.

    Attributes:
        layout: the sizes of the environment's observations and actions.
        simulator_seconds: (W,) processor time that each worker has spent inside the environments' `step` and `reset`.
        lookahead_seconds: (W,) processor time that each has spent on the expert's lookahead.

    Raises:
        SimulationError: where the environment cannot be made or lacks an observation key.
    """

    def __init__(self, task: Task, groups: int, workers: int) -> None:
        self.groups = np.arange(task.slots).reshape(groups, -1)
        count = worker_count(workers, self.groups.shape[1])
        self._workers: list[Worker] = start_workers(
            "daps_robot.rollout.worker:SlotGroups",
            [(task, self.groups[:, first::count].tolist()) for first in range(count)],
            in_process=count == 1,
        )
        self._task = task
        self._workers[0].submit("layout")
        self.layout: Layout = self._workers[0].result()
        self.simulator_seconds = np.zeros(count)
        self.lookahead_seconds = np.zeros(count)

    def submit(self, group: int, actions: Float[np.ndarray, "S e a"] | None) -> None:
        """Starts to execute one plan of e steps in every slot of a group, or, without plans, to reset them.

        Raises:
            SimulationError: where a worker has died.
        """
        for first, worker in enumerate(self._workers):
            worker.submit("play", group, None if actions is None else actions[first :: len(self._workers)])

    def gather(self, group: int) -> Round:
        """What became of the group's plans; groups are gathered in the order in which they were submitted.

        Raises:
            SimulationError: where an environment raises or a worker dies.
        """
        replies: list[SlotRound] = [worker.result() for worker in self._workers]
        slots, count = self.groups[group], len(self._workers)
        order = np.argsort(np.concatenate([slots[first::count] for first in range(count)]))
        self.simulator_seconds += [reply.simulator_seconds for reply in replies]
        self.lookahead_seconds += [reply.lookahead_seconds for reply in replies]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(reply, name) for reply in replies])[order]

        return Round(
            slots=slots,
            episode=joined("episode"),
            observations=joined("observations"),
            executed=joined("executed"),
            ended=joined("ended"),
            success=joined("success"),
            score=joined("score"),
            expert=joined("expert") if self._task.needs_expert else None,
            images=joined("images") if self._task.cameras else None,
        )

    def close(self) -> None:
        """Ends the workers."""
        close_all(self._workers)

    def __enter__(self) -> SlotPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def admit_observations(playing: Round, done: Int[np.ndarray, " S"], layout: Layout, task: Task) -> Float[np.ndarray, "S n o"]:
    """What the environments showed, for a policy to plan from; zeros in a finished slot whose last observation was not finite.

    Args:
        playing: the round.
        done: as `admit_actions` takes it.
        layout: the sizes of the observations.
        task: what is played.

    Raises:
        SimulationError: for a value that is not finite, naming its key, episode and step.
    """
    finite = np.isfinite(playing.observations).all(axis=(1, 2))
    if (broken := playing.active & ~finite).any():
        slot = int(broken.argmax())
        column = int(np.argwhere(~np.isfinite(playing.observations[slot]))[0, 1])
        ends = np.cumsum([layout.obs_dims[key] for key in task.obs_keys])
        key = task.obs_keys[int(np.searchsorted(ends, column, side="right"))]
        raise SimulationError(
            f"{task.spec.id} shows NaN or infinity in '{key}', in episode {playing.episode[slot]} at step {done[slot]}: "
            "no policy acts on such; is the simulation unstable?"
        )
    return playing.observations if finite.all() else np.where(finite[:, None, None], playing.observations, np.float32(0))


def admit_actions(
    chunks: Float[np.ndarray, "S h a"], playing: Round, done: Int[np.ndarray, " S"], layout: Layout, execute: int
) -> tuple[Float[np.ndarray, "S e a"], Bool[np.ndarray, "S e a"]]:
    """The first e actions of each plan as the environment takes them, and where they had to be clipped.

    Args:
        chunks: a policy's plans, in the environment's units.
        playing: the round that they were made for; rows of finished slots are not looked at.
        done: (S,) steps executed so far in the slots' episodes, for the message.
        layout: the bounds of the actions.
        execute: e.

    Returns:
        Actions within the bounds and in the environment's dtype; True where a value had to be clipped (`fit_actions`).

    Raises:
        SimulationError: for a value that is not finite, naming episode and step.
    """
    actions = np.array(chunks[:, :execute], dtype=np.float64)
    actions[~playing.active] = 0.0
    broken = ~np.isfinite(actions)
    if broken.any():
        slot, step, dimension = (int(index) for index in np.argwhere(broken)[0])
        raise SimulationError(
            f"the policy's action for episode {playing.episode[slot]}, step {done[slot] + step}, dimension "
            f"{dimension}, is {actions[slot, step, dimension]}: was the policy trained to the end on this task?"
        )
    fitted, outside = fit_actions(actions, layout)
    outside[~playing.active] = False
    return fitted, outside
