"""What inspection says of demonstrations in which something was spoilt on purpose, and that it is silent about the rest."""

from pathlib import Path

import numpy as np
import pytest

from daps_robot.data.demos import DemoSet
from daps_robot.data.inspection import inspect
from daps_robot.types import Demo


def demonstrations(n=20, steps=60):
    """Joint positions that wander, with their next values as actions (absolute), a gripper, and a hand that turns slowly."""
    demos = []
    for i in range(n):
        rng = np.random.default_rng(i)
        joints = np.cumsum(rng.normal(size=(steps + 1, 2)), 0)
        angle = np.linspace(0, 1 + i / n, steps)
        actions = np.column_stack([joints[1:] + 0.01 * rng.normal(size=(steps, 2)), np.where(np.arange(steps) < 30, -1.0, 1.0)])
        obs = {"joints": joints[:-1], "hand_quat": np.column_stack([np.sin(angle), 0 * angle, 0 * angle, np.cos(angle)])}
        demos.append(Demo(f"demo_{i}", actions.astype(np.float32), {k: v.astype(np.float32) for k, v in obs.items()}))
    return demos


def demo_set(demos):
    names = tuple(demo.name for demo in demos)
    return DemoSet(Path("x.hdf5"), tuple(demos), names[:-2], names[-2:], tuple(demos[0].obs), {}, "00", None)


def findings(change):
    demos = demonstrations()
    change(demos)
    return {finding.title: finding for finding in inspect(demo_set(demos)).findings}


CLEAN = {"Columns that never change"}  # two parts of the quaternion


def test_good_data_have_nothing_to_look_at():
    found = findings(lambda demos: None)
    assert set(found) == CLEAN
    assert found["Columns that never change"].places == ("hand_quat[1]: always 0", "hand_quat[2]: always 0")


def test_figures_of_the_columns():
    demos = demonstrations()
    demos[3].actions[7, 0] = np.nan
    found = inspect(demo_set(demos))
    first, _, gripper = found.of("actions")
    values = np.concatenate([demo.actions[:, 0] for demo in demos]).astype(np.float64)
    expected = [*np.nanquantile(values, [0, 0.01, 0.5, 0.99, 1]), np.nanmean(values), np.nanstd(values)]
    np.testing.assert_allclose(first.figures, expected)
    assert (first.kind, first.bad, first.name) == ("continuous", 1, "actions[0]")
    assert gripper.kind == "binary"
    assert [d.kind for d in found.of("hand_quat")] == ["continuous", "constant", "constant", "continuous"]
    assert found.lengths == (60,) * 20


def spoil_nan(demos):
    demos[4].obs["joints"][11:13, 1] = np.nan
    demos[2].actions[5, 0] = np.inf


def shorten(demos):
    demos[6] = Demo("demo_6", demos[6].actions[:9], {k: v[:9] for k, v in demos[6].obs.items()})


def copy_one(demos):
    demos[19] = Demo("demo_19", demos[2].actions, demos[2].obs)


def freeze(demos):
    for values in demos[8].obs.values():
        values[20:31] = values[20]


def spike(demos):
    demos[9].obs["joints"][17, 0] = 1e4


def leap(demos):
    demos[9].actions[30:, 1] += 100


def flip(demos):
    demos[3].obs["hand_quat"][40:] *= -1


def stretch(demos):
    demos[3].obs["hand_quat"][40:] *= 1.1


def change_units(demos):
    for demo in demos:
        demo.actions[:, 0] *= 1000


@pytest.mark.parametrize(
    ("spoil", "title", "places", "refused"),
    [
        (
            spoil_nan,
            "NaN or infinity",
            ("demo_4, joints[1]: 2 values, the first at step 11", "demo_2, actions[0]: 1 values, the first at step 5"),
            True,
        ),
        (shorten, "Shorter than a chunk", ("demo_6: 9 steps",), True),
        (copy_one, "The same demonstration again", ("demo_2, demo_19: in training and held out",), False),
        (freeze, "Observations that stand still for 5 steps or more", ("demo_8: steps 20 to 30",), False),
        (spike, "Outliers", ("joints[0]: 1e+04 in demo_9 at step 17",), False),
        (leap, "Actions that jump", ("actions[1]: by ", "in demo_9 after step 29"), False),
        (flip, "Quaternions that change sign", ("demo_3, hand_quat: 1 times, first after step 39",), False),
        (stretch, "Quaternions that are not of unit length", ("demo_3, hand_quat: length off by 0.1 at step",), False),
        (change_units, "Actions of very different scale", ("of actions[0]", "of actions[1]"), False),
    ],
)
def test_what_is_spoilt_is_found_and_nothing_else(spoil, title, places, refused):
    found = findings(spoil)
    also = {"Outliers", "Actions that jump"} if spoil in (leap, spike) else set()
    assert CLEAN | {title} <= set(found) <= CLEAN | {title} | also
    said = "\n".join(found[title].places)
    assert all(place in said for place in places), said
    assert found[title].refused == refused


def test_absolute_and_relative_actions():
    demos = demonstrations()
    motions = inspect(demo_set(demos)).motions
    assert [m.verdict for m in motions] == ["absolute", "absolute"]  # the gripper is binary
    assert [m.value[0] for m in motions] == ["joints[0]", "joints[1]"] and motions[0].value[1] > 0.99
    for demo in demos:
        demo.actions[:-1, :2] = np.diff(demo.obs["joints"], axis=0)
    motions = inspect(demo_set(demos)).motions
    assert [m.verdict for m in motions] == ["relative", "relative"]
    assert motions[1].change[0] == "joints[1]" and motions[1].change[1] > 0.99
    for i, demo in enumerate(demos):
        demo.actions[:, :2] = np.random.default_rng(100 + i).normal(size=(60, 2))
    assert [m.verdict for m in inspect(demo_set(demos)).motions] == ["unclear", "unclear"]


def test_what_training_refuses_of_the_whole_set_is_found():
    names = tuple(demo.name for demo in demonstrations())
    sawyer = {"env_name": "Lift", "env_kwargs": {"robots": ["Sawyer"]}, "action_units": ["m"]}
    demos = DemoSet(Path("x"), tuple(demonstrations()), names, (), ("joints",), sawyer, "", None)
    refused = {finding.title: finding.places for finding in inspect(demos).findings if finding.refused}
    assert refused["No demonstration is held out"] == ("20 in all, 20 to train on",)
    assert "names 1 dimensions, but actions have 3" in refused["Units that are not those of the actions"][0]
    assert refused["Recorded in another set-up than daps_robot/Lift-v0 has here"] == ("robots Sawyer instead of Panda",)
    assert len(refused) == 3


def test_longer_chunks_need_longer_demonstrations():
    assert not [finding for finding in inspect(demo_set(demonstrations()), 60).findings if finding.refused]
    (finding,) = [finding for finding in inspect(demo_set(demonstrations()), 61).findings if finding.refused]
    assert finding.places[0] == "demo_0: 60 steps" and "here 61" in finding.advice


def test_little_and_empty_data_do_no_harm():
    step = [Demo(f"demo_{i}", np.float32([[i % 7, i]]), {"state": np.float32([[i]])}) for i in range(20)]
    assert inspect(demo_set(step)).lengths == (1,) * 20
    one = Demo("demo_0", np.full((1, 2), np.nan, np.float32), {"state": np.zeros((1, 1), np.float32)})
    found = inspect(DemoSet(Path("x"), (one,), ("demo_0",), (), ("state",), {}, "", None))
    assert found.motions == () and np.isnan(found.dimensions[0].std)
