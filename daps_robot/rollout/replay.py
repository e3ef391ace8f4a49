"""Whole demonstrations played back open loop, each from its own first state.

The only ceiling that data without an expert can have. Relative actions add their errors up over a demonstration, so it
lies below what a policy that re-plans can reach; beside it belongs the same replay of the plain actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from daps_robot.control import plan_keys
from daps_robot.errors import ConfigError, DataError
from daps_robot.rollout.ceiling import Reconstructor
from daps_robot.rollout.channel import Worker, close_all, start_workers
from daps_robot.rollout.player import Outcome
from daps_robot.rollout.results import EpisodeRecord, Evaluation, Seconds
from daps_robot.rollout.simulation import find_spec
from daps_robot.rollout.vector import worker_count
from daps_robot.types import Demo

BATCH = 64
"""Rows of every reconstruction batch: fixed, so that a demonstration's last bit does not depend on its company."""


def replay_demos(
    env_id: str,
    demos: Sequence[Demo],
    *,
    tokenizer: Reconstructor | None = None,
    workers: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Replays demonstrations; success counts if reached at any step.

    Args:
        env_id: a Gymnasium id whose `reset` takes `options={"state": flattened simulator state}`, and whose `flat_state()`
            gives such a state.
        demos: with states.
        tokenizer: takes the actions through codes and back, in consecutive windows of h steps; plain without.
        workers: simulator processes; 0 or 1 plays in this one, None takes one a core.
        env_kwargs: further arguments of `gymnasium.make`.
        progress: a progress bar, where standard error is a terminal.

    Returns:
        One record per demonstration, in order. Of the seconds, `simulator` is the busiest worker's.

    Raises:
        DataError: for no demonstrations, or one without states.
        SimulationError: for an environment that is not to be had, does not take the states, or fails.
    """
    if not demos:
        raise DataError(f"no demonstrations to replay in {env_id}")
    lacking = [demo.name for demo in demos if demo.states is None]
    if lacking:
        raise DataError(
            f"{', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''}: no simulator states, so there is nothing to "
            "replay from; write `states` when converting the data, or leave the replay out"
        )
    spec = find_spec(env_id)
    sequences = [demo.actions for demo in demos]
    start = perf_counter()
    if tokenizer is not None:
        sequences = reconstruct_demos(demos, tokenizer)
    policy_seconds = perf_counter() - start
    count = worker_count(workers, len(demos))
    players = start_workers("daps_robot.rollout.player:Player", [(spec, dict(env_kwargs or {}))] * count, in_process=count == 1)
    startup = perf_counter() - start - policy_seconds
    try:
        outcomes = run_all(players, demos, sequences, progress)
    finally:
        close_all(players)
    total = perf_counter() - start - startup
    simulator = max(sum(outcome.simulator_seconds for outcome in outcomes[w::count]) for w in range(count))
    return Evaluation(
        env_id=env_id,
        records=tuple(
            EpisodeRecord(
                index=index,
                seed=demo.seed,
                success=outcome.success,
                length=outcome.length,
                plans=-(-len(demo) // tokenizer.horizon) if tokenizer is not None else 0,
                clipped=outcome.clipped,
                score=outcome.score,
                name=demo.name,
            )
            for index, (demo, outcome) in enumerate(zip(demos, outcomes, strict=True))
        ),
        seconds=Seconds(
            total=total,
            simulator=simulator,
            lookahead=0.0,
            waiting=total - policy_seconds,
            policy=policy_seconds,
            other=0.0,
            startup=startup,
        ),
        settings={"workers": count, "tokenized": tokenizer is not None},
        actions=tuple(sequences),
    )


def run_all(players: Sequence[Worker], demos: Sequence[Demo], sequences: Sequence[np.ndarray], progress: bool) -> list[Outcome]:
    """Plays demonstration i in worker i mod W, one under way in each at a time."""

    def submit(index: int) -> None:
        states = demos[index].states
        assert states is not None
        players[index % len(players)].submit("play", demos[index].name, states[0], sequences[index])

    outcomes: list[Outcome] = []
    for index in range(len(players)):
        submit(index)
    for index in tqdm(range(len(demos)), unit="demo", disable=None if progress else True, leave=False):
        outcomes.append(players[index % len(players)].result())
        if index + len(players) < len(demos):
            submit(index + len(players))
    return outcomes


def reconstruct_demos(demos: Sequence[Demo], tokenizer: Reconstructor) -> list[Float[np.ndarray, "_ a"]]:
    """Every demonstration's actions, encoded and decoded window by window.

    Windows of h steps follow one another; the last is padded by repeating the last action, and cut after decoding. The
    observation history of a window ends at its first step, and repeats the first observation before the start. The key
    of a window is `plan_keys(index of the demonstration, number of the window)`.

    Raises:
        ConfigError: where the decoded chunks have another shape.
    """
    h, n = tokenizer.horizon, tokenizer.history
    chunks, observations, episodes, plans = [], [], [], []
    for index, demo in enumerate(demos):
        seen = demo.flat_obs(tokenizer.obs_keys) if tokenizer.obs_keys else np.zeros((len(demo), 0), np.float32)
        for plan, start in enumerate(range(0, len(demo), h)):
            chunks.append(demo.actions[np.minimum(np.arange(start, start + h), len(demo) - 1)])
            observations.append(seen[np.maximum(np.arange(start - n + 1, start + 1), 0)])
            episodes.append(index)
            plans.append(plan)
    keys = plan_keys(np.array(episodes), np.array(plans))
    everything = (np.stack(chunks), np.stack(observations), keys)
    decoded = []
    for start in range(0, len(keys), BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), len(keys) - 1)
        batch = [part[rows] for part in everything]
        out = np.asarray(tokenizer.reconstruct(batch[0], batch[1], batch[2]))
        if out.shape != batch[0].shape:
            raise ConfigError(f"the tokenizer turned chunks of shape {batch[0].shape} into {out.shape}; it does not fit")
        decoded.append(out)
    windows = np.concatenate(decoded)[: len(keys)]
    owner = np.array(episodes)
    return [np.concatenate(windows[owner == index])[: len(demo)] for index, demo in enumerate(demos)]
