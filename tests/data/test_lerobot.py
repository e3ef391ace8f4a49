"""LeRobotDataset v3 folders: read as they were written, and refused with a message where something does not fit."""

import json
import subprocess
import sys

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from lerobot_folder import (  # noqa: E402
    DIMS,
    LENGTHS,
    column,
    edit_feature,
    edit_info,
    edit_table,
    episode,
    save,
    with_column,
    write_lerobot,
)

from daps_robot.data.demos import read_demos  # noqa: E402
from daps_robot.errors import ConfigError, DataError  # noqa: E402

DATA = "data/chunk-000/file-001.parquet"  # episodes 4 to 7
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def folder(tmp_path):
    return write_lerobot(tmp_path / "pushing")


@pytest.mark.parametrize("fixed", [True, False])
def test_what_is_written_is_read(tmp_path, capsys, fixed):
    folder = write_lerobot(tmp_path / "pushing", fixed=fixed)
    demos = read_demos(folder)
    assert [demo.name for demo in demos.demos] == [f"demo_{i}" for i in range(10)]
    assert demos.obs_keys == ("observation.environment_state", "observation.state")
    assert demos.obs_dims == {key: DIMS[key] for key in demos.obs_keys}
    assert (demos.action_dim, demos.rate, demos.env_id) == (3, 30.0, None)
    assert demos.valid == ("demo_9",) and len(demos.train) == 9
    for i, demo in enumerate(demos.demos):
        written = episode(i, LENGTHS[i])
        assert np.array_equal(demo.actions, written["action"])
        assert demo.actions.dtype == np.float32
        for key in demos.obs_keys:
            assert np.array_equal(demo.obs[key], written[key])
    assert "observation.state; left out: observation.images.top" in capsys.readouterr().out


def test_keys_that_are_asked_for(folder, capsys):
    demos = read_demos(folder, ["observation.state", "timestamp"])
    assert demos.obs_dims == {"observation.state": 4, "timestamp": 1}
    assert demos.demos[3].obs["timestamp"][6, 0] == np.float32(0.2)
    assert capsys.readouterr().out == ""
    refused(folder, "'observation.images.top' .video. is no row of numbers", obs_keys=["observation.images.top"])
    refused(folder, "no feature 'observation.stat'. Did you mean 'observation.state'", obs_keys=["observation.stat"])
    refused(folder, "no observation key", obs_keys=[])


def test_the_splits_of_the_metadata(folder):
    edit_info(folder, splits={"train": "0:6", "val": "6:8", "test": "8:10"})
    assert read_demos(folder).valid == ("demo_6", "demo_7")
    assert len(read_demos(folder).train) == 6
    edit_info(folder, splits={"train": "0:7"})
    assert read_demos(folder).valid == ("demo_7", "demo_8", "demo_9")


def test_the_checksum_is_that_of_the_files_that_are_read(folder):
    before = read_demos(folder).sha256
    names = ["data/chunk-000/file-000.parquet", DATA, "data/chunk-000/file-002.parquet", EPISODES, "meta/info.json"]
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    assert before == subprocess.run(["sha256sum"], input=lines, capture_output=True).stdout.split()[0].decode()
    (folder / "README.md").write_text("hello")
    assert read_demos(folder).sha256 == before
    edit_info(folder, robot_type="other")
    assert read_demos(folder).sha256 != before


def test_nan_can_be_looked_at(folder):
    edit_table(folder, DATA, with_column("observation.state", lambda table: column(spoilt(len(table)))))
    refused(folder, "demo_4: 'observation.state' is NaN or infinite at step 3")
    values = read_demos(folder, finite=False).demos[4].obs["observation.state"]
    assert np.argwhere(np.isnan(values)).tolist() == [[3, 1]]


def test_without_pyarrow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'daps-robot\[lerobot\]'"):
        read_demos(folder)


def spoilt(rows):
    values = np.zeros((rows, 4), np.float32)
    values[3, 1] = np.nan
    return values


def dropped_row(row):
    return lambda table: pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def info(**changes):
    return lambda folder: edit_info(folder, **changes)


def feature(key, **changes):
    return lambda folder: edit_feature(folder, key, **changes)


def table(name, change):
    return lambda folder: edit_table(folder, name, change)


def template(path):
    return info(data_path=path), "data_path"


def lists(rows):
    return pa.array(rows, pa.list_(pa.float32()))


SWAPPED = pa.array([0, 1, 2, 3, 5, 4, 6, 7, 8, 9])
TWO = "{chunk_index}{file_index}"

BAD_FOLDERS = {
    "version 2.1": (info(codebase_version="v2.1"), "v2.1.*convert_dataset_v21_to_v30 --repo-id=local/pushing --root="),
    "version 2.0": (info(codebase_version="v2.0"), "older than v2.1"),
    "a later version": (info(codebase_version="v4.0"), "v4.0"),
    "no version": (info(codebase_version=None), "None"),
    "no JSON": (lambda folder: (folder / "meta/info.json").write_text("{"), "not JSON"),
    "deep JSON": (lambda folder: (folder / "meta/info.json").write_text("[" * 100_000), "not JSON"),
    "a list": (lambda folder: (folder / "meta/info.json").write_text("[]"), "not a JSON object"),
    "no features": (info(features=None), "features"),
    "a shape that is none": (feature("action", shape=[-1]), "features"),
    "no action": (info(features={"actions": {"dtype": "float32", "shape": [3]}}), "no feature 'action'.*actions"),
    "no observations": (info(features={"action": {"dtype": "float32", "shape": [3]}}), "'observation.'.*action"),
    "fps zero": (info(fps=0), "fps is 0"),
    "fps beyond all floats": (info(fps=10**400), "fps is 1000"),
    "names with escape sequences": (feature("observation.\x1b[31m", dtype="float32", shape=[1]), "'features' is not"),
    "endless names": (feature("observation." + "x" * 10**6, dtype="float32", shape=[1]), "'features' is not"),
    "fps NaN": (info(fps=float("nan")), "fps is nan"),
    "fps text": (info(fps="30"), "fps is 30"),
    "episodes as text": (info(total_episodes="10"), "total_episodes"),
    "splits out of range": (info(splits={"train": "0:99"}), "split train is 0:99"),
    "splits in percent": (info(splits={"train": "90%"}), "split train is 90%"),
    "splits that overlap": (info(splits={"train": "0:9", "val": "8:10"}), "demo_8 is in both"),
    "leaves by parents": template(f"../{TWO}.parquet"),
    "leaves by the root": template(f"/etc/{TWO}"),
    "leaves in the middle": template(f"data/../../{TWO}"),
    "an attribute": template("{chunk_index.__class__}{file_index}"),
    "endless padding": template("{chunk_index:0999999999d}{file_index}"),
    "a conversion": template("{chunk_index!r}{file_index}"),
    "a nested field": template("{chunk_index:{file_index}}"),
    "another field": template("{video_key}/" + TWO),
    "no fields": template("data.parquet"),
    "open braces": template("{chunk_index"),
    "no text": template(7),
    "absurd shape": (feature("action", shape=[10**12]), "meta/info.json says float32 of 1000000000000"),
    "absurd count": (info(total_frames=10**15), "says 1000000000000000 frames, but the episodes add up to 221"),
    "other count of episodes": (info(total_episodes=11, splits={}), "says 11 episodes, but meta/episodes has 10"),
    "other shape": (feature("observation.state", shape=[5]), "'observation.state' holds fixed_size_list.*float32 of 5"),
    "other type": (feature("action", dtype="float64"), "'action' holds .*float.*says float64 of 3"),
    "a camera in its place": (feature("action", dtype="video"), "no feature 'action'"),
    "no such column": (feature("observation.extra", dtype="float32", shape=[2]), "no column 'observation.extra'"),
    "a file of another type": (
        table(DATA, with_column("action", lambda t: column(np.zeros((len(t), 3))))),
        r"file-001.*'action' holds fixed_size_list.*double",
    ),
    "a file of another width": (
        table(DATA, with_column("action", lambda t: column(np.zeros((len(t), 2), np.float32)))),
        r"file-001.*'action' holds fixed_size_list",
    ),
    "lists of other lengths": (
        table(
            DATA,
            with_column("action", lambda t: lists([[0.0] * (2 + 2 * (i % 2)) for i in range(len(t))])),
        ),
        "'action' has another length than 3 in row 0",
    ),
    "too many values": (
        table(DATA, with_column("action", lambda t: lists([[0.0] * 9] * len(t)))),
        "'action' has 810 values in 90 rows",
    ),
    "null rows": (
        table(
            DATA,
            with_column("action", lambda t: lists([None, [0.0] * 5] + [[0.0] * 3] * (len(t) - 2))),
        ),
        "has 270 values in 90 rows|null",
    ),
    "null values": (
        table(DATA, with_column("action", lambda t: lists([[1.0, None, 3.0]] * len(t)))),
        "'action' has rows or values that are null",
    ),
    "text": (table(DATA, with_column("action", lambda t: pa.array(["a"] * len(t)))), "'action' holds string"),
    "a column twice": (table(DATA, lambda t: t.append_column("action", t["action"])), "no column 'action', or several"),
    "infinite": (
        table(DATA, with_column("observation.environment_state", lambda t: pa.array([np.inf] * len(t), pa.float32()))),
        "demo_4: 'observation.environment_state' is NaN or infinite at step 0",
    ),
    "a missing file": (lambda folder: (folder / DATA).unlink(), "file-001.parquet does not exist, but meta/episodes names it"),
    "no episodes": (lambda folder: (folder / EPISODES).unlink(), "no episodes in meta/episodes"),
    "episodes without rows": (table(EPISODES, lambda t: t.slice(0, 0)), "meta/episodes has no episode in it"),
    "an endless path": (
        lambda folder: edit_info(folder, data_path="d" * 300 + "/{chunk_index:03d}/{file_index:03d}.parquet"),
        "data_path is ddd",
    ),
    "a missing row": (table(DATA, dropped_row(30)), "file-001.parquet has 89 rows, but its episodes add up to 90"),
    "a gap in the frames": (
        table(DATA, with_column("frame_index", lambda t: pa.array([i + (i > 10) for i in range(len(t))]))),
        "demo_4: frame_index is 12 at step 11, where 11 is expected",
    ),
    "steps of another episode": (
        table(DATA, with_column("episode_index", lambda t: pa.array([4] * len(t)))),
        "demo_5: episode_index is 4 at step 0, where 5 is expected",
    ),
    "a gap in the episodes": (table(EPISODES, dropped_row(3)), "episode 3 is missing"),
    "an episode twice": (
        table(EPISODES, with_column("episode_index", pa.array([0, 1, 2, 3, 3, 5, 6, 7, 8, 9]))),
        "episode 4 is missing",
    ),
    "episodes in each other's place": (
        table(EPISODES, with_column("episode_index", SWAPPED)),
        "demo_4: episode_index is 5",
    ),
    "an empty episode": (table(EPISODES, with_column("length", pa.array([0, 41, *LENGTHS[2:]]))), "demo_0 has no steps"),
    "a negative file": (table(EPISODES, with_column("data/file_index", pa.array([-1] * 10))), "negative file numbers"),
    "numbers of episodes as text": (
        table(EPISODES, with_column("length", pa.array([str(n) for n in LENGTHS]))),
        "'length' holds string instead of whole numbers",
    ),
    "no lengths": (table(EPISODES, lambda t: t.drop_columns(["length"])), "no column 'length'"),
    "no parquet": (lambda folder: (folder / DATA).write_bytes(b"PK\x03\x04" * 100), "file-001.parquet is damaged"),
    "an empty file": (lambda folder: (folder / DATA).write_bytes(b""), "file-001.parquet is damaged"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_unusable_contents_are_refused(folder, case):
    change, message = BAD_FOLDERS[case]
    change(folder)
    refused(folder, message)


def refused(folder, message, **arguments):
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        read_demos(folder, **arguments)
    text = str(caught.value)
    assert str(folder) in text
    assert len(text.splitlines()) <= 2
    assert len(text) < 700


def test_a_bomb_is_refused_before_it_goes_off(folder):
    """Thirty million zeros take a few kilobytes of a parquet file."""
    rows = 3 * 10**5
    zeros = {key: pa.array(np.zeros(rows, np.float32)) for key in ("observation.environment_state",)}
    big = {"action": column(np.zeros((rows, 100), np.float32)), "observation.state": column(np.zeros((rows, 4), np.float32))}
    counts = {key: pa.array(np.zeros(rows, np.int64)) for key in ("frame_index", "episode_index")}
    save(folder / "data/chunk-000/file-000.parquet", pa.table(zeros | big | counts))
    edit_table(folder, EPISODES, lambda t: with_column("length", pa.array([rows]))(t.slice(0, 1)))
    edit_info(folder, total_episodes=1, total_frames=rows, splits={})
    edit_feature(folder, "action", shape=[100])
    refused(folder, "declares 122 MiB in a file of 0")


@pytest.mark.parametrize("seed", range(8))
def test_damage_anywhere_is_refused_or_harmless(folder, seed):
    rng = np.random.default_rng(seed)
    path = folder / (DATA if seed % 2 else EPISODES)
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content) - 400))
    content[start : start + 400] = rng.bytes(400)
    path.write_bytes(bytes(content))
    try:
        demos = read_demos(folder)
    except DataError as error:
        assert str(folder) in str(error)
    else:
        assert all(np.isfinite(demo.actions).all() for demo in demos.demos)


def test_large_metadata_are_no_metadata(folder):
    edit_info(folder, padding="x" * 5 * 2**20)
    refused(folder, "larger than 4 MiB")
    assert json.loads((folder / "meta/info.json").read_text())["padding"]
