"""Demonstrations in other actions: the same motion after replay, the way back, and what is refused."""

import json
import shutil

import h5py
import numpy as np
import pytest

from daps_robot.commands.train_action_vae import TrainActionVAE, build_tokenizer, split
from daps_robot.data.demos import read_demos
from daps_robot.envs.collect import collect_demos
from daps_robot.envs.convert import ConvertActions, run
from daps_robot.errors import ConfigError, DataError

pytest.importorskip("robosuite", reason="robosuite (the extra 'sim') is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two demonstrations of Lift in each kind of actions, and the replays of those that were converted."""
    folder = tmp_path_factory.mktemp("actions")
    collect_demos("lift", folder / "relative.hdf5", demos=2, workers=1, seed=7, style="human")
    replays = {}
    for to in ("absolute", "joint"):
        replays[to] = run(ConvertActions(str(folder / "relative.hdf5"), to, folder / f"{to}.hdf5", workers=1))
    return folder, replays


@pytest.mark.parametrize(("to", "millimetres", "suffix"), [("absolute", 0.05, "Absolute"), ("joint", 2.0, "Joint")])
def test_the_new_actions_lead_to_the_same_states(files, to, millimetres, suffix):
    folder, replays = files
    assert all(replay.success for replay in replays[to])
    assert max(replay.hand_mm for replay in replays[to]) < millimetres
    old, new = read_demos(folder / "relative.hdf5"), read_demos(folder / f"{to}.hdf5")
    assert new.env_id == f"daps_robot/Lift{suffix}-v0"
    assert (new.train, new.valid, new.action_units is not None) == (old.train, old.valid, True)
    for a, b in zip(old.demos, new.demos, strict=True):
        assert np.array_equal(a.states, b.states) and np.array_equal(a.obs["object"], b.obs["object"])
        assert np.array_equal(a.actions[:, -1], b.actions[:, -1])
    with h5py.File(folder / f"{to}.hdf5") as file:
        assert json.loads(file["data"].attrs["conversion"])["replayed"]["successes"] == 2
        assert json.loads(file["data"].attrs["collection"])["style"] == "human"


def test_the_way_back(files, tmp_path):
    folder, _ = files
    run(ConvertActions(str(folder / "absolute.hdf5"), "relative", tmp_path / "again.hdf5", workers=2))
    old, new = read_demos(folder / "relative.hdf5"), read_demos(tmp_path / "again.hdf5")
    assert new.env_args == old.env_args
    for a, b in zip(old.demos, new.demos, strict=True):
        np.testing.assert_allclose(b.actions, a.actions, atol=2e-5)


def test_a_tokenizer_scales_positions_and_rotations_by_themselves(files):
    folder, _ = files
    demos = read_demos(folder / "absolute.hdf5")
    scaler = build_tokenizer(TrainActionVAE(), split(demos, 16)[0], demos).scaler
    position, rotation = scaler.scale[:3], scaler.scale[3:9]
    assert (position == position[0]).all() and (rotation == rotation[0]).all() and position[0] != rotation[0]
    assert (scaler.shift[9], scaler.scale[9]) == (-1.0, 2.0)  # the gripper is found to be binary


def changed(source, target, change):
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        change(file["data"])
    return str(target)


def test_what_cannot_be_converted_is_refused(files, tmp_path):
    folder, _ = files
    relative, absolute, joint = (str(folder / f"{name}.hdf5") for name in ("relative", "absolute", "joint"))

    def without_states(data):
        del data["demo_1"]["states"]

    def far(data):
        data["demo_1"]["actions"][5, 0] += 0.2

    def env_args(**more):
        def change(data):
            data.attrs["env_args"] = json.dumps(json.loads(data.attrs["env_args"]) | more)

        return change

    no_states = changed(relative, tmp_path / "no_states.hdf5", without_states)
    too_far = changed(absolute, tmp_path / "far.hdf5", far)
    foreign = changed(relative, tmp_path / "foreign.hdf5", env_args(gymnasium_id="other/Task-v1"))
    mislabelled = changed(joint, tmp_path / "mislabelled.hdf5", env_args(gymnasium_id="daps_robot/Lift-v0"))
    others = {"controller_configs": {"type": "OSC_POSE", "control_delta": False}}
    others_absolute = changed(relative, tmp_path / "others.hdf5", env_args(env_kwargs=others))
    for source, to, error, message in (
        (relative, "relative", ConfigError, "relative actions already"),
        (joint, "absolute", ConfigError, "convert the file that it was made from"),
        (no_states, "absolute", DataError, "demo_1 has no simulator states"),
        (too_far, "relative", DataError, "demo_1: step 5: the pose is"),
        (foreign, "absolute", DataError, "other/Task-v1 are not known"),
        (mislabelled, "absolute", DataError, "another set-up .*type JOINT_POSITION instead of OSC_POSE"),
        (others_absolute, "joint", DataError, "another set-up .*absolute actions instead of relative ones"),
    ):
        with pytest.raises(error, match=message):
            run(ConvertActions(source, to, tmp_path / "out.hdf5", workers=1))
        assert not (tmp_path / "out.hdf5").exists()
    with pytest.raises(ConfigError, match="workers=-1"):
        ConvertActions(relative, "absolute", workers=-1)
    with pytest.raises(DataError, match="exists"):
        run(ConvertActions(relative, "absolute", folder / "absolute.hdf5"))
