"""The same on a real simulator, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from daps_robot.rollout.ceiling import Identity, tokenizer_ceiling
from daps_robot.rollout.replay import replay_demos
from daps_robot.rollout.simulation import find_spec as find_env
from daps_robot.rollout.simulation import make_env
from daps_robot.rollout.video import film_outcomes
from daps_robot.types import Demo

if find_spec("robosuite") is None or find_spec("daps_robot.envs.tasks") is None:
    pytest.skip("robosuite is not installed", allow_module_level=True)

LIFT = "daps_robot/Lift-v0"


@pytest.fixture(scope="module")
def demos() -> list[Demo]:
    """The expert, driven step by step without any of the rollout machinery."""
    env, demos = make_env(find_env(LIFT), {}), []
    for seed in range(50_000, 50_003):
        obs, info = env.reset(seed=seed)
        expert, actions, states = env.unwrapped.make_expert(noise=0.0, seed=seed), [], []  # type: ignore[attr-defined]
        while not info.get("success") and len(actions) < 200:
            states.append(env.unwrapped.flat_state())  # type: ignore[attr-defined]
            actions.append(np.asarray(expert.act(obs), np.float32))
            obs, _, _, _, info = env.step(actions[-1])
        demos.append(Demo(f"demo_{seed}", np.stack(actions), {}, np.stack(states), seed))
    env.close()
    return demos


@pytest.mark.parametrize(("execute", "workers"), [(8, 1), (5, 2)])
def test_looking_ahead_leaves_no_trace(demos: list[Demo], execute: int, workers: int) -> None:
    found = tokenizer_ceiling(
        LIFT, Identity(16), first_seed=50_000, episodes=3, slots=3, execute=execute, workers=workers, progress=False
    )
    assert found.successes == 3
    for actions, demo in zip(found.actions, demos, strict=True):
        np.testing.assert_array_equal(actions, demo.actions)


def test_film(tmp_path: Path) -> None:
    found = tokenizer_ceiling(LIFT, Identity(16), first_seed=50_000, episodes=1, slots=1, workers=1, progress=False)
    films = film_outcomes(found, tmp_path, count=1)
    if films.note:
        assert films.note.startswith("no videos: daps_robot/Lift-v0 cannot be rendered here")
        pytest.skip(films.note)
    assert films.paths[0].stat().st_size > 10_000


def test_replay(demos: list[Demo]) -> None:
    found = replay_demos(LIFT, demos, tokenizer=Identity(16), workers=1, progress=False)
    assert found.successes == 3 and [record.length for record in found.records] == [len(demo) for demo in demos]
