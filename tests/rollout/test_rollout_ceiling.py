"""The expert through a tokenizer, and demonstrations replayed, on the point environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from point_env import PointEnv

from daps_robot.control import plan_keys
from daps_robot.errors import ConfigError, DataError, SimulationError
from daps_robot.rollout.ceiling import Identity, ThroughTokenizer, tokenizer_ceiling
from daps_robot.rollout.replay import replay_demos
from daps_robot.rollout.video import film_outcomes
from daps_robot.types import Demo, PlanRequest


def drive(seed: int, noise: float = 0.0, max_steps: int = 60) -> tuple[np.ndarray, bool]:
    """The expert at the wheel, step by step: its actions, and whether it succeeded."""
    env = PointEnv()
    obs, _ = env.reset(seed=seed)
    expert, actions = env.make_expert(noise=noise, seed=seed), []
    for _ in range(max_steps):
        actions.append(expert.act(obs))
        obs, _, _, _, info = env.step(actions[-1])
        if info["success"]:
            return np.stack(actions), True
    return np.stack(actions), False


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize(("execute", "workers"), [(1, 1), (3, 2), (8, 1)])
def test_identity_is_the_expert_itself(env_id: str, noise: float, execute: int, workers: int) -> None:
    """Looking ahead leaves no trace: simulator (its random numbers too) and expert go on as if nothing had happened."""
    found = tokenizer_ceiling(
        env_id,
        Identity(horizon=8),
        first_seed=7,
        episodes=6,
        slots=3,
        execute=execute,
        max_steps=60,
        workers=workers,
        expert_noise=noise,
        progress=False,
    )
    for record, actions in zip(found.records, found.actions, strict=True):
        expected, success = drive(7 + record.index, noise)
        np.testing.assert_array_equal(actions, expected)
        assert record.success == success and record.length == len(expected)
    assert found.seconds.lookahead > 0


class Halving:
    """A tokenizer that loses: half of every action is gone, with noise by key; it sees the observation."""

    obs_keys, history, horizon = ("position",), 2, 8

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def reconstruct(self, chunks: np.ndarray, observations: np.ndarray, keys: np.ndarray) -> np.ndarray:
        self.seen.append((chunks, observations, keys))
        noise = np.stack([np.random.default_rng(int(key)).standard_normal(chunks.shape[1:]) for key in keys])
        return (0.5 * chunks + 0.1 * noise).astype(np.float32)


def test_a_lossy_tokenizer_is_the_same_for_any_number_of_workers(env_id: str) -> None:
    found, seen = [], []
    for workers in (1, 2):
        tokenizer = Halving()
        result = tokenizer_ceiling(
            env_id,
            tokenizer,
            first_seed=7,
            episodes=5,
            slots=3,
            execute=4,
            max_steps=40,
            workers=workers,
            progress=False,
        )
        found.append((result.records, [actions.tobytes() for actions in result.actions]))
        seen.append([tuple(part.tobytes() for part in call) for call in tokenizer.seen])
    assert found[0] == found[1] and seen[0] == seen[1]
    plain = tokenizer_ceiling(
        env_id, Identity(8), first_seed=7, episodes=5, slots=3, execute=4, max_steps=40, workers=1, progress=False
    )
    assert result.mean_length > plain.mean_length
    chunks, observations, _ = tokenizer.seen[0]
    assert chunks.shape == (3, 8, 2) and observations.shape == (3, 2, 2)


def test_it_needs_an_expert() -> None:
    with pytest.raises(SimulationError, match=r"Pendulum-v1 .* lacks make_expert, get_state, set_state"):
        tokenizer_ceiling("Pendulum-v1", Identity(8), first_seed=0, episodes=1, workers=1, progress=False)
    with pytest.raises(ConfigError, match="expert_chunk"):
        ThroughTokenizer(Identity(8)).plan(PlanRequest(np.zeros((1, 1, 0), np.float32), np.zeros(1, np.int64)))


def demos_of(seeds: range) -> list[Demo]:
    demos = []
    for seed in seeds:
        actions, _ = drive(seed)
        env = PointEnv()
        obs, _ = env.reset(seed=seed)
        states, seen = [], []
        for action in actions:
            states.append(np.concatenate([env.position, env.goal]))
            seen.append(env.position.astype(np.float32).copy())
            env.step(action)
        obs = {"position": np.stack(seen)}
        demos.append(Demo(f"demo_{seed}", actions.astype(np.float32), obs, np.stack(states), seed))
    return demos


@pytest.mark.parametrize("workers", [1, 2])
def test_plain_replay_reaches_the_goal(env_id: str, workers: int, tmp_path: Path) -> None:
    demos = demos_of(range(5))
    found = replay_demos(env_id, demos, workers=workers, env_kwargs={"drift": 0.0}, progress=False)
    assert [record.name for record in found.records] == [demo.name for demo in demos]
    assert "do not start from a seed" in (film_outcomes(found, tmp_path).note or "")
    # The drift of the recording is missing, so that the last centimetres may be too.
    assert found.successes >= 3
    again = replay_demos(env_id, demos, tokenizer=Identity(8), workers=1, env_kwargs={"drift": 0.0}, progress=False)
    assert [(a.success, a.length) for a in again.records] == [(b.success, b.length) for b in found.records]
    assert again.records[0].plans == -(-len(demos[0]) // 8)


def test_replays_have_scores(env_id: str) -> None:
    demos, kwargs = demos_of(range(3)), {"drift": 0.0, "score": 0.9}
    demos[0] = replace(demos[0], actions=np.zeros_like(demos[0].actions))
    found = replay_demos(env_id, demos, workers=1, env_kwargs=kwargs, progress=False)
    distance = np.linalg.norm(demos[0].states[0][:2] - demos[0].states[0][2:])  # type: ignore[index]
    assert found.records[0].score == pytest.approx(0.9 * (1 - distance / 3))
    assert [record.score for record in found.records if record.success] == [1.0] * found.successes
    assert found.graded and found.mean_score == pytest.approx(np.mean([record.score for record in found.records]))


def test_replay_windows(env_id: str) -> None:
    demos = demos_of(range(3))
    tokenizer = Halving()
    found = replay_demos(env_id, demos, tokenizer=tokenizer, workers=1, progress=False)
    assert found.successes < 3
    chunks, observations, keys = tokenizer.seen[0]
    assert len(tokenizer.seen) == 1 and len(chunks) == 64  # a fixed shape
    length = len(demos[0])
    last = -(-length // 8) - 1
    tail = chunks[last]
    np.testing.assert_array_equal(tail[: length - 8 * last], demos[0].actions[8 * last :])
    assert (tail[length - 8 * last :] == demos[0].actions[-1]).all()
    np.testing.assert_array_equal(observations[0], demos[0].obs["position"][[0, 0]])
    np.testing.assert_array_equal(observations[1], demos[0].obs["position"][[7, 8]])
    np.testing.assert_array_equal(chunks[last + 1], demos[1].actions[:8])
    assert keys[last + 1] == plan_keys(np.array([1]), np.array([0]))[0]


def test_replay_says_what_is_wrong(env_id: str) -> None:
    demo = demos_of(range(1))[0]
    with pytest.raises(DataError, match="no demonstrations"):
        replay_demos(env_id, [])
    with pytest.raises(DataError, match="demo_x: no simulator states"):
        replay_demos(env_id, [demo, Demo("demo_x", demo.actions, demo.obs)])
    wide = Demo("demo_w", np.zeros((4, 7), np.float32), {}, demo.states[:4] if demo.states is not None else None)
    with pytest.raises(SimulationError, match=r"demo_w has 7 action dimensions.*takes 2"):
        replay_demos(env_id, [wide], workers=1)
    with pytest.raises(SimulationError, match="lacks flat_state"):
        replay_demos("Pendulum-v1", [demo], workers=1)
    with pytest.raises(SimulationError, match="failed on demo_0 at step 3: RuntimeError"):
        replay_demos(env_id, [demo, demo], workers=2, env_kwargs={"fault": "raise"})
