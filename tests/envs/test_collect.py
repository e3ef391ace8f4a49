"""Collection: the same file for any number of workers, interruption at any time, what is refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pytest

from daps_robot.data.catalog import DATASETS
from daps_robot.data.demos import EVAL_SEED_START, read_demos
from daps_robot.envs.collect import SEEDS_PER_COLLECTION, TASKS, collect_demos
from daps_robot.envs.episodes import HOLD_STEPS, SHORTEST
from daps_robot.errors import ConfigError, DataError, SimulationError

pytest.importorskip("robosuite", reason="robosuite (the extra 'sim') is not installed")

PLAIN_LIFT = "ea2f5319f7f1010b"
SCRIPT = Path(__file__).parents[2] / "scripts" / "collect_demos.py"


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Six demonstrations collected in this very process."""
    out = tmp_path_factory.mktemp("reference") / "lift.hdf5"
    report = collect_demos("lift", out, demos=6, workers=1, seed=4)
    assert report.demos == 6
    return out


def test_the_file_holds_what_was_asked_for(reference):
    demos = read_demos(reference)
    assert demos.env_id == "daps_robot/Lift-v0"
    assert [demo.seed for demo in demos.demos] == [4 * SEEDS_PER_COLLECTION + i for i in range(6)]
    assert (len(demos.train), len(demos.valid)) == (5, 1)
    with h5py.File(reference) as file:
        assert set(file["data/demo_0"]) == {"actions", "states", "obs", "next_obs", "dones", "rewards"}
        assert file["data"].attrs["total"] == sum(len(demo) for demo in demos.demos)
        for demo in file["data"].values():
            assert demo["rewards"][-1] == demo["dones"][-1] == 1
            assert demo["rewards"][:].sum() == HOLD_STEPS + 1
            assert np.array_equal(demo["obs/object"][1:], demo["next_obs/object"][:-1])
            assert "<mujoco" in demo.attrs["model_file"]
    assert not reference.with_name("lift.hdf5.partial").exists()


def test_a_demonstration_replays_from_its_first_state(reference, make_env):
    env = make_env("daps_robot/Lift-v0")
    demo = read_demos(reference).demos[0]
    env.reset(options={"state": demo.states[0]})
    for state, action in zip(demo.states, demo.actions, strict=True):
        assert np.array_equal(state, env.flat_state())
        *_, info = env.step(action)
    assert info["success"]


def test_led_astray_the_record_holds_the_way_back_alone_and_can_be_replayed(tmp_path, make_env):
    """Lift, the shortest: where the expert was done before the hand was led astray, the record begins at the beginning."""
    report = collect_demos("lift", tmp_path / "lift.hdf5", demos=6, workers=1, seed=4, strays=1.0)
    again = collect_demos("lift", tmp_path / "again.hdf5", demos=6, workers=2, seed=4, strays=1.0)
    assert digest(again.path) == digest(report.path)
    env = make_env("daps_robot/Lift-v0")
    astray = 0
    for demo in read_demos(report.path).demos:
        env.reset(seed=demo.seed)
        astray += not np.array_equal(demo.states[0], env.flat_state())
        observation, info = env.reset(options={"state": demo.states[0]})
        assert not info["success"]
        assert len(demo) >= SHORTEST
        for t, (state, action) in enumerate(zip(demo.states, demo.actions, strict=True)):
            assert np.array_equal(state, env.flat_state())
            for key, values in demo.obs.items():
                assert np.array_equal(values[t], observation[key])
            observation, *_, info = env.step(action)
        assert info["success"]
    assert astray >= 2


def test_two_workers_write_the_same_bytes(reference, tmp_path):
    collect_demos("lift", tmp_path / "lift.hdf5", demos=6, workers=2, seed=4)
    assert digest(tmp_path / "lift.hdf5") == digest(reference)


def test_an_interrupted_collection_goes_on(reference, tmp_path, monkeypatch):
    out = tmp_path / "lift.hdf5"
    interrupt_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        collect_demos("lift", out, demos=6, workers=1, seed=4)
    assert not out.exists()
    assert len(list(tmp_path.glob("lift.hdf5.partial/*.hdf5"))) == 3
    monkeypatch.undo()
    collect_demos("lift", out, demos=6, workers=1, seed=4)
    assert digest(out) == digest(reference)


def interrupt_after(monkeypatch, episodes):
    from daps_robot.envs import collect

    record, count = collect.record_episode, iter(range(100))

    def recorded(*arguments):
        if next(count) == episodes:
            raise KeyboardInterrupt
        return record(*arguments)

    monkeypatch.setattr(collect, "record_episode", recorded)


def test_a_failed_attempt_is_skipped_and_counted(tmp_path, monkeypatch):
    from daps_robot.envs import collect

    record = collect.record_episode
    monkeypatch.setattr(collect, "record_episode", lambda *args: None if args[2] == 1 else record(*args))  # the seed
    report = collect_demos("lift", tmp_path / "lift.hdf5", demos=2, workers=1)
    assert report.failed == 1
    assert [demo.seed for demo in read_demos(report.path).demos] == [0, 2]


def test_other_settings_are_not_mixed_in(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        collect_demos("lift", tmp_path / "lift.hdf5", demos=2, workers=1)
    with pytest.raises(DataError, match=r"noise: 0.1 then, 0.3 now"):
        collect_demos("lift", tmp_path / "lift.hdf5", demos=2, workers=1, noise=0.3)


def test_killed_at_any_time_it_leaves_no_half_file_and_goes_on(reference, tmp_path):
    out = tmp_path / "lift.hdf5"
    command = [sys.executable, str(SCRIPT), "--demos", "6", "--seed", "4", "--workers", "1", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("lift.hdf5.partial/*.hdf5")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("lift.hdf5.partial/*.hdf5")}
    assert kept
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "6 demonstrations" in done.stdout
    assert digest(out) == digest(reference)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "lfit"}, "Did you mean lift"),
        ({"demos": 0}, "demos"),
        ({"noise": -0.1}, "noise"),
        ({"strays": 1.5}, "strays"),
        ({"style": "humane"}, "plain, human"),
        ({"seed": 1000}, "seed"),
        ({"workers": -1}, "workers"),
        ({"valid_fraction": 1.0}, "valid_fraction"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        collect_demos(out=tmp_path / "out.hdf5", **arguments)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        collect_demos("lift", tmp_path / "file" / "lift.hdf5", demos=1, workers=1)


def test_demonstration_seeds_stay_below_evaluation_seeds():
    assert 1000 * SEEDS_PER_COLLECTION <= EVAL_SEED_START


def test_the_file_says_how_it_was_collected(reference):
    with h5py.File(reference) as file:
        collection = json.loads(file["data"].attrs["collection"])
    assert (
        collection.items()
        >= {"env_id": "daps_robot/Lift-v0", "style": "plain", "noise": 0.1, "nudges": 0.03, "strays": 0.0, "seed": 4}.items()
    )


def test_plain_lift_is_what_it_always_was(reference):
    """Published figures depend on these demonstrations."""
    if version("mujoco") != "3.9.0":
        pytest.skip("MuJoCo 3.9.0, of which these demonstrations are, is not there")
    actions = read_demos(reference).demos[0].actions
    assert hashlib.sha256(actions.tobytes()).hexdigest()[:16] == PLAIN_LIFT


def test_the_datasets_of_the_catalog_are_the_tasks_and_styles(tmp_path, monkeypatch):
    from daps_robot.envs import collect

    asked = []
    monkeypatch.setattr(collect, "collect_demos", lambda task, out, style: asked.append((task, style)))
    for name, task, style in (
        ("lift", "lift", "plain"),
        ("can", "can", "plain"),
        ("square", "square", "plain"),
        ("can-human", "can", "human"),
        ("square-human", "square", "human"),
    ):
        DATASETS[name].generate(tmp_path / "x.hdf5")
        assert asked.pop() == (task, style)
        assert DATASETS[name].name == name and DATASETS[name].env_id == TASKS[task].env.env_id


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_named():
    from daps_robot.envs.workers import worker_pool

    with pytest.raises(SimulationError, match="take fewer --workers"), worker_pool(1, die) as pool:
        pool.submit(die).result()
