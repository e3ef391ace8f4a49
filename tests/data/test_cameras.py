"""Pictures in robomimic's layout: read when asked for, cut into windows, and refused with a message where they do not fit."""

import h5py
import numpy as np
import pytest
import torch

from daps_robot.data.chunks import ChunkDataset, ObservedSteps
from daps_robot.data.demos import images_of, read_demos
from daps_robot.errors import DataError

SIZE = (6, 8)


def picture(demo, step, camera):
    """Names its demonstration, step and camera, so that none can be mistaken for another."""
    return np.full((*SIZE, 3), 60 * demo + 2 * step + 128 * (camera == "wrist"), np.uint8)


@pytest.fixture
def path(tmp_path):
    """Two demonstrations with an object, a hand, and pictures of two cameras, compressed."""
    path = tmp_path / "task.hdf5"
    with h5py.File(path, "w") as file:
        for i, steps in enumerate((7, 9)):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = np.zeros((steps, 2), np.float32)
            demo["obs/object"] = np.ones((steps, 3))
            demo["obs/hand"] = np.arange(steps, dtype=float)[:, None]
            for camera in ("front", "wrist"):
                pictures = np.stack([picture(i, step, camera) for step in range(steps)])
                demo.create_dataset(f"obs/{camera}_image", data=pictures, compression="gzip")
    return path


def test_pictures_are_read_when_asked_for_and_object_states_are_not(path, capsys):
    plain = read_demos(path)
    assert plain.obs_keys == ("hand", "object") and plain.demos[0].images == {}
    assert plain.cameras == {"front": SIZE, "wrist": SIZE} and plain.seen == () and plain.picture_size is None
    demos = read_demos(path, cameras=("wrist", "front"))
    assert demos.obs_keys == ("hand",) and demos.seen == ("wrist", "front") and demos.picture_size == SIZE
    assert "left out: object." in capsys.readouterr().out
    for i, demo in enumerate(demos.demos):
        for camera, pictures in demo.images.items():
            assert np.array_equal(pictures, np.stack([picture(i, step, camera) for step in range(len(demo))]))
    assert read_demos(path, ("object", "hand"), cameras=("front",)).obs_keys == ("object", "hand")
    assert images_of(plain, "demo_1").keys() == {"front", "wrist"}


@pytest.mark.parametrize("history", [1, 3])
def test_windows_hold_the_pictures_of_the_observed_steps(path, history):
    demos = read_demos(path, cameras=("wrist", "front"))
    data = ChunkDataset(demos.demos, demos.obs_keys, 4, history)
    order = torch.randperm(len(data))
    batch = data.gather(order)
    assert batch.images.shape == (16, history, 2, *SIZE, 3) and batch.images.dtype == torch.uint8
    windows = [(i, step) for i, demo in enumerate(demos.demos) for step in range(len(demo))]
    for row, index in enumerate(order.tolist()):
        i, step = windows[index]
        for back in range(history):
            seen = max(step - history + 1 + back, 0)
            assert batch.observations[row, back, 0] == seen
            for camera, name in enumerate(data.cameras):
                assert np.array_equal(batch.images[row, back, camera], picture(i, seen, name))
    assert torch.equal(data.ahead(order)[0], batch.actions) and torch.equal(data.ahead(order)[1], batch.mask)
    without = ChunkDataset(read_demos(path).demos, demos.obs_keys, 4, history)
    assert without.gather(order).images is None and ObservedSteps(data).gather(order).images is None


def change(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file["data/demo_1/obs"])


def replace(values):
    def edit(obs):
        del obs["wrist_image"]
        obs["wrist_image"] = values

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (replace(np.zeros((9, *SIZE, 3), np.float32)), "demo_1: 'obs/wrist_image' is float32 of shape"),
        (replace(np.zeros((8, *SIZE, 3), np.uint8)), r"shape \(8, 6, 8, 3\); uint8 of \(9, 6, 8, 3\) is needed"),
        (replace(np.zeros((9, 7, 8, 3), np.uint8)), "a picture a step"),
        (replace(np.zeros((9, *SIZE), np.uint8)), "a picture a step"),
        (lambda obs: obs.__delitem__("wrist_image"), "demo_1: no 'obs/wrist_image'"),
        (lambda obs: obs.move("wrist_image", "else") or obs.__setitem__("wrist_image", h5py.SoftLink("else")), "is a link"),
    ],
)
def test_what_are_no_pictures_is_refused(path, edit, message):
    change(path, edit)
    with pytest.raises(DataError, match=message):
        read_demos(path, cameras=("front", "wrist"))
    assert read_demos(path).demos[1].images == {}  # who reads numbers alone is not kept from it


def test_cameras_that_are_not_there_and_how_to_have_them(path):
    with pytest.raises(
        DataError, match=r"no pictures of side. It has pictures of: front, wrist.*render_demos.py --dataset .* side"
    ):
        read_demos(path, cameras=("front", "side"))
    with pytest.raises(DataError, match="a camera was asked for twice"):
        read_demos(path, cameras=("front", "front"))
    for i, steps in enumerate((7, 9)):
        with h5py.File(path, "r+") as file:
            file[f"data/demo_{i}/obs/top_image"] = np.zeros((steps, 4, 4, 3), np.uint8)
    with pytest.raises(DataError, match=r"pictures of different sizes \(front 6 × 8, top 4 × 4\)"):
        read_demos(path, cameras=("front", "top"))
    assert images_of(read_demos(path), "demo_0")["top"].shape == (7, 4, 4, 3)


def test_a_bomb_is_refused_before_memory_is_taken(path):
    with h5py.File(path, "r+") as file:
        for i, steps in enumerate((7, 9)):
            shape = (steps, 4000, 4000, 3)
            file[f"data/demo_{i}/obs"].create_dataset("huge_image", shape=shape, dtype=np.uint8, chunks=(1, 400, 400, 3))
    with pytest.raises(DataError, match="made to exhaust memory"):
        read_demos(path, cameras=("huge",))
    with pytest.raises(DataError, match="made to exhaust memory"):
        images_of(read_demos(path), "demo_0")
