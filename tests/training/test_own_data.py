"""A person's own data, without a simulator of ours, through all three commands by the path of the file or folder alone."""

import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from lerobot_folder import LENGTHS, write_films, write_lerobot

from daps_robot.commands import cli
from daps_robot.commands.distill_policy import DistillPolicy
from daps_robot.commands.distill_policy import run as run_distill
from daps_robot.commands.evaluate import Evaluate
from daps_robot.commands.evaluate import run as run_evaluate
from daps_robot.commands.inspect_data import InspectData
from daps_robot.commands.inspect_data import run as inspect_data
from daps_robot.commands.rollout_env import rollout_env
from daps_robot.commands.train_action_vae import TrainActionVAE, split, unexplained
from daps_robot.commands.train_action_vae import run as run_train
from daps_robot.data.cameras import resized
from daps_robot.data.demos import read_demos
from daps_robot.errors import ConfigError
from daps_robot.models.policies import load_policy
from daps_robot.report import page
from daps_robot.training.imitation import action_scale, planning_error

SMALL = "--width 16 --layers 1 --batch-size 8 --no-tensorboard --device cpu"
TRAIN = f"{SMALL} --max-steps 8 --warm-start-steps 4 --eval-every 8"
DISTILL = f"{SMALL} --max-steps 6 --eval-every 3"


def write_hdf5(path, demos, env_args=None):
    """Demonstrations as (actions, observations by key), without masks, attributes or states unless `env_args` is given."""
    with h5py.File(path, "w") as file:
        for i, (actions, obs) in enumerate(demos):
            group = file.create_group(f"data/demo_{i}")
            group["actions"] = actions
            for key, values in obs.items():
                group[f"obs/{key}"] = values
        if env_args is not None:
            file["data"].attrs["env_args"] = json.dumps(env_args)
    return path


def humanoid_hands(path):
    """Two arms and hands, 26 joint targets at 50 Hz, after keys of several widths; no word of an environment."""
    demos = []
    for i in range(4):
        rng = np.random.default_rng(i)
        time = np.arange(60 + i)[:, None] / 50
        joints = np.sin(time * rng.uniform(1, 6, 26) + rng.uniform(0, 6, 26))
        obs = {
            "left_arm_qpos": joints[:, :7],
            "right_arm_qpos": joints[:, 7:14],
            "hands_qpos": joints[:, 14:].astype(np.float32),
            "left_wrist_quat": np.tile([0.0, 0.0, 0.0, 1.0], (len(time), 1)),
            "phase": (10 * time).astype(np.int64),
            "camera": np.zeros((len(time), 4, 4, 3), np.uint8),
        }
        demos.append((joints + 0.1, obs))
    return write_hdf5(path / "hands.hdf5", demos)


def pushing(path):
    """Targets for a pusher in pixels, 10 times a second."""
    demos = []
    for i in range(12):
        place = 256 + np.cumsum(np.random.default_rng(i).normal(0, 10, (41, 2)), axis=0)
        demos.append((place[1:], {"agent_pos": place[:-1], "block_pose": np.full((40, 3), 200.0)}))
    return write_hdf5(path / "pushing.hdf5", demos, {"fps": 10})


def lerobot(path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return write_lerobot(path / "so101_pick")


def command(config, run, *arguments):
    sys.argv = ["command", *map(str, arguments)]
    cli.main(config, run)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    return tmp_path


@pytest.mark.parametrize(("write", "dimensions", "observed"), [(humanoid_hands, 26, 31), (pushing, 2, 5), (lerobot, 3, 5)])
def test_own_data_in_three_commands(place, capsys, write, dimensions, observed):
    dataset = write(place)
    name = dataset.stem
    command(TrainActionVAE, run_train, "--dataset", dataset, *TRAIN.split())
    command(DistillPolicy, run_distill, "--dataset", dataset, *DISTILL.split())
    rotation = ["--obs-rotation", "6d", "--overwrite", *DISTILL.split()]
    if write is humanoid_hands:  # with a quaternion among its keys
        again = ["--obs-rotation", "6d", "--overwrite", *TRAIN.split()]
        command(TrainActionVAE, run_train, "--dataset", dataset, "--condition-decoder", *again)
        command(DistillPolicy, run_distill, "--dataset", dataset, *rotation)
        assert capsys.readouterr().out.count("seen as 6-D rotations: left_wrist_quat") == 2
        with pytest.raises(SystemExit):
            command(TrainActionVAE, run_train, "--dataset", dataset, *again)
        assert "add --condition-decoder" in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit):
            command(DistillPolicy, run_distill, "--dataset", dataset, *rotation)
        assert "of which those read from" in capsys.readouterr().err
    command(Evaluate, run_evaluate, "--dataset", dataset)
    assert "held-out chunks: the plans miss" in capsys.readouterr().out
    report = json.loads((place / "runs" / name / "report.json").read_text())
    assert len(report["policy_rmse"]) == len(report["reconstruction_rmse"]) == dimensions
    assert report["reconstruction_error"] > 0 and report["policy_error"] > 0
    assert "success_rate" not in report
    assert report["dataset"]["sha256"] == read_demos(dataset).sha256
    assert sum(read_demos(dataset).obs_dims.values()) == observed
    assert "variance" in (place / "runs" / name / "report.html").read_text()


def watched(path):
    """Pushes by what a camera sees, and numbers that would give it away."""
    demos = []
    for i in range(4):
        rng = np.random.default_rng(i)
        place = rng.uniform(size=(20 + i, 2))
        obs = {"hand": place + 1, "object": place, "front_image": rng.integers(0, 256, (20 + i, 24, 32, 3), np.uint8)}
        demos.append((place, obs))
    return write_hdf5(path / "watched.hdf5", demos)


def test_a_policy_with_a_camera(place, capsys):
    dataset = watched(place)
    command(InspectData, inspect_data, "--dataset", dataset)
    assert "cameras: front 24×32" in capsys.readouterr().out
    assert "data:image/png" in (place / "runs" / "watched" / "data.html").read_text()
    command(TrainActionVAE, run_train, "--dataset", dataset, *TRAIN.split())
    distill = ["--dataset", dataset, "--cameras", "front", *DISTILL.split()]
    command(DistillPolicy, run_distill, *distill, "--overwrite")
    policy = load_policy(place / "runs" / "watched" / "policy" / "model")
    assert (policy.cameras, policy.picture_size, policy.obs_keys) == (("front",), (24, 32), ("hand",))
    with pytest.raises(SystemExit):
        command(DistillPolicy, run_distill, *distill, "--resume", "--cameras", "top")
    assert "no pictures of top. It has pictures of: front." in capsys.readouterr().err
    command(Evaluate, run_evaluate, "--dataset", dataset)
    assert "What the policy sees" in (place / "runs" / "watched" / "report.html").read_text()
    assert page.main([str(place / "runs" / "watched")]) == 0  # the page once more, from the files alone
    larger = h5py.File(dataset, "r+")
    for demo in larger["data"].values():
        pictures = np.repeat(demo["obs/front_image"][()], 2, axis=1)
        del demo["obs/front_image"]
        demo["obs/front_image"] = pictures
    larger.close()
    with pytest.raises(SystemExit):
        command(Evaluate, run_evaluate, "--dataset", dataset)
    assert "pictures of (48, 32) pixels, where (24, 32) are asked for" in capsys.readouterr().err


def test_a_policy_that_learns_from_films(place):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pytest.importorskip("av", reason="PyAV is not installed")
    dataset = write_films(write_lerobot(place / "filmed", LENGTHS[:4]), LENGTHS[:4])
    command(TrainActionVAE, run_train, "--dataset", dataset, *TRAIN.split())
    distill = ["--dataset", dataset, "--cameras", "observation.images.top", *DISTILL.split()]
    command(DistillPolicy, run_distill, *distill, "--picture-size", 24, 32)
    policy = load_policy(place / "runs" / dataset.name / "policy" / "model")
    assert (policy.cameras, policy.picture_size, policy.obs_keys) == (("top",), (24, 32), ("observation.state",))
    demo = read_demos(dataset, cameras=("top",)).demos[0]
    seen = {"observation.state": demo.obs["observation.state"][0], "top_image": resized(demo.images["top"][0], (24, 32))}
    assert policy.act(seen).shape == (3,)
    command(Evaluate, run_evaluate, "--dataset", dataset)
    assert "What the policy sees" in (place / "runs" / dataset.name / "report.html").read_text()
    assert page.main([str(place / "runs" / dataset.name)]) == 0


def test_a_policy_learns_from_as_many_demonstrations_as_its_tokenizer_unless_told(place, capsys):
    dataset = pushing(place)
    command(TrainActionVAE, run_train, "--dataset", dataset, "--demonstrations", 2, *TRAIN.split())
    command(DistillPolicy, run_distill, *DISTILL.split())
    out = capsys.readouterr().out
    assert "learning from 2 training demonstrations, as many as the tokenizer did" in out and "on 80 windows" in out
    command(DistillPolicy, run_distill, "--demonstrations", 3, "--overwrite", *DISTILL.split())
    assert "on 120 windows" in capsys.readouterr().out


def test_the_file_that_the_documentation_writes_is_read(place):
    (block,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "data.md").read_text(), re.DOTALL)
    exec(block, {})
    demos = read_demos(place / "task.hdf5")
    assert (len(demos), demos.action_dim, demos.rate, demos.obs_dims) == (20, 26, 50.0, {"joints": 26, "object_pose": 7})


def test_a_perfect_and_a_blind_plan_bound_the_error(place):
    demos = read_demos(pushing(place))
    train, valid = split(demos, 8)
    assert demos.rate == 10

    class Plan:
        def __init__(self, answer):
            self.answer = answer

        def plan(self, request):
            return self.answer(request.observations[:, -1])

    held_out = demos.select(demos.valid)[0]
    error = planning_error(Plan(lambda seen: np.repeat(seen[:, None, :2], 8, 1)), valid, action_scale(train, demos.action_units))
    stays = [error[f"rmse/{i}"] for i in range(2)]
    differences = np.concatenate([held_out.actions[t : t + 8] - held_out.obs["agent_pos"][t] for t in range(40)])
    np.testing.assert_allclose(stays, np.sqrt((differences**2).mean(0)), rtol=1e-5)
    deviation = valid.actions.double().std(0, correction=0).tolist()
    assert unexplained(deviation, valid) == pytest.approx(1.0)
    assert unexplained([0.0, 0.0], valid) == 0.0


def test_another_set_up_is_refused_before_training(place, capsys):
    rng = np.random.default_rng(0)
    demos = [(rng.uniform(-1, 1, (20, 7)), {"object": rng.normal(size=(20, 10))}) for _ in range(3)]
    sawyer = {"env_name": "Lift", "env_version": "1.5.1", "env_kwargs": {"robots": ["Sawyer"], "control_freq": 10}}
    dataset = write_hdf5(place / "sawyer.hdf5", demos, sawyer)
    for config, run in ((TrainActionVAE, run_train), (DistillPolicy, run_distill), (Evaluate, run_evaluate)):
        if config is TrainActionVAE:
            with pytest.raises(SystemExit):
                command(config, run, "--dataset", dataset, *TRAIN.split())
            errors = capsys.readouterr().err
            assert "robots Sawyer instead of Panda; control_freq 10 instead of 20" in errors
            assert "--env none" in errors and "--env daps_robot/Lift-v0" in errors
            assert len(errors.splitlines()) == 2 and not (place / "runs").exists()
            command(config, run, "--dataset", dataset, "--env", "none", *TRAIN.split())
        else:  # and go on with what was said once
            command(config, run, "--dataset", dataset, *(DISTILL.split() if config is DistillPolicy else ()))
    assert "no rollouts" in capsys.readouterr().out
    found = read_demos(dataset)
    assert rollout_env(found, "daps_robot/Lift-v0") == "daps_robot/Lift-v0"
    with pytest.raises(ConfigError, match="Sawyer"):
        rollout_env(found, None)
