"""Quaternions among what is observed, in keys of their own and inside of others."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from daps_robot.data.demos import DemoSet
from daps_robot.data.quaternions import observed_quaternions, quaternion_columns, quaternion_names, unit_columns
from daps_robot.errors import ConfigError, DataError
from daps_robot.types import Demo


def demo_set(**observed):
    """Of two demonstrations, whose keys hold what these functions make for a generator and a number of steps."""
    demos = []
    for i in range(2):
        rng = np.random.default_rng(i)
        obs = {key: make(rng, 10 + i).astype(np.float32) for key, make in observed.items()}
        demos.append(Demo(f"demo_{i}", np.zeros((10 + i, 2), np.float32), obs))
    return DemoSet(Path("x.hdf5"), tuple(demos), ("demo_0",), ("demo_1",), tuple(observed), {}, "", None)


def quaternions(rng, steps):
    return Rotation.random(steps, random_state=rng.integers(2**31)).as_quat()


def numbers(rng, steps):
    return rng.normal(size=(steps, 3))


def poses(rng, steps):
    """As robomimic's `object`: position, quaternion, position, quaternion."""
    parts = [make(rng, steps) for make in (numbers, quaternions, numbers, quaternions)]
    return np.concatenate(parts, axis=1)


def test_they_are_found_in_keys_of_their_own_and_inside_of_others(capsys):
    demos = demo_set(hand_quat=quaternions, object=poses, fingers=numbers)
    assert unit_columns(demos, "object") == [3, 10]
    assert quaternion_columns(demos) == (0, 7, 14)
    assert quaternion_names(demos, (0, 7, 14)) == ["hand_quat", "object[3:7]", "object[10:14]"]
    assert observed_quaternions(demos, "as-recorded") == ()
    assert observed_quaternions(demos, "6d") == (0, 7, 14)
    assert "6-D rotations: hand_quat, object[3:7], object[10:14]" in capsys.readouterr().out


def test_one_step_of_another_length_and_it_is_none():
    demos = demo_set(object=poses)
    demos.demos[1].obs["object"][5, 4] += 0.01
    assert unit_columns(demos, "object") == [10]


def test_those_that_overlap_are_one():
    def repeated(rng, steps):
        x, y, z, w = quaternions(rng, steps).T
        return np.column_stack([x, y, z, w, x, y])

    assert unit_columns(demo_set(object=repeated), "object") == [0]


def test_unit_length_beside_zeros_is_no_quaternion():
    """q and -q are one rotation: open and closed fingers, or an angle and its opposite, would look the same."""

    def angle(rng, steps):
        turn = rng.uniform(0, 6, steps)
        return np.column_stack([np.zeros((steps, 3)), np.cos(turn), np.sin(turn), np.zeros((steps, 3))])

    def gripper(rng, steps):
        return np.column_stack([rng.normal(size=(steps, 3)), np.zeros((steps, 3)), rng.choice([-1, 1], steps)])

    demos = demo_set(angle=angle, gripper=gripper)
    assert unit_columns(demos, "angle") == [] and unit_columns(demos, "gripper") == []


def test_data_without_any_are_refused():
    with pytest.raises(ConfigError, match=r"hold none: fingers"):
        quaternion_columns(demo_set(fingers=numbers))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (numbers, ConfigError, "'hand_quat' has 3 columns"),
        (lambda rng, steps: 1.1 * quaternions(rng, steps), DataError, "demo_0: 'hand_quat' is no unit quaternion at step 0"),
    ],
)
def test_a_key_by_that_name_that_holds_something_else_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        quaternion_columns(demo_set(hand_quat=make))
