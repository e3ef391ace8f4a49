"""What demonstrations say of their environment, in robomimic's two layouts, against the environments that evaluation plays in."""

import copy
import json
import re

import h5py
import numpy as np
import pytest

from daps_robot.data.demos import ROBOMIMIC_KEYS, read_demos
from daps_robot.data.env_args import ENV_IDS, env_differences, named_env, rate_of
from daps_robot.errors import DataError

OSC = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
KWARGS = {
    "has_renderer": False,
    "use_object_obs": True,
    "control_freq": 20,
    "robots": ["Panda"],
    "reward_shaping": False,
    "camera_names": ["agentview"],
}
V01 = {
    "env_name": "PickPlaceCan",
    "type": 1,
    "env_kwargs": {**KWARGS, "controller_configs": {**OSC, "damping": 1, "damping_limits": [0, 10], "control_delta": True}},
}
RIGHT = {**OSC, "damping_ratio": 1, "input_type": "delta", "input_ref_frame": "world", "gripper": {"type": "GRIP"}}
V15 = {
    "env_name": "PickPlaceCan",
    "env_version": "1.5.1",
    "type": 1,
    "env_kwargs": {**KWARGS, "lite_physics": False, "controller_configs": {"type": "BASIC", "body_parts": {"right": RIGHT}}},
}


def changed(env_args, where, value):
    """A copy with one entry set, or taken out."""
    env_args = copy.deepcopy(env_args)
    *parents, last = where.split(".")
    group = env_args
    for parent in parents:
        group = group[parent]
    if value is None:
        del group[last]
    else:
        group[last] = value
    return env_args


ARM = "env_kwargs.controller_configs.body_parts.right"


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("env_version", "1.5.1"),
        ("env_version", "1.5.2"),
        ("env_kwargs.robots", "Panda"),
        ("env_kwargs.gripper_types", "default"),
        ("env_kwargs.gripper_types", ["PandaGripper"]),
        ("env_kwargs.controller_configs", None),  # robosuite's default
        ("env_kwargs.controller_configs", [V15["env_kwargs"]["controller_configs"]]),
        ("env_kwargs.controller_configs", {"type": "BASIC", "body_parts": {"arms": {"right": RIGHT}}}),
        ("env_kwargs", None),
        (f"{ARM}.kp", [150] * 6),
        (f"{ARM}.input_ref_frame", "base"),
        (f"{ARM}.control_delta", True),
    ],
)
def test_a_file_of_the_same_set_up_is_of_our_environment(where, value):
    assert env_differences(changed(V15, where, value)) == []


@pytest.mark.parametrize(
    ("env_args", "difference"),
    [
        (changed(V15, "env_kwargs.robots", ["Sawyer"]), "robots Sawyer instead of Panda"),
        (changed(V15, "env_kwargs.robots", ["Panda", "Panda"]), r"robots \['Panda', 'Panda'\] instead of Panda"),
        (changed(V15, "env_kwargs.gripper_types", "RethinkGripper"), "gripper_types RethinkGripper"),
        (changed(V15, "env_kwargs.control_freq", 10), "control_freq 10 instead of 20"),
        (changed(V15, "env_version", "1.3.0"), "robosuite 1.3.0 instead of 1.5"),
        (changed(V15, "env_version", "1.50.0"), "robosuite 1.50.0 instead of 1.5"),
        (changed(V15, "env_version", 7), "robosuite 7 instead of 1.5"),
        (changed(V15, f"{ARM}.type", "JOINT_POSITION"), "type JOINT_POSITION instead of OSC_POSE"),
        (changed(V15, f"{ARM}.input_type", "absolute"), "absolute actions instead of relative ones"),
        (changed(V15, f"{ARM}.control_delta", False), "absolute actions instead of relative ones"),
        (changed(V15, f"{ARM}.output_max", 0.1), "output_max 0.1 instead of"),
        (changed(V15, f"{ARM}.kp", [150, 10]), r"kp \[150, 10\] instead of 150"),
        (changed(V15, ARM, None), "no controller of the right arm"),
        (changed(V15, "env_kwargs.controller_configs.type", "WHOLE_BODY_IK"), "controller WHOLE_BODY_IK instead of BASIC"),
        (changed(V01, "env_version", "1.2.0"), "robosuite 1.2.0 instead of 1.5"),
    ],
)
def test_another_set_up_is_named(env_args, difference):
    (found,) = env_differences(env_args)
    assert re.match(difference, found), found


def test_of_the_older_layout_the_controller_is_read_too():
    slow = changed(changed(V01, "env_kwargs.controller_configs.control_delta", False), "env_kwargs.robots", ["IIWA"])
    assert env_differences(V01) == env_differences(changed(V01, "env_version", "1.4.1")) == []
    assert env_differences(slow) == ["robots IIWA instead of Panda", "absolute actions instead of relative ones"]
    assert named_env(slow) == "daps_robot/Can-v0"


@pytest.mark.parametrize("nonsense", [[], "x", 3, {"body_parts": 3}, {"body_parts": {"arms": []}}, [[]], {"type": ["a"] * 1000}])
def test_nonsense_is_a_difference_or_nothing_but_no_crash(nonsense):
    for where in ("env_kwargs", "env_kwargs.controller_configs", "env_kwargs.robots", "env_version", ARM):
        assert all(len(text) < 200 for text in env_differences(changed(V15, where, nonsense)))
    assert env_differences({"env_name": nonsense, "gymnasium_id": nonsense}) == []


def test_the_rate():
    assert rate_of(V15) == 20.0
    assert rate_of({"fps": 50}) == 50.0
    assert [rate_of(env_args) for env_args in ({}, {"fps": "50"}, {"fps": True}, {"fps": -1}, {"fps": 10**400})] == [None] * 5


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"fps": "50"}, "fps is 50, not a number of steps a second between 0 and a million: correct it, or leave it out"),
        ({"fps": True}, "fps is True"),
        ({"fps": 10**400}, r"fps is 10+\.\.\., not"),
        ({"env_kwargs": {"control_freq": -20}}, "control_freq is -20"),
        ({"gymnasium_id": 3}, "gymnasium_id is 3, not a name"),
        ({"env_name": ["Lift"]}, "env_name is .*, not a name"),
    ],
)
def test_nonsense_in_what_is_read_from_it_is_refused(spoilt, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_demos(write(tmp_path / "low_dim.hdf5", spoilt))
    assert read_demos(write(tmp_path / "low_dim.hdf5", dict.fromkeys(spoilt))).rate is None


def write(path, env_args):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(3):
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = 20
            demo["actions"] = rng.uniform(-1, 1, (20, 7))  # float64, as robomimic's are
            demo["states"] = rng.normal(size=(20, 71))
            for key, size in zip(ROBOMIMIC_KEYS, (3, 4, 2, 14), strict=True):
                demo[f"obs/{key}"] = rng.normal(size=(20, size))
                demo[f"next_obs/{key}"] = rng.normal(size=(20, size))
            demo["obs/robot0_joint_pos"] = rng.normal(size=(20, 7))
        file["data"].attrs["total"] = 60
        file["data"].attrs["env_args"] = json.dumps(env_args, indent=4)
        file["mask/train"], file["mask/valid"] = np.array([b"demo_0", b"demo_1"]), np.array([b"demo_2"])
        file["mask/better"] = np.array([b"demo_1"])
    return path


@pytest.mark.parametrize(("env_args", "env_id"), [(V15, "daps_robot/Can-v0"), (V01, "daps_robot/Can-v0")])
def test_files_of_both_layouts_are_read(tmp_path, env_args, env_id):
    demos = read_demos(write(tmp_path / "low_dim.hdf5", env_args))
    assert (demos.obs_keys, demos.env_id, demos.rate) == (ROBOMIMIC_KEYS, env_id, 20.0)
    assert (demos.train, demos.valid) == (("demo_0", "demo_1"), ("demo_2",))
    assert named_env(demos.env_args) == ENV_IDS["PickPlaceCan"]
