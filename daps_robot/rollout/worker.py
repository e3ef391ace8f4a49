"""What runs in a simulator process: environments, their episodes, the expert's lookahead.

No torch here, and nothing that imports it: a worker starts in a fraction of a second and stays small.

An environment that can save and restore its whole state (`get_state`, `set_state`) serves all slots of its worker in
turn: a MuJoCo model with its meshes takes 100 MB and half a second to build. Any other gets one environment a slot.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Bool, Float, Int, UInt8

from daps_robot.data.cameras import image_key
from daps_robot.errors import SimulationError
from daps_robot.rollout.simulation import EXPERT, Layout, as_dict, flatten, layout_of, make_env, score_of, succeeded


@dataclass(frozen=True)
class Task:
    """What is played, the same for every worker.

    Attributes:
        spec: the environment, as Gymnasium registered it.
        obs_keys: the observation keys that the policy sees, in its order.
        history: n, observations up to the current one that the policy sees.
        horizon: h, steps of the expert's lookahead.
        execute: e, steps executed per plan.
        max_steps: the most control steps of an episode.
        episodes: how many episodes there are; slot s plays s, s + slots, s + 2·slots, …
        slots: in all workers together.
        first_seed: episode i starts from `reset(seed=first_seed + i)`.
        needs_expert: plans come with the expert's next h actions.
        expert_noise: the noise of those actions, as `make_expert` takes it.
        env_kwargs: further arguments of `gymnasium.make`.
        cameras: whose pictures the policy sees, in its order.
    """

    spec: EnvSpec
    obs_keys: tuple[str, ...]
    history: int
    horizon: int
    execute: int
    max_steps: int
    episodes: int
    slots: int
    first_seed: int
    needs_expert: bool = False
    expert_noise: float = 0.0
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlotRound:
    """What became of k slots, those of one group, in a round.

    Attributes:
        episode: (k,) the episode that needs a plan now, -1 in a slot that has none left.
        observations: (k n o) what that plan is to be made from; in a slot that has none left, its last observations.
        executed: (k,) steps executed of the last plan.
        ended: (k,) whether the episode that they belong to ended with them.
        success: (k,) whether it succeeded.
        score: (k,) the largest score of its steps so far.
        expert: (k h a) the expert's next actions, where they were asked for.
        images: (k n c height width 3) what the cameras saw, where there are some.
        simulator_seconds: processor time inside the environments' `step` and `reset`, pictures included.
        lookahead_seconds: processor time of the expert's lookahead, simulation included.
    """

    episode: Int[np.ndarray, " k"]
    observations: Float[np.ndarray, "k n o"]
    executed: Int[np.ndarray, " k"]
    ended: Bool[np.ndarray, " k"]
    success: Bool[np.ndarray, " k"]
    score: Float[np.ndarray, " k"]
    expert: Float[np.ndarray, "k h a"] | None
    images: UInt8[np.ndarray, "k n c height width 3"] | None
    simulator_seconds: float
    lookahead_seconds: float


def can_share(env: gym.Env[Any, Any]) -> bool:
    """Whether an environment can serve several slots in turn: all that it remembers lies in its simulator's state.

    Gymnasium's own two wrappers are no hindrance: a shared environment is stepped without them, and `Slot` keeps the
    time limit itself. Further wrappers may have a memory of their own.
    """
    return is_plain(env) and all(hasattr(env.unwrapped, name) for name in ("get_state", "set_state"))


def is_plain(env: gym.Env[Any, Any]) -> bool:
    """Whether nothing but Gymnasium's own wrappers lies around an environment."""
    return env.spec is not None and not env.spec.additional_wrappers


def draw_when_asked(simulator: Any) -> bool:
    """Has a simulator leave pictures out of its observations (`drawing`), to draw them when asked (`pictures`), if it can."""
    if not all(hasattr(simulator, name) for name in ("drawing", "pictures")):
        return False
    simulator.drawing = False
    return True


class Slot:
    """The episodes that fall to a slot, one after the other, in an environment of its own or a shared one."""

    def __init__(self, task: Task, index: int, env: gym.Env[Any, Any], layout: Layout) -> None:
        self.task, self._next = task, index
        # The simulator's own interface (get_state, make_expert, …) lies under Gymnasium's wrappers.
        self._simulator: Any = env.unwrapped
        self._shared = can_share(env)
        self._env = env.unwrapped if self._shared else env
        self._state: Any = None
        self._limit = min(task.max_steps, task.spec.max_episode_steps or task.max_steps)
        self.episode = -1
        self._step, self._score = 0, 0.0
        nothing = np.zeros(sum(layout.obs_dims[key] for key in task.obs_keys), np.float32)  # a slot may never play
        self._history: deque[Float[np.ndarray, " o"]] = deque([nothing] * task.history, maxlen=task.history)
        self._asks = is_plain(env) and draw_when_asked(self._simulator)
        self._keys = [image_key(camera) for camera in task.cameras]
        blank = np.zeros((len(self._keys), *(layout.pictures[self._keys[0]] if self._keys else (0, 0)), 3), np.uint8)
        self._pictures: deque[UInt8[np.ndarray, "c height width 3"]] = deque([blank] * task.history, maxlen=task.history)
        self.plan: Float[np.ndarray, "h a"] = np.zeros((task.horizon, len(layout.low)), np.float32)
        self._observation: dict[str, Any] = {}
        self._expert: Any = None
        self.simulator_seconds = 0.0
        self.lookahead_seconds = 0.0

    def turn(self, actions: Float[np.ndarray, "e a"] | None) -> tuple[int, bool, bool, float]:
        """A round of this slot: executes its plan, goes on to the next episode where one ends, looks ahead.

        Args:
            actions: the plan; None at the start, when there is no episode yet.

        Returns:
            Steps executed, whether the episode ended, whether it succeeded, and its largest score so far.
        """
        executed, ended, success, score = 0, False, False, 0.0
        if actions is None:
            self.begin()
        elif self.episode >= 0:
            if self._shared:
                self._simulator.set_state(self._state)
            executed, ended, success = self.play(actions)
            score = self._score
            if ended:
                self.begin()
        if self.episode >= 0:
            if self.task.needs_expert:
                self.plan = self.look_ahead()
            if self._shared:
                self._state = self._simulator.get_state()
        return executed, ended, success, score

    def begin(self) -> None:
        """Starts the slot's next episode, or leaves the slot finished where there is none."""
        if self._next >= self.task.episodes:
            self.episode = -1
            return
        self.episode, self._next, self._step, self._score = self._next, self._next + self.task.slots, 0, 0.0
        seed = self.task.first_seed + self.episode
        start = perf_counter()
        observation, _ = self._env.reset(seed=seed)
        self.simulator_seconds += perf_counter() - start
        self._see(observation)
        self._look(observation)
        for seen in (self._history, self._pictures):
            seen.extend([seen[-1]] * (self.task.history - 1))
        if self.task.needs_expert:
            self._expert = self._simulator.make_expert(noise=self.task.expert_noise, seed=seed)

    def play(self, actions: Float[np.ndarray, "e a"]) -> tuple[int, bool, bool]:
        """Executes a plan: (steps executed, whether the episode ended, whether it succeeded).

        Of pictures, only the last n are asked for, from which the next plan is made: one costs as much as seven steps.

        Raises:
            SimulationError: naming episode and step, where the environment raises or does not report success.
        """
        goes_on = self._step + len(actions) < self._limit
        unseen = len(actions) - self.task.history if goes_on else len(actions)
        for executed, action in enumerate(actions[: self._limit - self._step], start=1):
            if self._expert is not None:
                self._expert.act(self._observation)  # its memory follows what really happens; the action is not used
            start = perf_counter()
            try:
                observation, _, terminated, truncated, info = self._env.step(action)
            except Exception as error:
                raise SimulationError(
                    f"{self.task.spec.id} failed in episode {self.episode} at step {self._step}: {type(error).__name__}: {error}"
                ) from error
            self.simulator_seconds += perf_counter() - start
            self._step += 1
            self._see(observation)
            success = succeeded(info, self.task.spec.id)
            if executed > unseen and not success:
                self._look(observation)
            self._score = max(self._score, score_of(info, success, self.task.spec.id))
            if success or terminated or truncated or self._step >= self._limit:
                return executed, True, success
        return len(actions), False, False

    def look_ahead(self) -> Float[np.ndarray, "h a"]:
        """The actions of a copy of the expert over the next h steps of a copy of the simulator.

        After the end of an episode in the copy its last action is repeated, as in windows over a demonstration's end.
        """
        start = perf_counter()
        expert, state = copy.deepcopy(self._expert), self._simulator.get_state()
        observation: Mapping[str, Any] = self._observation
        actions: list[np.ndarray] = []
        for ahead in range(self.task.horizon):
            actions.append(np.array(expert.act(observation), dtype=np.float32))
            if ahead + 1 < self.task.horizon:  # what the last action leads to is of no use
                seen, _, terminated, truncated, _ = self._simulator.step(actions[-1])
                observation = as_dict(seen)
                if terminated or truncated:
                    break
        self._simulator.set_state(state)
        actions += [actions[-1]] * (self.task.horizon - len(actions))
        self.lookahead_seconds += perf_counter() - start
        return np.stack(actions)

    @property
    def history(self) -> Float[np.ndarray, "n o"]:
        """The last n observations, the current one last."""
        return np.stack(self._history)

    @property
    def pictures(self) -> UInt8[np.ndarray, "n c height width 3"]:
        """The last n pictures of each camera, the current ones last."""
        return np.stack(self._pictures)

    def _look(self, observation: Any) -> None:
        """Keeps what the cameras see, where the policy has some."""
        if self._keys:
            start = perf_counter()
            seen = self._simulator.pictures() if self._asks else as_dict(observation)
            self._pictures.append(np.stack([seen[key] for key in self._keys]))
            self.simulator_seconds += perf_counter() - start

    def _see(self, observation: Any) -> None:
        seen = as_dict(observation)
        self._history.append(flatten(seen, self.task.obs_keys))
        if self.task.needs_expert:  # a copy: the lookahead steps the same environment, which may reuse its arrays
            self._observation = copy.deepcopy(dict(seen))


class SlotGroups:
    """The slots of one worker, in groups that play in turn; the worker of each slot makes no difference to what it does."""

    def __init__(self, task: Task, groups: Sequence[Sequence[int]]) -> None:
        self.task = task
        self._envs = [make_env(task.spec, task.env_kwargs)]
        first = self._envs[0]
        self._layout = layout_of(first, task.spec.id)
        known = self._layout.obs_dims
        unknown = [key for key in task.obs_keys if key not in known]
        if unknown:
            raise SimulationError(
                f"{task.spec.id} does not observe {', '.join(unknown)}, which the policy needs; it observes {', '.join(known)}"
            )
        needed = EXPERT if task.needs_expert else ()
        missing = [name for name in needed if not hasattr(first.unwrapped, name)]
        if missing:
            raise SimulationError(f"{task.spec.id} cannot look ahead with a scripted expert: it lacks {', '.join(missing)}")
        if blind := [camera for camera in task.cameras if image_key(camera) not in self._layout.pictures]:
            raise SimulationError(
                f"{task.spec.id} has no pictures of {', '.join(blind)}, which the policy needs; it observes {', '.join(known)}"
            )
        slots = [index for group in groups for index in group]
        if not can_share(first):
            self._envs += [make_env(task.spec, task.env_kwargs) for _ in slots[1:]]
        made = {index: Slot(task, index, self._envs[i % len(self._envs)], self._layout) for i, index in enumerate(slots)}
        self._groups = [[made[index] for index in group] for group in groups]

    def layout(self) -> Layout:
        """The sizes of the environment's observations and actions."""
        return self._layout

    def play(self, group: int, chunks: Float[np.ndarray, "k e a"] | None) -> SlotRound:
        """Executes one plan in every slot of a group that has an episode; ended episodes give way to the slot's next.

        Without plans, resets every slot to its first episode.
        """
        slots = self._groups[group]
        plans = [None] * len(slots) if chunks is None else chunks
        wall, busy = perf_counter(), thread_time()
        outcomes = [slot.turn(plan) for slot, plan in zip(slots, plans, strict=True)]
        # Steps are timed by the wall clock, which costs nothing to read; what of it was this process's is found out once.
        share = min(1.0, (thread_time() - busy) / (perf_counter() - wall))
        return self._report(slots, outcomes, share)

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            env.close()

    def _report(self, slots: list[Slot], outcomes: list[tuple[int, bool, bool, float]], share: float) -> SlotRound:
        executed, ended, success, score = zip(*outcomes, strict=True)
        report = SlotRound(
            episode=np.array([slot.episode for slot in slots]),
            observations=np.stack([slot.history for slot in slots]),
            executed=np.array(executed),
            ended=np.array(ended),
            success=np.array(success),
            score=np.array(score),
            expert=np.stack([slot.plan for slot in slots]) if self.task.needs_expert else None,
            images=np.stack([slot.pictures for slot in slots]) if self.task.cameras else None,
            simulator_seconds=share * sum(slot.simulator_seconds for slot in slots),
            lookahead_seconds=share * sum(slot.lookahead_seconds for slot in slots),
        )
        for slot in slots:
            slot.simulator_seconds = slot.lookahead_seconds = 0.0
        return report
