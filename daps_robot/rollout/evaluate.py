"""A policy's success rate: plan a chunk of h steps, execute e of them, plan again.

observations   o_{t-n+1} … o_t |
chunk                          a_t  a_{t+1} … a_{t+h-1}
executed                       a_t … a_{t+e-1}             e ≤ h, then re-plan
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from daps_robot.control import plan_keys
from daps_robot.data.cameras import image_key
from daps_robot.errors import ConfigError, SimulationError
from daps_robot.rollout.results import EpisodeRecord, Evaluation, Seconds
from daps_robot.rollout.simulation import Layout, find_spec, with_cameras
from daps_robot.rollout.threads import torch_threads
from daps_robot.rollout.vector import Round, SlotPool, admit_actions, admit_observations, worker_count
from daps_robot.rollout.video import film_outcomes
from daps_robot.rollout.worker import Task
from daps_robot.types import PlanRequest, Policy

KEPT_OBSERVATIONS = 256
"""Rows of policy input that an evaluation keeps, to measure latency on."""

DEFAULT_MAX_STEPS = 400
"""Control steps of an episode in an environment without a limit of its own."""


def evaluate(
    env_id: str,
    policy: Policy,
    *,
    first_seed: int,
    episodes: int = 100,
    max_steps: int | None = None,
    execute: int = 8,
    slots: int = 20,
    workers: int | None = None,
    threads: int = 1,
    expert_noise: float = 0.0,
    env_kwargs: Mapping[str, Any] | None = None,
    video: str | Path | None = None,
    videos: int = 2,
    progress: bool = True,
) -> Evaluation:
    """Plays episodes with a policy and counts successes; the outcome is the same for any number of workers.

    Args:
        env_id: a Gymnasium id, or "module:Id".
        policy: asked for a group of slots at once, always with `slots` rows. With `needs_expert`, each request holds the next
            h actions of the environment's scripted expert. With attributes `cameras` and `picture_size` (height and width), each
            holds what these cameras see, and nothing else is drawn.
        first_seed: episode i starts from `reset(seed=first_seed + i)`; keep clear of the demonstrations' seeds.
        episodes: how many.
        max_steps: control steps of an episode, within the environment's own limit; None takes that limit (DEFAULT_MAX_STEPS where
            it has none). Success counts if reached at any of them, and of scores the largest.
        execute: e, steps executed of a chunk before the next plan.
        slots: S, the policy's batch size. Two groups of S episodes are under way (one, if there are no more than S): while
            one is planned, the other is simulated. With more of them a plan costs less an episode.
        workers: simulator processes; 0 or 1 plays in this one, None takes one a core.
        threads: that torch computes plans with on the CPU; see `torch_threads` for why one.
        expert_noise: of the expert, for a policy that needs it.
        env_kwargs: further arguments of `gymnasium.make`.
        video: a folder for films of the first successes and failures; none are made without.
        videos: how many at most.
        progress: a progress bar, where standard error is a terminal.

    Raises:
        ConfigError: for settings that cannot work.
        SimulationError: for an environment that is not to be had, does not fit the policy, or fails; a worker that
            dies; an observation or an action that is not finite.
    """
    if not 1 <= execute <= policy.horizon:
        raise ConfigError(f"execute={execute} does not fit the policy's chunks of {policy.horizon} steps; take 1 to h")
    spec = find_spec(env_id)
    limit = (spec.max_episode_steps or DEFAULT_MAX_STEPS) if max_steps is None else max_steps
    for name, value in (("episodes", episodes), ("max_steps", limit), ("slots", slots), ("threads", threads)):
        if value < 1:
            raise ConfigError(f"{name}={value} cannot be; take at least 1")
    groups = 1 if episodes <= slots else 2
    cameras = tuple(getattr(policy, "cameras", ()))
    task = Task(
        spec=spec,
        obs_keys=tuple(policy.obs_keys),
        history=policy.history,
        horizon=policy.horizon,
        execute=execute,
        max_steps=limit,
        episodes=episodes,
        slots=groups * slots,
        first_seed=first_seed,
        needs_expert=policy.needs_expert,
        expert_noise=expert_noise,
        env_kwargs=with_cameras(spec, env_kwargs or {}, cameras, getattr(policy, "picture_size", None)),
        cameras=cameras,
    )
    count = worker_count(workers, slots)
    begun = perf_counter()
    with SlotPool(task, groups, count) as pool, torch_threads(threads):
        check_fit(policy, pool.layout, env_id)
        startup = perf_counter() - begun
        ledger = play(pool, policy, task, progress)
    evaluation = Evaluation(
        env_id=env_id,
        records=tuple(ledger.records[index] for index in range(episodes)),
        seconds=split_seconds(pool, ledger, startup),
        settings={
            "first_seed": first_seed,
            "max_steps": limit,
            "execute": execute,
            "horizon": policy.horizon,
            "slots": slots,
            "workers": count,
            "threads": threads,
            "expert_noise": expert_noise if policy.needs_expert else None,
            "env_kwargs": dict(env_kwargs or {}),
        },
        actions=tuple(np.concatenate(ledger.actions[index]) for index in range(episodes)),
        observations=np.concatenate(ledger.observations)[:KEPT_OBSERVATIONS],
        images=np.concatenate(ledger.images)[:KEPT_OBSERVATIONS] if cameras else None,
    )
    if video is None:
        return evaluation
    films = film_outcomes(evaluation, Path(video), count=videos, env_kwargs=env_kwargs)
    return replace(evaluation, videos=tuple(str(path) for path in films.paths), video_note=films.note)


class Ledger:
    """What happened so far, by episode."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.records: dict[int, EpisodeRecord] = {}
        self.actions: dict[int, list[np.ndarray]] = {index: [] for index in range(task.episodes)}
        self.observations: list[np.ndarray] = []
        self.images: list[np.ndarray] = []
        self.length, self.plans, self._clipped = (np.zeros(task.slots, np.int64) for _ in range(3))
        self.policy_seconds = 0.0
        self.waiting_seconds = 0.0
        self.total_seconds = 0.0

    def note_request(self, playing: Round) -> None:
        """Keeps some of what the policy is asked."""
        if sum(len(rows) for rows in self.observations) < KEPT_OBSERVATIONS:
            self.observations.append(playing.observations[playing.active].copy())
            if playing.images is not None:
                self.images.append(playing.images[playing.active].copy())

    def note_round(self, played: Round, after: Round, actions: np.ndarray, outside: np.ndarray) -> int:
        """Books what became of a round's plans; the number of episodes that ended."""
        for row in np.flatnonzero(played.active):
            slot, index, executed = int(played.slots[row]), int(played.episode[row]), int(after.executed[row])
            self.actions[index].append(actions[row, :executed].copy())
            self.length[slot] += executed
            self.plans[slot] += 1
            self._clipped[slot] += int(outside[row, :executed].sum())
            if after.ended[row]:
                self.records[index] = EpisodeRecord(
                    index=index,
                    seed=self._task.first_seed + index,
                    success=bool(after.success[row]),
                    length=int(self.length[slot]),
                    plans=int(self.plans[slot]),
                    clipped=int(self._clipped[slot]),
                    score=float(after.score[row]),
                )
                self.length[slot] = self.plans[slot] = self._clipped[slot] = 0
        return int(after.ended.sum())


@dataclass
class Group:
    """A group of slots whose plans are being executed: what it was planned from, and its plans.

    Attributes:
        now: the round at which it was planned; None before the first.
        actions, outside: as `admit_actions` returns them.
    """

    now: Round | None = None
    actions: Any = None
    outside: Any = None


def play(pool: SlotPool, policy: Policy, task: Task, progress: bool) -> Ledger:
    """The evaluation loop: observe, plan, execute, until no slot has an episode left.

    While one group of slots is planned, the workers execute the plans of the other.
    """
    ledger = Ledger(task)
    begun = perf_counter()
    playing = {index: Group() for index in range(len(pool.groups))}
    for index in playing:
        pool.submit(index, None)
    with tqdm(total=task.episodes, unit="episode", disable=None if progress else True, leave=False) as bar:
        while playing:
            for index, group in list(playing.items()):
                start = perf_counter()
                now = pool.gather(index)
                ledger.waiting_seconds += perf_counter() - start
                if group.now is not None:
                    bar.update(ledger.note_round(group.now, now, group.actions, group.outside))
                if not now.active.any():
                    del playing[index]
                    continue
                group.now, keys = now, plan_keys(now.episode, ledger.plans[now.slots])
                ledger.note_request(now)
                observations = admit_observations(now, ledger.length[now.slots], pool.layout, task)
                request = PlanRequest(observations, keys, now.expert, now.images)
                start = perf_counter()
                chunks = np.asarray(policy.plan(request))
                ledger.policy_seconds += perf_counter() - start
                expected = (len(now.slots), task.horizon, len(pool.layout.low))
                if chunks.shape != expected:
                    raise SimulationError(
                        f"the policy's chunks have shape {chunks.shape}, but {expected[0]} slots, its horizon of "
                        f"{task.horizon} steps and the {expected[-1]} action dimensions of {task.spec.id} make {expected}"
                    )
                done = ledger.length[now.slots]
                group.actions, group.outside = admit_actions(chunks, now, done, pool.layout, task.execute)
                pool.submit(index, group.actions)
    ledger.total_seconds = perf_counter() - begun
    return ledger


def check_fit(policy: Policy, layout: Layout, env_id: str) -> None:
    """Compares a policy's dimensions with the environment's, where the policy states them.

    A policy may have attributes `observation_dim` (o), `obs_dims`, `action_dim` (a), `cameras` and `picture_size`.

    Raises:
        SimulationError: naming what does not fit.
    """
    dims = {key: layout.obs_dims[key] for key in policy.obs_keys}
    wanted = getattr(policy, "observation_dim", None)
    if wanted is not None and wanted != sum(dims.values()):
        parts = " + ".join(f"{key} {dim}" for key, dim in dims.items())
        raise SimulationError(
            f"the policy was made for {wanted} observation values, but {env_id} gives {sum(dims.values())} ({parts}); "
            "was it trained on another task?"
        )
    for key, wanted in getattr(policy, "obs_dims", {}).items():
        if dims[key] != wanted:
            raise SimulationError(f"the policy was made for {wanted} values of '{key}', but {env_id} gives {dims[key]}")
    wanted = getattr(policy, "picture_size", None)
    for camera in getattr(policy, "cameras", ()):
        if (size := layout.pictures[image_key(camera)]) != wanted:
            raise SimulationError(f"the policy was made for pictures of {wanted} pixels, but {env_id} gives {size} from {camera}")
    wanted = getattr(policy, "action_dim", None)
    if wanted is not None and wanted != len(layout.low):
        raise SimulationError(
            f"the policy was made for {wanted} action dimensions, but {env_id} takes {len(layout.low)}; "
            "was it trained on another task?"
        )


def split_seconds(pool: SlotPool, ledger: Ledger, startup: float) -> Seconds:
    """The account of the time; see `Seconds`."""
    busy: Float[np.ndarray, " w"] = pool.simulator_seconds + pool.lookahead_seconds
    busiest = int(busy.argmax())
    return Seconds(
        total=ledger.total_seconds,
        simulator=float(pool.simulator_seconds[busiest]),
        lookahead=float(pool.lookahead_seconds[busiest]),
        waiting=ledger.waiting_seconds,
        policy=ledger.policy_seconds,
        other=ledger.total_seconds - ledger.waiting_seconds - ledger.policy_seconds,
        startup=startup,
    )
