"""robomimic's HDF5 layout: written, read by us and by robomimic alike, and refused with a message where it is not usable."""

import json

import h5py
import numpy as np
import pytest

from daps_robot.data import demo_checks
from daps_robot.data.demo_writer import DemoWriter, Episode
from daps_robot.data.demos import ROBOMIMIC_KEYS, read_demos
from daps_robot.data.env_args import ENV_IDS
from daps_robot.errors import DataError

DIMS = dict(zip(ROBOMIMIC_KEYS, (3, 4, 2, 10), strict=True))


def episode(seed, steps=12):
    rng = np.random.default_rng(seed)
    return Episode(
        actions=rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
        observations={key: rng.normal(size=(steps + 1, size)).astype(np.float32) for key, size in DIMS.items()},
        states=rng.normal(size=(steps, 32)),
        rewards=np.zeros(steps),
        dones=np.zeros(steps, np.int64),
        seed=seed,
        model_file="<mujoco/>",
    )


@pytest.fixture
def path(tmp_path):
    """Twelve demonstrations of 12 to 23 steps, of which two are for validation."""
    writer = DemoWriter(tmp_path / "lift.hdf5", {})
    for i in range(12):
        writer.add(i, episode(i, steps=12 + i))
    writer.finish(12, valid_fraction=0.2, env_args={"env_name": "Lift", "type": 1})
    return tmp_path / "lift.hdf5"


def test_what_is_written_is_read(path):
    demos = read_demos(path)
    assert len(demos) == 12
    assert [demo.name for demo in demos.demos] == [f"demo_{i}" for i in range(12)]
    assert demos.obs_keys == ROBOMIMIC_KEYS
    assert demos.obs_dims == DIMS
    assert demos.action_dim == 7
    assert demos.env_id == ENV_IDS["Lift"]
    assert demos.valid == ("demo_4", "demo_9")
    assert not set(demos.train) & set(demos.valid)
    assert len(demos.sha256) == 64
    for i, demo in enumerate(demos.demos):
        written = episode(i, steps=12 + i)
        assert demo.seed == i
        assert np.array_equal(demo.actions, written.actions)
        assert np.array_equal(demo.states, written.states)
        for key in ROBOMIMIC_KEYS:
            assert np.array_equal(demo.obs[key], written.observations[key][:-1])
            assert demo.obs[key].dtype == np.float32
    assert [demo.name for demo in demos.select(("demo_3", "demo_1"))] == ["demo_3", "demo_1"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("split", [None, "train", "valid"])
def test_robomimics_reader_sees_the_same(path, split):
    dataset = pytest.importorskip("robomimic.utils.dataset", reason="robomimic is not installed")
    from robomimic.utils import obs_utils

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(ROBOMIMIC_KEYS)}})
    horizon, history = 8, 2
    theirs = dataset.SequenceDataset(
        str(path),
        obs_keys=ROBOMIMIC_KEYS,
        dataset_keys=("actions", "rewards", "dones"),
        seq_length=horizon,
        frame_stack=history,
        get_pad_mask=True,
        hdf5_cache_mode=None,
        filter_by_attribute=split,
    )
    ours = read_demos(path)
    chosen = ours.demos if split is None else ours.select(getattr(ours, split))
    assert len(theirs) == sum(len(demo) for demo in chosen)
    windows = iter(range(len(theirs)))
    for demo in chosen:
        for t in range(len(demo)):
            window = theirs[next(windows)]
            rows = np.clip(np.arange(t - history + 1, t + horizon), 0, len(demo) - 1)
            np.testing.assert_array_equal(window["actions"], demo.actions[rows])
            after = episode(demo.seed, steps=len(demo)).observations["object"][1:]
            np.testing.assert_array_equal(window["next_obs"]["object"], after[rows])
            for key in ROBOMIMIC_KEYS:
                np.testing.assert_array_equal(window["obs"][key], demo.obs[key][rows])


def test_without_masks_every_tenth_demonstration_is_for_validation(path):
    edit(path, lambda file: file.__delitem__("mask"))
    demos = read_demos(path)
    assert demos.valid == ("demo_9",)
    assert len(demos.train) == 11


def test_with_one_mask_the_rest_is_the_other_split(path):
    edit(path, lambda file: file.__delitem__("mask/valid"))
    assert read_demos(path).valid == ("demo_4", "demo_9")


def test_fewer_demonstrations_are_nested_and_drawn_by_the_seed(path):
    demos = read_demos(path)
    draws = [demos.fewer(count, seed=3) for count in (2, 5, 10)]
    assert [len(each.train) for each in draws] == [2, 5, 10]
    assert set(draws[0].train) < set(draws[1].train) < set(draws[2].train) == set(demos.train)
    assert all(each.valid == demos.valid and each.train == demos.fewer(len(each.train), 3).train for each in draws)
    assert demos.fewer(5, seed=4).train != draws[1].train
    assert demos.fewer(None, seed=3) is demos
    for count in (0, 11):
        with pytest.raises(DataError, match=rf"lift.hdf5: {count} of its 10 training"):
            demos.fewer(count, seed=0)


def test_other_keys_are_read_sorted_where_robomimics_are_missing(path):
    def change(file):
        for demo in file["data"].values():
            demo["obs"].move("object", "state")
            demo["obs/image"] = np.zeros((demo.attrs["num_samples"], 4, 4, 3), np.uint8)

    edit(path, change)
    assert read_demos(path).obs_keys == ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "state")
    assert read_demos(path, ["state"]).obs_keys == ("state",)


def test_a_number_a_step_is_an_observation_and_what_is_left_out_is_said(tmp_path, capsys):
    path = tmp_path / "own.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(2):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = np.zeros((5, 2))
            demo["obs/force"] = np.arange(5.0)
            demo["obs/camera"] = np.zeros((5, 4, 4, 3), np.uint8)
    demos = read_demos(path)
    assert demos.obs_dims == {"force": 1}
    assert np.array_equal(demos.demos[1].obs["force"], np.arange(5.0)[:, None])
    assert "observations read: force; left out: camera." in capsys.readouterr().out
    read_demos(path, ["force"])
    assert capsys.readouterr().out == ""


def test_units_of_the_actions_are_read_where_the_file_names_them(path):
    def name(units):
        edit(path, lambda file: file["data"].attrs.__setitem__("env_args", json.dumps({"action_units": units})))
        return read_demos(path)

    assert read_demos(path).action_units is None
    units = ["m"] * read_demos(path).action_dim
    assert name(units).action_units == tuple(units)
    with pytest.raises(DataError, match="names 1 dimensions, but actions have"):
        _ = name(["m"]).action_units
    for wrong in ("m", [1, 2], {"m": 1}):
        with pytest.raises(DataError, match="not a list of names"):
            _ = name(wrong).action_units


def test_foreign_environments_have_no_id(path):
    edit(path, lambda file: file["data"].attrs.__setitem__("env_args", json.dumps({"env_name": "ToolHang"})))
    assert read_demos(path).env_id is None
    edit(path, lambda file: file["data"].attrs.__delitem__("env_args"))
    assert read_demos(path).env_args == {}


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(file, where, values, **arguments):
    del file[where]
    file.create_dataset(where, data=values, **arguments)


def with_value(where, index, value):
    def change(file):
        file[where][index] = value

    return change


def replaced(where, values):
    return lambda file: replace(file, where, values)


def deleted(*names):
    return lambda file: [file.__delitem__(name) for name in names]


def linked(where, link):
    def change(file):
        del file[where]
        file[where] = link

    return change


def declared(where, shape, **arguments):
    def change(file):
        del file[where]
        file.create_dataset(where, shape, np.float32, **arguments)

    return change


def declared_mask(where, names, dtype):
    def change(file):
        del file[where]
        file.create_dataset(where, (names,), dtype, chunks=(1,), compression="gzip")

    return change


def narrowed(where, columns):
    return lambda file: replace(file, where, file[where][:, :columns])


NAMES = np.array(["demo_0", "demo_77"], "S")

BAD_FILES = {
    "no data group": (deleted("data"), "group 'data'"),
    "no demos": (lambda file: [file["data"].__delitem__(f"demo_{i}") for i in range(12)], "no demonstration"),
    "data is no group": (lambda file: replace(file, "data", np.zeros(3)), "'data' is not a group"),
    "no actions": (deleted("data/demo_3/actions"), "demo_3: no 'actions'"),
    "no observations": (deleted("data/demo_3/obs"), "data/demo_3/obs"),
    "no observations first": (deleted("data/demo_0/obs"), "data/demo_0/obs"),
    "a missing key": (deleted("data/demo_5/obs/object"), r"demo_5: no 'obs/object'.*robot0_eef_pos"),
    "NaN action": (with_value("data/demo_2/actions", (4, 1), np.nan), "demo_2: 'actions' is NaN or infinite at step 4"),
    "infinite action": (with_value("data/demo_2/actions", (4, 1), np.inf), "demo_2: 'actions' is NaN or infinite at step 4"),
    "NaN observation": (with_value("data/demo_2/obs/object", (7, 9), np.nan), "demo_2: 'obs/object'.*step 7"),
    "NaN state": (with_value("data/demo_2/states", (7, 9), np.nan), "demo_2: 'states'.*step 7"),
    "too big for float32": (replaced("data/demo_2/actions", np.full((14, 7), 1e300)), "demo_2: 'actions'.*step 0"),
    "zero length": (replaced("data/demo_1/actions", np.zeros((0, 7))), "demo_1: 'actions' has no steps"),
    "too few observations": (
        replaced("data/demo_1/obs/object", np.zeros((5, 10))),
        "demo_1: 'obs/object' has 5 steps, but 'actions' has 13",
    ),
    "too few states": (replaced("data/demo_1/states", np.zeros((5, 10))), "demo_1: 'states' has 5 steps"),
    "wrong num_samples": (
        lambda file: file["data/demo_1"].attrs.__setitem__("num_samples", 99),
        "demo_1: num_samples says 99 steps",
    ),
    "num_samples no number": (
        lambda file: file["data/demo_1"].attrs.__setitem__("num_samples", "many"),
        "demo_1: num_samples says many",
    ),
    "differing actions": (narrowed("data/demo_6/actions", 6), "demo_6: 'actions' has 6 dimensions, but demo_0 has 7"),
    "differing observations": (narrowed("data/demo_6/obs/object", 9), "demo_6: 'obs/object' has 9 dimensions"),
    "actions without columns": (replaced("data/demo_1/actions", np.zeros((13, 0))), "demo_1: 'actions' has shape"),
    "actions of one dimension": (replaced("data/demo_1/actions", np.zeros(13)), r"demo_1: 'actions' has shape \(13,\)"),
    "an image": (replaced("data/demo_1/obs/object", np.zeros((13, 8, 8, 3))), "demo_1: 'obs/object' has shape"),
    "scalar actions": (replaced("data/demo_1/actions", 3.0), "demo_1: 'actions' has shape"),
    "empty space": (lambda file: replace(file, "data/demo_1/actions", h5py.Empty("f")), "demo_1: 'actions' is empty"),
    "strings": (replaced("data/demo_1/obs/object", np.full((13, 10), b"a")), "demo_1: 'obs/object' holds .*numbers"),
    "objects": (
        lambda file: replace(file, "data/demo_1/obs/object", np.full((13, 10), "a", object), dtype=h5py.string_dtype()),
        "demo_1: 'obs/object' holds object",
    ),
    "complex numbers": (replaced("data/demo_1/actions", np.zeros((13, 7), complex)), "demo_1: 'actions' holds complex"),
    "a group for a key": (
        lambda file: (deleted("data/demo_1/obs/object")(file), file.create_group("data/demo_1/obs/object")),
        "demo_1: 'obs/object' is a group",
    ),
    "external link": (linked("data/demo_1/actions", h5py.ExternalLink("/etc/other.hdf5", "/x")), "demo_1/actions.*link"),
    "soft link": (linked("data/demo_1/obs/object", h5py.SoftLink("/data/demo_0/obs/object")), "demo_1/obs/object.*link"),
    "linked demo": (linked("data/demo_1", h5py.SoftLink("/data/demo_0")), "data/demo_1.*link"),
    "linked data": (linked("data", h5py.ExternalLink("other.hdf5", "/data")), "'data'.*link"),
    "dangling link": (linked("data/demo_1/actions", h5py.SoftLink("/nowhere")), "demo_1"),
    "linked mask": (linked("mask/train", h5py.SoftLink("/mask/valid")), "mask/train.*link"),
    "absurd shape": (declared("data/demo_1/actions", (10**12, 7), chunks=(1024, 7)), "GiB"),
    "compression bomb": (
        declared("data/demo_1/actions", (10**8, 7), chunks=(10**5, 7), compression="gzip"),
        "MiB in a file of",
    ),
    "a chunk larger than its values": (
        declared("data/demo_1/actions", (13, 7), maxshape=(None, None), chunks=(2**14, 2**12), compression="gzip"),
        "MiB in a file of",
    ),
    "values in another file": (
        declared("data/demo_1/actions", (13, 7), external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)]),
        "another file",
    ),
    "mask of absent demo": (replaced("mask/train", NAMES), "mask/train.*demo_77.*Did you mean"),
    "demo in both masks": (replaced("mask/train", np.array(["demo_4"], "S")), "demo_4 is in both"),
    "demo twice": (replaced("mask/train", np.array(["demo_1", "demo_1"], "S")), "twice"),
    "nothing to train on": (replaced("mask/train", np.array([], "S4")), "mask/train names no"),
    "mask of numbers": (replaced("mask/train", np.arange(3)), "mask/train.*list of names"),
    "a mask of endless names": (declared_mask("mask/train", 10, "S100000000"), "MiB in a file of"),
    "a name that clears the screen": (
        lambda file: file.move("data/demo_3", "data/\x1b[2J"),
        r"'\\x1b\[2J' in it cannot be printed",
    ),
    "a key that clears the screen": (
        lambda file: file["data/demo_0/obs"].__setitem__("\x1b[2J", np.zeros((12, 1))),
        r"'\\x1b\[2J' in it cannot be printed",
    ),
    "env_args no JSON": (lambda file: file["data"].attrs.__setitem__("env_args", "{"), "env_args.*JSON"),
    "env_args a number": (lambda file: file["data"].attrs.__setitem__("env_args", 3), "env_args"),
    "env_args a list": (lambda file: file["data"].attrs.__setitem__("env_args", "[]"), "env_args.*object"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_unusable_contents_are_refused(path, case):
    change, message = BAD_FILES[case]
    edit(path, change)
    refused(path, message)


def refused(path, message, **arguments):
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        read_demos(path, **arguments)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) <= 2
    assert len(text) < 600


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["objct"], "demo_0: no 'obs/objct'. Did you mean 'object'"),
        ([], "no observation key was asked for.*robot0_eef_pos"),
        (["object", "nothing_like_it"], "nothing_like_it"),
    ],
)
def test_wrong_keys_name_the_near_miss_and_what_there_is(path, keys, message):
    refused(path, message, obs_keys=keys)


def test_a_missing_file_names_its_neighbours(path):
    refused(path.with_name("lfit.hdf5"), "does not exist.*lift.hdf5")
    refused(path.parent / "nowhere" / "lift.hdf5", "does not exist.*folder")


def test_a_directory_is_refused(path):
    refused(path.parent, "is a directory.*lift.hdf5")


def test_an_empty_file_is_refused(path):
    path.write_bytes(b"")
    refused(path, "empty")


def test_another_kind_of_file_is_refused(path):
    path.write_bytes(b"PK\x03\x04" * 500)
    refused(path, "not an HDF5 file")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, "cannot be opened.*again")


@pytest.mark.parametrize("seed", range(12))
def test_damage_anywhere_is_refused_or_harmless(path, seed):
    """Random bytes over a stretch of the file: a DataError, or other finite numbers, but no other exception."""
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content) - 4000))
    content[start : start + 4000] = rng.bytes(4000)
    path.write_bytes(bytes(content))
    try:
        demos = read_demos(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert all(np.isfinite(demo.actions).all() for demo in demos.demos)


def test_sizes_are_checked_before_memory_is_taken(path, monkeypatch):
    monkeypatch.setattr(demo_checks, "MAX_BYTES", 1000)
    refused(path, "GiB")


def test_the_writer_keeps_the_first_successes_by_number_whatever_the_order(tmp_path):
    writer = DemoWriter(tmp_path / "a.hdf5", {})
    for attempt in (5, 0, 3):
        writer.add(attempt, episode(attempt))
    writer.add(1, None)
    assert writer.attempts() == {0: True, 1: False, 3: True, 5: True}
    with pytest.raises(DataError, match="another process"):
        DemoWriter(tmp_path / "a.hdf5", {})
    writer.close()
    again = DemoWriter(tmp_path / "a.hdf5", {})
    assert again.attempts() == writer.attempts()
    assert again.finish(2, 0.0, {}) == 24
    assert [demo.seed for demo in read_demos(tmp_path / "a.hdf5").demos] == [0, 3]


def test_the_writer_refuses_to_finish_too_early(tmp_path):
    writer = DemoWriter(tmp_path / "a.hdf5", {})
    writer.add(0, episode(0))
    with pytest.raises(DataError, match="1 demonstrations, fewer than the 2"):
        writer.finish(2, 0.0, {})


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    writer = DemoWriter(tmp_path / "a.hdf5", {})
    writer.add(0, episode(0))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        writer.add(1, episode(1))
    with pytest.raises(DataError, match="No space left"):
        writer.finish(1, 0.0, {})
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["0000000.hdf5", "a.hdf5.partial", "lock", "settings.json"]


@pytest.mark.parametrize("text", [b"\xff", b"[]", b"{"])
def test_damaged_settings_are_named(tmp_path, text):
    DemoWriter(tmp_path / "a.hdf5", {"noise": 1}).close()
    (tmp_path / "a.hdf5.partial" / "settings.json").write_bytes(text)
    with pytest.raises(DataError, match=r"(?s)a.hdf5.partial.*settings.json is damaged.*delete the folder"):
        DemoWriter(tmp_path / "a.hdf5", {"noise": 1})


def test_what_is_no_attempt_or_a_damaged_one_is_named(tmp_path):
    writer = DemoWriter(tmp_path / "a.hdf5", {})
    writer.add(0, episode(0))
    stray = writer.folder / "mine.hdf5"
    stray.write_bytes(b"")
    with pytest.raises(DataError, match=r"mine.hdf5 is no attempt.*delete .*a.hdf5.partial"):
        writer.attempts()
    stray.unlink()
    (writer.folder / "0000000.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match=r"0000000.hdf5 is damaged.*delete it to collect it again"):
        writer.finish(1, 0.0, {})


def test_an_attempt_that_claims_more_than_it_can_hold_is_not_put_together(tmp_path):
    writer = DemoWriter(tmp_path / "a.hdf5", {})
    writer.add(0, episode(0))
    edit(writer.folder / "0000000.hdf5", declared("demo/actions", (12, 7), maxshape=(None, None), chunks=(2**14, 2**12)))
    with pytest.raises(DataError, match=r"0000000.hdf5: declares 2\d\d MiB in a file of"):
        writer.finish(1, 0.0, {})


def copied(path, tmp_path):
    """A file of the same demonstrations, to be changed."""
    other = tmp_path / "other.hdf5"
    other.write_bytes(path.read_bytes())
    return h5py.File(other, "r+"), other


def test_numbers_that_single_precision_rounds_away_are_refused(path, tmp_path):
    """As of a clock: seconds since 1970 stand still for two minutes."""
    file, other = copied(path, tmp_path)
    with file:
        for demo in file["data"].values():
            demo["obs/clock"] = 1.7e9 + np.arange(len(demo["actions"])) / 30
    with pytest.raises(DataError, match=r"demo_0: 'obs/clock': column 0 varies by .* around 1\.7e\+09, .*offset"):
        read_demos(other, ["clock"])


@pytest.mark.parametrize("finite", [True, False])
def test_numbers_too_large_for_single_precision_are_named(path, tmp_path, finite):
    file, other = copied(path, tmp_path)
    with file:
        actions = file["data/demo_0/actions"][()].astype(np.float64)
        actions[3, 1] = 1e300
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = actions
    with pytest.raises(DataError, match=r"'actions' is 1e\+300 at step 3, column 1: too large for float32"):
        read_demos(other, finite=finite)


def test_what_is_left_out_is_said_wherever_it_lies(path, tmp_path, capsys):
    file, other = copied(path, tmp_path)
    with file:
        names = sorted(file["data"])
        file[f"data/{names[-1]}/obs/force"] = np.zeros(len(file[f"data/{names[-1]}/actions"]))
        file["data/notes"] = np.zeros(3)
        if "mask" in file:
            del file["mask"]
        file["mask/train"], file["mask/valid"] = np.array(names[:1], "S"), np.array(names[1:2], "S")
    read_demos(other)
    said = capsys.readouterr().out
    assert "left out: force" in said and "no demonstrations: notes" in said
    assert f"{len(names) - 2} of {len(names)} demonstrations are in neither" in said


@pytest.mark.parametrize("where", ["data", "data/demo_0/obs"])
def test_names_that_are_no_text_are_refused(path, tmp_path, where):
    file, other = copied(path, tmp_path)
    with file:
        file[where][b"\xff\xfe"] = np.zeros(3)
    with pytest.raises(DataError, match=r"cannot be printed|can't decode"):
        read_demos(other)
