"""Evaluation on the point environment: the loop, its accounts, its errors, and independence of the worker count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from point_env import PointEnv, PointPolicy

from daps_robot.errors import ConfigError, SimulationError
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.results import plan_keys
from daps_robot.rollout.vector import SlotPool


def quick(env_id: str, policy: object, **settings: object):
    return evaluate(env_id, policy, **{"first_seed": 100, "progress": False, "workers": 1, **settings})  # type: ignore[arg-type]


def test_matches_a_plain_loop(env_id: str) -> None:
    policy = PointPolicy(noise=0.0)
    found = quick(env_id, policy, episodes=1, slots=1, execute=3, max_steps=50)
    env = PointEnv()
    obs, _ = env.reset(seed=100)
    rows, success, actions, plans = (
        [np.concatenate([obs["goal"], obs["position"]]).astype(np.float32)] * 2,
        False,
        [],
        0,
    )
    while not success and len(actions) < 50:
        request = type("Request", (), {"observations": np.stack(rows[-2:])[None], "keys": plan_keys(*np.array([[0], [plans]]))})
        plans += 1
        for action in policy.plan(request)[0, :3]:
            obs, _, _, _, info = env.step(action)
            actions.append(action)
            rows.append(np.concatenate([obs["goal"], obs["position"]]).astype(np.float32))
            if success := info["success"]:
                break
    record = found.records[0]
    assert (record.success, record.length, record.plans, record.seed) == (success, len(actions), plans, 100)
    np.testing.assert_array_equal(found.actions[0], np.stack(actions))


def test_the_same_for_any_number_of_workers(env_id: str) -> None:
    outcomes, requests = [], []
    for workers in (0, 1, 2, 3, 5):
        policy = PointPolicy(history=3)
        found = quick(env_id, policy, episodes=13, slots=5, execute=5, max_steps=40, workers=workers)
        outcomes.append((found.records, [actions.tobytes() for actions in found.actions]))
        requests.append([(each.observations.tobytes(), each.keys.tobytes()) for each in policy.requests])
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert all(request == requests[0] for request in requests)  # stale rows included
    assert 0 < sum(record.success for record in outcomes[0][0]) <= 13


@pytest.mark.parametrize("workers", [1, 2])
def test_slots_that_share_an_environment_do_not_notice(env_id: str, workers: int) -> None:
    shared = quick(env_id, PointPolicy(), episodes=9, slots=4, max_steps=40, workers=workers)
    own = quick("test/StatelessPoint-v0", PointPolicy(), episodes=9, slots=4, max_steps=40, workers=workers)
    assert shared.records == own.records
    assert all((a == b).all() for a, b in zip(shared.actions, own.actions, strict=True))


def test_the_time_limit_of_the_environment_counts() -> None:
    found = quick("test/ShortPoint-v0", PointPolicy(noise=3.0), episodes=6, slots=3, execute=5)
    assert {record.length for record in found.records if not record.success} == {7}


def test_every_slot_plays_its_share_and_the_batch_keeps_its_shape(env_id: str) -> None:
    policy = PointPolicy()
    found = quick(env_id, policy, episodes=7, slots=3, max_steps=16, execute=8)
    assert [record.index for record in found.records] == list(range(7))
    assert [record.seed for record in found.records] == list(range(100, 107))
    assert {request.observations.shape for request in policy.requests} == {(3, 2, 4)}
    few = PointPolicy()
    assert quick(env_id, few, episodes=1, slots=4, max_steps=8).episodes == 1
    assert {request.observations.shape for request in few.requests} == {(4, 2, 4)}


def test_a_finished_slot_keeps_its_row(env_id: str) -> None:
    class OnlyOne(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            chunks = np.array(super().plan(request))
            chunks[1] = 0.0
            return chunks

    policy = OnlyOne()
    found = quick(env_id, policy, episodes=2, slots=2, max_steps=40, execute=8)
    assert [record.success for record in found.records] == [True, False]
    first, last = policy.requests[-2], policy.requests[-1]
    np.testing.assert_array_equal(first.observations[0], last.observations[0])
    assert first.keys[0] == last.keys[0] and first.keys[1] != last.keys[1]


def test_one_group_is_planned_while_the_other_is_simulated(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Told(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            events.append("plan")
            return super().plan(request)

    for name in ("submit", "gather"):
        method = getattr(SlotPool, name)

        def tell(pool: SlotPool, group: int, *rest: object, method: Any = method, name: str = name) -> object:
            events.append(f"{name} {group}")
            return method(pool, group, *rest)

        monkeypatch.setattr(SlotPool, name, tell)
    quick(env_id, Told(), episodes=4, slots=2, max_steps=16, execute=8)
    assert events[:2] == ["submit 0", "submit 1"]
    assert events[2:8] == ["gather 0", "plan", "submit 0", "gather 1", "plan", "submit 1"]


def test_the_history_repeats_the_first_observation(env_id: str) -> None:
    policy = PointPolicy(history=4)
    quick(env_id, policy, episodes=1, slots=1, execute=2, max_steps=4)
    start, later = policy.requests[0].observations[0], policy.requests[1].observations[0]
    assert (start == start[0]).all()
    np.testing.assert_array_equal(later[1], start[0])
    assert (later[2] != later[1]).any() and (later[3] != later[2]).any()


def test_an_episode_ends_at_max_steps(env_id: str) -> None:
    class Still(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            return np.zeros((2, self.horizon, 2), np.float32)

    found = quick(env_id, Still(), episodes=2, slots=2, execute=8, max_steps=11, env_kwargs={"drift": 0.0})
    assert [(record.success, record.length, record.plans) for record in found.records] == [(False, 11, 2)] * 2
    assert found.mean_length == 11 and np.isnan(found.mean_success_length)


@pytest.mark.parametrize(("env", "limit"), [("test/ShortPoint-v0", 7), ("test/Point-v0", 400)])
def test_the_environment_limits_an_episode_where_nothing_else_does(env: str, limit: int) -> None:
    class Still(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            return np.zeros((1, self.horizon, 2), np.float32)

    found = quick(env, Still(), episodes=1, slots=1, env_kwargs={"drift": 0.0})
    assert found.records[0].length == found.settings["max_steps"] == limit


@pytest.mark.parametrize("workers", [1, 2])
def test_the_score_of_an_episode_is_the_largest_of_its_steps(env_id: str, workers: int) -> None:
    class Away(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            chunks = np.array(super().plan(request))
            return chunks if len(self.requests) <= 2 else -chunks  # each group's first plan leads towards the goal

    settings = {"episodes": 6, "slots": 3, "max_steps": 32, "env_kwargs": {"drift": 0.0, "score": 0.9}}
    found = quick(env_id, Away(noise=0.0), workers=workers, **settings)
    for record, actions in zip(found.records, found.actions, strict=True):
        env, scores = PointEnv(drift=0.0, score=0.9), []
        env.reset(seed=record.seed)
        scores = [env.step(action)[4]["score"] for action in actions]
        assert record.score == max(scores) and (record.success or scores[-1] < max(scores))
    assert found.graded and not all(record.success for record in found.records)
    text = found.to_json()
    assert text["mean_score"] == found.mean_score and text["score_ci95"][0] <= found.mean_score <= text["score_ci95"][1]
    assert f"mean score {found.mean_score:.3f}" in str(found)


def test_success_is_the_score_where_the_environment_has_none(env_id: str) -> None:
    found = quick(env_id, PointPolicy(), episodes=8, slots=4, max_steps=12)
    assert 0 < found.successes < 8 and not found.graded
    assert [record.score for record in found.records] == [float(record.success) for record in found.records]
    assert found.mean_score == found.success_rate and "score" not in str(found)


def test_a_score_that_is_none_is_refused(env_id: str) -> None:
    for score in (7.0, float("nan")):
        with pytest.raises(SimulationError, match=r"reports info\[.score.\] = .* from 0 to 1"):
            quick(env_id, PointPolicy(), episodes=1, slots=1, env_kwargs={"score": score})


def test_the_account(env_id: str) -> None:
    found = quick(env_id, PointPolicy(), episodes=6, slots=3, workers=2, max_steps=30, env_kwargs={"step_seconds": 0.002})
    seconds = found.seconds
    parts = seconds.waiting + seconds.policy + seconds.other
    assert parts == pytest.approx(seconds.total)
    assert min(seconds.simulator, seconds.policy, seconds.other) > 0 and seconds.waiting >= 0 and seconds.lookahead == 0
    assert seconds.overhead == pytest.approx(seconds.total / seconds.simulator - 1)
    text = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert text["episodes"] == 6 and text["successes"] == found.successes and len(text["records"]) == 6
    assert text["ci95"] == list(found.ci95) and text["settings"]["workers"] == 2
    assert found.observations is not None and found.observations.shape[1:] == (2, 4)
    assert f"{found.successes}/6" in str(found)


def test_clipped_values_are_counted_where_executed(env_id: str) -> None:
    class Bold(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            chunks = np.zeros((1, self.horizon, 2), np.float32)
            chunks[:, :, 0] = 1.5  # out of bounds in one of two dimensions
            chunks[:, :, 1] = 1 + 1e-7  # rounding
            return chunks

    found = quick(env_id, Bold(), episodes=1, slots=1, execute=4, max_steps=6)
    assert found.records[0].length == 6 and found.clipped == 6
    assert found.to_json()["clipped_action_values"] == 6
    assert found.actions[0].max() == 1.0


def test_an_action_that_is_not_finite_is_named(env_id: str) -> None:
    class Broken(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            chunks = np.zeros_like(super().plan(request))
            if len(self.requests) == 3:  # the first group's second plan
                chunks[1, 2, 0] = np.nan
            return chunks

    with pytest.raises(SimulationError, match="episode 1, step 6, dimension 0, is nan"):
        quick(env_id, Broken(), episodes=4, slots=2, execute=4)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"episode 3 at step 3: RuntimeError: the point fell off the plane"),
        ("mute", r"does not say whether its task is done"),
        ("kill", r"ended by signal SIGKILL while calling `play`"),
        ("exit", r"ended with exit status 3"),
        ("nan", r"shows NaN or infinity in 'goal', in episode 3 at step 8: no policy acts on such"),
    ],
)
def test_a_fault_ends_the_evaluation(env_id: str, workers: int, fault: str, message: str) -> None:
    if workers == 1 and fault in ("kill", "exit"):
        pytest.skip("would end this very process")
    kwargs = {"fault": fault, "fault_seed": 103}
    start = time.perf_counter()
    with pytest.raises(SimulationError, match=message):
        quick(env_id, PointPolicy(), episodes=8, slots=4, workers=workers, env_kwargs=kwargs)
    assert time.perf_counter() - start < 20


def test_what_does_not_fit_is_named(env_id: str) -> None:
    policy = PointPolicy()
    with pytest.raises(ConfigError, match="execute=9"):
        quick(env_id, policy, execute=9)
    with pytest.raises(ConfigError, match="episodes=0"):
        quick(env_id, policy, episodes=0)
    with pytest.raises(ConfigError, match="workers=-1"):
        quick(env_id, policy, workers=-1)
    with pytest.raises(SimulationError, match="Did you mean: `Point`"):
        quick("test/Piont-v0", policy)
    with pytest.raises(SimulationError, match=r"cannot be made.*unheard"):
        quick(env_id, policy, env_kwargs={"unheard": 1})
    with pytest.raises(SimulationError, match="cannot be sent to a simulator process"):
        quick(env_id, policy, env_kwargs={"fault": lambda: 0}, workers=2)
    policy.obs_keys = ("goal", "cube")
    with pytest.raises(SimulationError, match=r"does not observe cube.*position"):
        quick(env_id, policy)
    policy = PointPolicy()
    policy.observation_dim = 23  # type: ignore[attr-defined]
    with pytest.raises(SimulationError, match=r"made for 23 observation values.*gives 4 \(goal 2 \+ position 2\)"):
        quick(env_id, policy)
    policy = PointPolicy()
    policy.action_dim = 7  # type: ignore[attr-defined]
    with pytest.raises(SimulationError, match=r"made for 7 action dimensions.*takes 2"):
        quick(env_id, policy)

    class Wrong(PointPolicy):
        def plan(self, request: object) -> np.ndarray:
            return np.zeros((10, 8, 7), np.float32)

    with pytest.raises(SimulationError, match=r"shape \(10, 8, 7\)"):
        quick(env_id, Wrong())


def test_a_foreign_environment_without_dictionary() -> None:
    class Push:
        obs_keys, history, horizon, needs_expert = ("state",), 1, 4, False

        def plan(self, request: object) -> np.ndarray:
            return np.zeros((2, 4, 1), np.float32)

    with pytest.raises(SimulationError, match="Pendulum-v1 does not say whether"):
        quick("Pendulum-v1", Push(), episodes=2, slots=2, execute=2)
    assert isinstance(gym.spec("Pendulum-v1").id, str)


SCRIPT = """
import signal, sys, gymnasium
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
sys.path.insert(0, {folder!r})
gymnasium.register("test/Point-v0", entry_point="point_env:PointEnv")
from point_env import PointPolicy
from daps_robot.rollout import vector
from daps_robot.rollout.evaluate import evaluate
submit = vector.SlotPool.submit
def tell(pool, group, actions):
    if group == 0 and actions is None:
        print(*[worker.pid for worker in pool._workers], flush=True)
    submit(pool, group, actions)
vector.SlotPool.submit = tell
# No `if __name__ == "__main__"`: workers do not run the caller's script.
evaluate("test/Point-v0", PointPolicy(), first_seed=0, workers=2, episodes=1000, env_kwargs={{"step_seconds": 0.05}})
"""


def test_interrupting_leaves_no_process_behind() -> None:
    import signal

    code = SCRIPT.format(folder=str(Path(__file__).parent))
    main = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert main.stdout is not None
    workers = [int(pid) for pid in main.stdout.readline().split()]
    assert len(workers) == 2
    time.sleep(0.3)
    os.killpg(main.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    _, errors = main.communicate(timeout=60)  # a busy machine takes its time; a hang takes for ever
    assert "KeyboardInterrupt" in errors and main.returncode != 0
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_workers_do_not_import_torch(env_id: str) -> None:
    code = (
        "import sys; import daps_robot.rollout.worker, daps_robot.rollout.player, daps_robot.rollout.channel; "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
