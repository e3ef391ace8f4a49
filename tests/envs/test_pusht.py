"""Push-T: starts, scores and pictures of the environment, and its demonstrations."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest

import daps_robot.envs  # noqa: F401 (registers the task)
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig, TrainActionVAE
from daps_robot.commands.train_action_vae import run as train
from daps_robot.data.catalog import fetch, find_file
from daps_robot.data.demos import read_demos
from daps_robot.data.normalize import near_binary
from daps_robot.envs.pusht import SIZES, PushTEnv, observe
from daps_robot.envs.pusht_demos import read_pusht
from daps_robot.errors import DataError, SimulationError
from daps_robot.rollout.evaluate import evaluate
from daps_robot.rollout.replay import replay_demos
from daps_robot.training.objective import TrainerConfig

PUSHT = "daps_robot/PushT-v0"
MARK = (256.0, 256.0, np.pi / 4)
simulated = pytest.mark.skipif(find_spec("gym_pusht") is None, reason="gym-pusht (the extra 'pusht') is not installed")
recorded = pytest.mark.skipif(find_file("pusht.npz") is None, reason="pusht.npz is not there")


@pytest.fixture
def env():
    return gymnasium.make(PUSHT).unwrapped


def roll(env, actions):
    """Everything told along the way."""
    steps = [env.step(action) for action in actions]
    return [(tuple(value.tobytes() for value in seen.values()), reward, info) for seen, reward, _, _, info in steps]


def actions_of(seed, steps=60):
    return np.random.default_rng(seed).uniform(100, 400, (steps, 2)).astype(np.float32)


@simulated
def test_a_seed_gives_gym_pushts_start_whatever_ran_before(env):
    from gym_pusht.envs.pusht import PushTEnv as Theirs

    theirs = Theirs()
    starts = []
    for seed in (3, 4, 3):
        env.reset(seed=seed)
        starts.append(env.flat_state())
        np.testing.assert_array_equal(starts[-1], theirs.reset(seed=seed)[0])
        roll(env, actions_of(seed))
    assert (starts[0] != starts[1]).all()


@simulated
def test_without_a_seed_the_environments_own_generator_draws(env):
    env.reset(seed=5)
    drawn = [env.reset()[0]["block_pos"] for _ in range(2)]
    env.reset(seed=5)
    again = [env.reset()[0]["block_pos"] for _ in range(2)]
    np.testing.assert_array_equal(drawn, again)
    assert (drawn[0] != drawn[1]).all()


@simulated
def test_an_episode_starts_from_the_state_that_was_asked_for(env):
    """The angle is set before the position: the other way round, the block would be up to 90 pixels off."""
    for angle in (0.5, 2.0, 3.1, 6.0):
        state = np.array([60.0, 70.0, 260.0, 280.0, angle])
        seen, _ = env.reset(options={"state": state})
        np.testing.assert_allclose(env.flat_state(), state, atol=1e-9)
        np.testing.assert_array_equal(seen["block_cos_sin"], np.float32([np.cos(angle), np.sin(angle)]))


@simulated
def test_an_episode_is_the_same_again_in_any_environment(env):
    state, other = np.array([100.0, 100.0, 250.0, 250.0, 1.0]), PushTEnv()
    found = []
    for each in (env, other, env):
        each.reset(options={"state": state})
        found.append(roll(each, actions_of(1)))
        each.reset(seed=8)
        roll(each, actions_of(2))
    assert found[0] == found[1] == found[2]
    assert max(info["coverage"] for _, _, info in found[0]) > 0  # the block was pushed about


@simulated
@pytest.mark.parametrize("shift", [0.0, 2.0, 5.25, 20.0])
def test_the_score_is_the_share_of_the_mark_that_is_covered(env, shift):
    """A T of 120 × 30 and 30 × 90 pixels, shifted along its bar, keeps (120 − d)·30 + (30 − d)·90 of 6300 on its mark."""
    x, y, angle = MARK
    env.reset(options={"state": [30.0, 30.0, x + shift * np.cos(angle), y + shift * np.sin(angle), angle]})
    _, reward, terminated, truncated, info = env.step([30.0, 30.0])
    coverage = ((120 - shift) * 30 + (30 - shift) * 90) / 6300
    assert info["coverage"] == pytest.approx(coverage, abs=1e-6)
    assert reward == info["score"] == pytest.approx(min(1.0, coverage / 0.95), abs=1e-6)
    assert info["success"] == terminated == (coverage > 0.95)
    assert truncated is False


@simulated
def test_spaces_and_time_limit():
    env = gymnasium.make(PUSHT)
    seen, _ = env.reset(seed=0)
    assert env.spec.max_episode_steps == 300 and env.unwrapped.metadata["render_fps"] == 10
    assert {key: value.shape for key, value in seen.items()} == {key: (size,) for key, size in SIZES.items()}
    assert env.observation_space.contains(seen) and env.action_space.contains(np.float32([0, 512]))
    ended = [env.step(seen["agent_pos"])[3] for _ in range(300)]
    assert ended == 299 * [False] + [True]


def test_keypoints_turn_with_the_block():
    """At angle 0 they are the block's own; a quarter turn takes (x, y) to (−y, x)."""
    states = np.array([[0, 0, 100, 200, 0], [0, 0, 100, 200, np.pi / 2]])
    plain, turned = observe(states)["keypoints"].reshape(2, 9, 2) - [100, 200]
    np.testing.assert_allclose(turned, np.stack([-plain[:, 1], plain[:, 0]], axis=1), atol=1e-4)
    assert np.abs(plain[:, 0]).max() <= 61.5 and plain[:, 1].min() >= -2 and plain[:, 1].max() <= 123  # on the T, borders too


@recorded
def test_keypoints_are_those_of_the_data():
    """They were recorded a hundredth of a second away from the state: the same but for steps in which the block jerks."""
    with np.load(find_file("pusht.npz")) as file:
        found, expected = observe(file["state"].astype(np.float64))["keypoints"], file["keypoint"].reshape(-1, 18)
    worst = np.abs(found - expected).max(axis=1)
    assert np.median(worst) < 2e-4 and np.quantile(worst, 0.99) < 0.05 and worst.max() < 2.5


@simulated
@pytest.mark.parametrize("options", [{"stat": None}, {"state": np.zeros(4)}, {"state": [0, 0, 0, 0, np.nan]}])
def test_wrong_options_are_refused(env, options):
    with pytest.raises(SimulationError, match=r"knows .state.|5 finite numbers"):
        env.reset(options=options)


@simulated
@pytest.mark.parametrize("action", [np.zeros(3), np.array([np.nan, 0.0])])
def test_wrong_actions_are_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="2 finite numbers"):
        env.step(action)


def test_a_missing_gym_pusht_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    before = dict(os.environ)
    with pytest.raises(SimulationError, match=r"daps-robot\[pusht\]"):
        PushTEnv()
    assert dict(os.environ) == before


def test_converting_needs_no_simulator():
    code = "import sys, daps_robot.envs.pusht_demos; assert not {'gym_pusht', 'pymunk', 'pygame'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@simulated
def test_a_picture_shows_mark_block_and_agent():
    env = gymnasium.make(PUSHT, render_mode="rgb_array")
    env.reset(options={"state": [50.0, 400.0, 400.0, 100.0, 0.0]})
    picture = env.render()
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8
    green, blue, grey = picture[135, 121], picture[200, 25], picture[57, 200]  # half as many pixels as the field has
    assert green[1] > green[0] and green[1] > green[2]
    assert blue[2] > blue[0] + 50
    assert np.ptp(grey.astype(int)) < 50 and grey.max() < 220
    with pytest.raises(SimulationError, match="human"):
        PushTEnv(render_mode="human")


class Wanderer:
    """Goes to a place that its key and what it sees decide."""

    obs_keys, history, horizon, needs_expert = ("agent_pos", "keypoints"), 2, 8, False

    def plan(self, request):
        goals = np.stack([np.random.default_rng(int(key)).uniform(150, 350, 2) for key in request.keys])
        return np.repeat((0.5 * goals + 0.5 * request.observations[:, -1, 2:4])[:, None], 8, axis=1).astype(np.float32)


@simulated
def test_an_evaluation_has_scores_the_same_for_any_number_of_workers():
    found = [evaluate(PUSHT, Wanderer(), first_seed=10, episodes=3, slots=2, workers=n, progress=False) for n in (1, 2)]
    assert found[0].records == found[1].records
    assert found[0].settings["max_steps"] == 300 and {record.length for record in found[0].records} == {300}
    assert found[0].graded and 0 < found[0].mean_score < 1
    assert found[0].mean_score == np.mean([record.score for record in found[0].records])


@simulated
@recorded
def test_human_demonstrations_are_repeated():
    """Open loop, from their first states: the block follows its recorded path, and the scores are good ones."""
    demos, env = read_pusht(find_file("pusht.npz"))[:12], PushTEnv()
    env.reset(options={"state": demos[3].states[0]})
    for action, state in zip(demos[3].actions, demos[3].states, strict=True):
        np.testing.assert_allclose(env.flat_state(), state, atol=0.02)
        env.step(action)
    found = replay_demos(PUSHT, demos, workers=1, progress=False)
    assert found.mean_score > 0.92 and min(record.score for record in found.records) > 0.85
    assert found.graded and found.successes < 3 and found.clipped == 0


def small_data(steps=24, demos=12):
    rng = np.random.default_rng(0)
    state = np.concatenate([rng.uniform(50, 450, (steps * demos, 4)), rng.uniform(0, 6, (steps * demos, 1))], axis=1)
    ends = np.arange(1, demos + 1) * steps
    return {"action": rng.uniform(0, 512, (steps * demos, 2)), "state": state.astype(np.float32), "episode_ends": ends}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with data/pusht.npz."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAPS_ROBOT_DATA", raising=False)
    np.savez(tmp_path / "data" / "pusht.npz", **small_data())
    return tmp_path


def test_the_data_set_is_converted_when_it_is_first_asked_for(place):
    path = fetch("pusht")
    demos, data = read_demos(path), small_data()
    assert path.name == "pusht.hdf5" and demos.env_id == PUSHT and len(demos) == 12
    assert demos.obs_dims == SIZES and demos.valid == ("demo_9",) and len(demos.train) == 11
    last = demos.demos[-1]
    np.testing.assert_array_equal(last.states, data["state"][-24:])
    np.testing.assert_array_equal(last.actions, data["action"][-24:].astype(np.float32))
    for key, values in observe(last.states).items():
        np.testing.assert_array_equal(last.obs[key], values)
    written = path.stat().st_mtime_ns
    assert fetch("pusht").stat().st_mtime_ns == written
    assert [file.name for file in sorted((place / "data").iterdir())] == ["pusht.hdf5", "pusht.npz"]


def test_a_tokenizer_trains_on_it(place):
    trainer = TrainerConfig(max_steps=2, batch_size=8, device="cpu", tensorboard=False)
    config = TrainActionVAE(dataset="pusht", tokenizer=ChunkTokenizerConfig(width=16, layers=1), trainer=trainer)
    metrics = train(replace(config, settings=replace(config.settings, warm_start_steps=1)))
    assert 10 < metrics["rmse/0"] < 1000  # pixels
    assert (place / "runs" / "pusht" / "tokenizer" / "model").is_dir()


def test_a_missing_file_names_its_origin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAPS_ROBOT_DATA", raising=False)
    with pytest.raises(DataError, match=r"pusht.npz is not in data.*pusht\.zip"):
        fetch("pusht")
    assert not list((tmp_path / "data").iterdir())


def broken(name, value):
    return {**small_data(), name: value}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (broken("action", np.zeros((288, 3))), r"'action' is float64 of shape \(288, 3\)"),
        (broken("state", np.array([{"a": 1}] * 288)), "'state' is object"),
        (broken("state", np.zeros((288, 5), bool)), "'state' is bool"),
        (broken("state", np.full((288, 5), np.nan)), "'state' is NaN or infinite at step 0"),
        (broken("episode_ends", np.array([24, 24, 288])), "episode_ends do not fit"),
        (broken("episode_ends", np.array([24, 48])), "episode_ends do not fit"),
        (broken("episode_ends", np.zeros(0, int)), "0 episode_ends do not fit"),
        (broken("episode_ends", np.array([-5, 288])), "episode_ends do not fit"),
        (broken("episode_ends", np.array(288)), r"'episode_ends' is int64 of shape \(\)"),
        ({"state": np.zeros((3, 5))}, "holds no 'action'"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "pusht.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_pusht(tmp_path / "pusht.npz")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "pusht.npz"
    np.savez(path, **small_data())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="holds no 'action' that can be read"):
        read_pusht(path)


@recorded
def test_the_real_data():
    demos = read_pusht(find_file("pusht.npz"))
    assert len(demos) == 206 and sum(map(len, demos)) == 25_650 and min(map(len, demos)) == 49
    actions = np.concatenate([demo.actions for demo in demos])
    assert near_binary(actions) == () and actions.min() >= 0 and actions.max() <= 512
