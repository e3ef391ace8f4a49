"""Windows of motion against slow loops and scipy's rotations, and what is refused."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from daps_robot.data.motion import FPS, JOINTS, LAFAN_VALID, LAYOUT, QUATERNION, placed_at, read_motion
from daps_robot.errors import ConfigError, DataError

LENGTHS = {"walk": 11, "fall": 8, "run": 13}


def arrays(seed=0):
    """A small file: three clips in which the body walks and tumbles smoothly, every number different."""
    rng = np.random.default_rng(seed)
    clips = []
    for steps in LENGTHS.values():
        turns = Rotation.from_rotvec(0.2 * rng.standard_normal((steps, 3)))
        pose = [Rotation.random(random_state=int(rng.integers(99)))]
        for i in range(1, steps):
            pose.append(turns[i] * pose[-1])
        quaternions = np.stack([p.as_quat() for p in pose])
        for i in range(1, steps):
            quaternions[i] *= 1 if quaternions[i] @ quaternions[i - 1] > 0 else -1
        positions = 5 * rng.standard_normal(3) + rng.random((steps, 3))
        clips.append(np.hstack([positions, quaternions, rng.standard_normal((steps, 29))]))
    return {
        "motion": np.concatenate(clips).astype(np.float32),
        "clip": np.array(list(LENGTHS)),
        "clip_ends": np.cumsum(list(LENGTHS.values())),
        "fps": np.array(FPS),
        "layout": np.array(LAYOUT),
    }


def write(path, **changes):
    np.savez(path, **{name: value for name, value in {**arrays(), **changes}.items() if value is not None})
    return path


def read(path, horizon=4, valid=("fall",), root="relative"):
    return read_motion(path, horizon, valid, root)


def everything(windows):
    return windows.gather(torch.arange(len(windows)))


@pytest.mark.parametrize("horizon", [1, 3, 4, 8])
def test_windows_lie_in_clips_and_splits_are_whole_clips(tmp_path, horizon):
    train, valid = read(write(tmp_path / "m.npz"), horizon, root="raw")
    motion = arrays()["motion"]
    slow = [motion[a : a + horizon] for first, end in ((0, 11), (19, 32)) for a in range(first, end - horizon + 1)]
    assert np.array_equal(everything(train), np.stack(slow))
    starts = [*range(11, 19 - horizon + 1, horizon)]
    starts += [] if starts[-1] == 19 - horizon else [19 - horizon]
    assert np.array_equal(everything(valid), np.stack([motion[a : a + horizon] for a in starts]))
    assert np.array_equal(train.gather(torch.tensor([5, 0, 5])), np.stack([slow[5], slow[0], slow[5]]))


def test_no_window_is_stored(tmp_path):
    train, valid = read(write(tmp_path / "m.npz"), 8)
    assert train.frames.data_ptr() == valid.frames.data_ptr() and train.frames.shape == (32, 36)
    before = train.frames.clone()
    everything(train).zero_()
    assert torch.equal(train.frames, before)


def test_a_relative_window_starts_at_the_origin_and_is_put_back(tmp_path):
    path = write(tmp_path / "m.npz")
    train, raw = read(path).train, read(path, root="raw").train
    windows, index = everything(train), torch.arange(len(train))
    first = windows[:, 0]
    torch.testing.assert_close(first[:, [0, 1, 5]], torch.zeros(len(train), 3), atol=1e-6, rtol=0)
    assert bool((first[:, 6] >= 0).all())
    torch.testing.assert_close(windows[..., [2, *range(7, 36)]], everything(raw)[..., [2, *range(7, 36)]], rtol=0, atol=0)
    torch.testing.assert_close(placed_at(train.places(index), windows), everything(raw), atol=3e-6, rtol=0)


def test_relative_windows_are_scipys_rotations(tmp_path):
    path = write(tmp_path / "m.npz")
    train = read(path).train
    index = torch.arange(len(train))
    windows, frames, places = everything(train).double(), everything(read(path, root="raw").train).double(), train.places(index)
    for window, was, place in zip(windows, frames, places.double(), strict=True):
        heading = Rotation.from_rotvec([0, 0, float(place[2])])
        moved = was[:, :3] - torch.tensor([*was[0, :2], 0])
        assert np.allclose(heading.apply(window[:, :3]), moved, atol=1e-5)
        apart = (heading * Rotation.from_quat(window[:, QUATERNION])).inv() * Rotation.from_quat(was[:, QUATERNION])
        assert apart.magnitude().max() < 1e-5


def test_place_heading_and_sign_do_not_matter(tmp_path):
    changed = arrays()["motion"]
    turn = Rotation.from_rotvec([0, 0, 2.5])
    changed[:, :3] = turn.apply(changed[:, :3]) + np.array([3, -7, 0])
    changed[:, QUATERNION] = (turn * Rotation.from_quat(changed[:, QUATERNION])).as_quat()
    changed[5:9, QUATERNION] *= -1
    here, there = read(write(tmp_path / "a.npz")).train, read(write(tmp_path / "b.npz", motion=changed)).train
    torch.testing.assert_close(everything(there), everything(here), atol=1e-5, rtol=0)
    signs = (there.frames[:-1, QUATERNION] * there.frames[1:, QUATERNION]).sum(-1) > 0
    assert signs[[i for i in range(31) if i not in (10, 18)]].all()  # continuous inside every clip


@pytest.mark.parametrize("tilt", [0, 89.99, 90, 90.01, 150])
def test_the_heading_of_a_body_on_the_ground_is_smooth(tmp_path, tilt):
    """Turned by 40° and then tilted about a horizontal axis, however far (Euler angles jump at 90°)."""
    motion = arrays()["motion"]
    poses = Rotation.from_euler("ZY", [[40, tilt]] * 32, degrees=True)
    motion[:, QUATERNION] = poses.as_quat()
    train = read(write(tmp_path / "m.npz", motion=motion)).train
    expected = torch.from_numpy(Rotation.from_euler("Y", tilt, degrees=True).as_quat()).float()
    torch.testing.assert_close(everything(train)[..., QUATERNION], expected.expand(len(train), 4, 4), atol=1e-6, rtol=0)


def test_features_hold_every_frame(tmp_path):
    train = read(write(tmp_path / "m.npz"), 4, root="raw").train
    motion = np.concatenate([arrays()["motion"][:11], arrays()["motion"][19:]])
    assert np.array_equal(np.unique(train.features()[:, 7]), np.unique(motion[:, 7]))
    assert train.features().shape == ((3 + 4) * 4, 36)
    relative = read(tmp_path / "m.npz", 4).train
    assert np.abs(relative.features()[::4, :2]).max() < 1e-6


def test_the_real_file():
    path = Path(os.environ.get("DAPS_ROBOT_DATA", "data")) / "lafan1_g1.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    train, valid = read_motion(None)
    lengths = {"dance2_subject2": 6771, "fight1_subject2": 7347, "run2_subject1": 7345, "walk2_subject4": 7146}
    assert tuple(lengths) == LAFAN_VALID
    assert len(valid) == sum(-(-n // 32) for n in lengths.values())
    assert len(train) == 264_705 - sum(lengths.values()) - 36 * 31
    index = torch.tensor([0, 100_000, len(train) - 1])
    with np.load(path) as file:
        motion = torch.from_numpy(file["motion"])
    assert torch.equal(train.frames, motion)  # no quaternion jumps to its negative
    windows = train.gather(index)
    torch.testing.assert_close(placed_at(train.places(index), windows)[-1], motion[-32:], atol=3e-6, rtol=0)
    everywhere = everything(valid)
    assert everywhere[..., 6].min() > -0.9 and everywhere[:, 0, 6].min() >= 0
    assert everywhere[..., JOINTS].abs().max() < np.pi


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAPS_ROBOT_DATA", str(tmp_path / "shelf"))
    with pytest.raises(DataError, match=r"lafan1_g1.npz is not in .*shelf or data"):
        read_motion(None)
    with pytest.raises(DataError, match=r"gone\.npz is not there"):
        read(tmp_path / "gone.npz")
    with pytest.raises(DataError, match="is not a file"):
        read(tmp_path)


def changed_motion(row, columns, value):
    motion = arrays()["motion"]
    motion[row, columns] = value
    return motion


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": None}, r"no array 'fps'.*clip_ends.*This has: motion"),
        ({"motion": np.zeros((32, 35), np.float32)}, r"'motion' is float32 of shape \(32, 35\); it must be float32 of \(t, 36\)"),
        ({"motion": arrays()["motion"].astype(np.float64)}, "'motion' is float64"),
        ({"motion": arrays()["motion"][0]}, r"'motion' is float32 of shape \(36,\)"),
        ({"clip": np.array(list(LENGTHS), object)}, "'clip' is object"),
        ({"clip": np.arange(3)}, r"'clip' is int64 of shape \(3,\); it must be names"),
        ({"clip_ends": np.array([11.0, 19, 32])}, "'clip_ends' is float64"),
        ({"fps": np.array(60)}, "at 60 frames a second"),
        ({"clip": np.array([[119, 2**31], [1, 0], [2, 0]], np.uint32).view("U2")[:, 0]}, "'clip' holds what is no text"),
        ({"clip": np.array(["walk", "a\x1b[2J", "run"])}, "cannot be printed"),
        ({"layout": np.array("root xyz quat wxyz")}, "holds 'root xyz quat wxyz' at 30"),
        ({"clip_ends": np.array([11, 19])}, "2 clip_ends for 3 clips"),
        ({"clip": np.array(["walk", "fall", "walk"])}, r"\(2 names\)"),
        ({"clip_ends": np.array([11, 11, 32])}, "fall ends at frame 11, but starts at 11"),
        ({"clip_ends": np.array([-1, 19, 32])}, "walk ends at frame -1, but starts at 0"),
        ({"clip_ends": np.array([11, 19, 33])}, "3 clips end at frame 33, but there are 32 frames"),
        ({"clip": np.array([], "U1"), "clip_ends": np.array([], int)}, "0 clips end at frame 0"),
        ({"clip_ends": np.array([11, 14, 32])}, "fall has 3 frames, fewer than a window of 4: use windows of 3 frames or less"),
        ({"motion": changed_motion(13, 8, np.nan)}, "fall is NaN or infinite at frame 2"),
        ({"motion": changed_motion(20, slice(3, 7), 0.6)}, "run: the root quaternion at frame 1 has norm 1.2"),
    ],
)
def test_a_file_of_another_layout(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as error:
        read(write(tmp_path / "m.npz", **changes))
    assert "m.npz" in str(error.value)


def test_what_was_asked_must_make_sense(tmp_path):
    path = write(tmp_path / "m.npz")
    with pytest.raises(DataError, match=r"no clip 'wlak' to validate on. Did you mean 'walk'"):
        read(path, valid=("wlak",))
    for valid in ((), tuple(LENGTHS)):
        with pytest.raises(DataError, match="leave a split empty"):
            read(path, valid=valid)
    with pytest.raises(ConfigError, match="window of 0 frames"):
        read(path, horizon=0)


@pytest.mark.parametrize("kind", ["empty", "text", "npy", "truncated", "flipped"])
def test_a_damaged_file(tmp_path, kind):
    path = write(tmp_path / "m.npz")
    content = bytearray(path.read_bytes())
    if kind == "npy":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        content = path.with_suffix(".npy").read_bytes()
    elif kind == "flipped":
        content[2000] ^= 255
    path.write_bytes({"empty": b"", "text": b"hello", "truncated": content[:-200]}.get(kind, bytes(content)))
    with pytest.raises(DataError, match=r"m\.npz is damaged or no \.npz file"):
        read(path)


def npy(shape, dtype="<f4", version=1):
    """The header of an array, and nothing after it."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    (np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0)(stream, header)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("motion", npy((10**12, 36)), "declares 137329102 MiB in a file of 0.0. MiB"),
        ("motion", npy((510_000, 36)) + bytes(510_000 * 144), "declares 70 MiB"),  # compressed to almost nothing
        ("clip", npy((3,), "<U500000000"), "declares 5722 MiB"),
        ("clip", npy((3,), "<U2000000000"), r"'clip' is <U-.* must be names|descr is not a valid dtype"),
        ("motion", npy((-1, 36)), r"float32 of shape \(-1, 36\)"),
        ("motion", npy((100, 36)), "damaged"),
        ("motion", npy((100, 36), version=2), "not in version 1.0"),
        ("motion", b"\x93NUMPY\x01\x00\x05\x00((((\n", "damaged"),
    ],
)
def test_absurd_sizes_are_refused_by_their_header(tmp_path, member, content, message):
    path = write(tmp_path / "m.npz")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | {f"{member}.npy": content}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(DataError, match=message):
        read(path)
