"""Pictures of the tasks: the same in demonstrations and rollouts to the pixel, drawn when asked for, in files put there whole."""

import json

import gymnasium
import h5py
import numpy as np
import pytest

from daps_robot.data.demos import read_demos
from daps_robot.envs.collect import collect_demos
from daps_robot.envs.pictures import RenderDemos, run
from daps_robot.envs.tasks import LiftEnv
from daps_robot.errors import ConfigError, DataError, SimulationError

pytest.importorskip("robosuite", reason="robosuite (the extra 'sim') is not installed")

CAMERAS = ("robot0_eye_in_hand", "agentview")
LIFT, STEPS = "daps_robot/Lift-v0", 12


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The beginnings of two demonstrations of Lift, and the file with what two cameras saw of them."""
    folder = tmp_path_factory.mktemp("pictures")
    collect_demos("lift", folder / "lift.hdf5", demos=2, workers=1, seed=7)
    with h5py.File(folder / "lift.hdf5", "r+") as file:
        for demo in file["data"].values():
            for where in ("actions", "states", *(f"obs/{key}" for key in demo["obs"])):
                values = demo[where][:STEPS]
                del demo[where]
                demo[where] = values
            demo.attrs["num_samples"] = STEPS
    try:
        return folder / "lift.hdf5", run(RenderDemos(str(folder / "lift.hdf5"), CAMERAS, 32, folder / "seen.hdf5", workers=1))
    except SimulationError as error:
        pytest.skip(f"no OpenGL here: {error}")


def test_a_rollout_sees_what_the_demonstration_shows(rendered):
    source, path = rendered
    demos, plain = read_demos(path, cameras=CAMERAS), read_demos(source)
    assert demos.cameras == {"agentview": (32, 32), "robot0_eye_in_hand": (32, 32)} and demos.env_id == LIFT
    env = gymnasium.make(LIFT, cameras=CAMERAS, camera_size=32)
    for demo, before in zip(demos.demos, plain.demos, strict=True):
        assert np.array_equal(demo.actions, before.actions) and np.array_equal(demo.states, before.states)
        seen, _ = env.reset(seed=demo.seed)
        for step in range(STEPS):
            assert env.observation_space.contains(seen)
            for camera in CAMERAS:
                assert np.array_equal(seen[f"{camera}_image"], demo.images[camera][step]), (demo.name, camera, step)
            seen, *_ = env.step(demo.actions[step])
        assert not np.array_equal(demo.images["agentview"][0], demo.images["agentview"][-1])
    env.close()
    with h5py.File(path) as file:
        assert json.loads(file["data"].attrs["rendering"])["source_sha256"] == plain.sha256


def test_the_cube_is_seen_by_both_cameras_right_way_up(rendered):
    demo = read_demos(rendered[1], cameras=CAMERAS).demos[0]
    for pictures in demo.images.values():
        red = (pictures[0, ..., 0] > 100) & (pictures[0, ..., 1:] < 90).all(-1)
        assert 1 <= red.sum() < 100
    bright = demo.images["agentview"][0].mean((1, 2))
    assert bright[-8:].mean() > bright[:8].mean() + 50  # the white table below, the robot and the wall above


def test_pictures_are_drawn_when_asked_for():
    env = LiftEnv(cameras=("agentview",), camera_size=24)
    env.drawing = False
    seen, _ = env.reset(seed=3)
    assert "agentview_image" not in seen and not env._opened
    try:
        before, asked = env.get_state(), env.pictures()
    except SimulationError as error:
        pytest.skip(f"no OpenGL here: {error}")
    assert np.array_equal(before["physics"], env.get_state()["physics"])
    env.drawing = True
    assert np.array_equal(env.set_state(before)["agentview_image"], asked["agentview_image"])
    assert np.array_equal(env.reset(seed=3, options={"hard": True})[0]["agentview_image"], asked["agentview_image"])
    env.close()
    assert LiftEnv().pictures() == {}


def test_a_picture_larger_than_the_default_buffer_is_whole():
    """MuJoCo's has 640 × 480 pixels, and what lies outside of it is never drawn."""
    small, large = (LiftEnv(cameras=("agentview",), camera_size=size) for size in (80, 720))
    try:
        pictures = [env.reset(seed=3)[0]["agentview_image"].astype(float) for env in (small, large)]
    except SimulationError as error:
        pytest.skip(f"no OpenGL here: {error}")
    coarse = pictures[1].reshape(80, 9, 80, 9, 3).mean((1, 3))
    assert np.abs(coarse - pictures[0]).mean() < 10
    small.close(), large.close()


def test_cameras_that_cannot_be_are_refused():
    with pytest.raises(SimulationError, match=r"Lift has no camera sofa; it has .*agentview.*robot0_eye_in_hand"):
        LiftEnv(cameras=("sofa",))
    with pytest.raises(SimulationError, match="camera_size=0"):
        LiftEnv(cameras=("agentview",), camera_size=0)
    with pytest.raises(ConfigError, match="none twice"):
        RenderDemos(cameras=("agentview", "agentview"))


def test_what_cannot_be_rendered_leaves_no_file(rendered, tmp_path):
    source, path = rendered
    out = tmp_path / "out.hdf5"
    moved = tmp_path / "moved.hdf5"
    moved.write_bytes(source.read_bytes())
    with h5py.File(moved, "r+") as file:
        file["data/demo_1/obs/robot0_eef_pos"][3] += 0.01  # the second demonstration: the first has been written by then
    for dataset, options, error, message in (
        (moved, {}, DataError, r"demo_1: step 3: its state puts the hand 10.0 mm from the recorded place"),
        (source, {"cameras": ("sofa",)}, SimulationError, "no camera sofa"),
    ):
        with pytest.raises(error, match=message):
            run(RenderDemos(str(dataset), **{"cameras": ("agentview",), "size": 8, **options}, out=out, workers=1))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["moved.hdf5"]
    with pytest.raises(DataError, match="exists: choose another --out"):
        run(RenderDemos(str(source), out=path, workers=1))


def test_a_camera_is_rendered_again_at_another_size_by_workers(rendered, tmp_path):
    _, path = rendered
    again = run(RenderDemos(str(path), ("agentview",), 16, tmp_path / "again.hdf5", workers=2))
    assert read_demos(again).cameras == {"agentview": (16, 16), "robot0_eye_in_hand": (32, 32)}
