"""Writing a whole file of demonstrations at once (collection over several sittings is tested with the tasks)."""

import numpy as np
import pytest

from daps_robot.data import demo_writer
from daps_robot.data.demo_writer import write_demos
from daps_robot.data.demos import read_demos
from daps_robot.errors import DataError
from daps_robot.types import Demo


def demos_of(count):
    rng = np.random.default_rng(0)
    return [
        Demo(f"mine_{i}", rng.normal(size=(5 + i, 2)).astype(np.float32), {"x": rng.normal(size=(5 + i, 3)).astype(np.float32)},
             None if i else rng.normal(size=(5, 4)))
        for i in range(count)
    ]  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    demos = demos_of(10)
    write_demos(tmp_path / "all.hdf5", demos, 0.2, {"gymnasium_id": "some/Env-v0"})
    found = read_demos(tmp_path / "all.hdf5")
    assert found.env_id == "some/Env-v0" and found.valid == ("demo_4", "demo_9") and found.obs_dims == {"x": 3}
    for ours, theirs in zip(demos, found.demos, strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.obs["x"], theirs.obs["x"])
    np.testing.assert_array_equal(found.demos[0].states, demos[0].states)
    assert found.demos[1].states is None


def test_there_is_never_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "all.hdf5"
    write_demos(path, demos_of(3), 0.1, {})
    before = path.read_bytes()

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(demo_writer, "_describe", full)
    with pytest.raises(DataError, match="cannot be written"):
        write_demos(path, demos_of(5), 0.1, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
