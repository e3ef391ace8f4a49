"""Files of codes: packed and back, read in slices, refused when they are not what they say."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from daps_robot.data.codes import CodesFile, CodesHeader, code_bits, pack, unpack, write_codes
from daps_robot.errors import DataError


@given(vocabulary=st.integers(1, 5000), positions=st.integers(1, 40), rows=st.integers(0, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_packing_loses_nothing(vocabulary, positions, rows, seed):
    codes = np.random.default_rng(seed).integers(0, vocabulary, (rows, positions))
    packed = pack(codes, vocabulary)
    assert packed.shape == (rows, -(-positions * code_bits(vocabulary) // 8))
    assert np.array_equal(unpack(packed, positions, vocabulary), codes)


def test_bits_of_a_code():
    assert [code_bits(v) for v in (1, 2, 3, 256, 257, 1024)] == [1, 1, 2, 8, 9, 10]
    assert pack(np.array([[1, 0, 3]]), 4).tolist() == [[0b01001100]]


@pytest.fixture
def written(tmp_path):
    codes = np.random.default_rng(0).integers(0, 300, (7, 5))
    header = CodesHeader("abc", 5, 300, tuple(f"cats/{i}" for i in range(7)))
    path = tmp_path / "some" / "codes.safetensors"
    write_codes(path, header, iter([codes[:4], codes[4:]]))
    return path, header, codes


def test_a_file_is_read_in_slices(written):
    path, header, codes = written
    file = CodesFile(path)
    assert file.header == header and len(file) == 7
    assert np.array_equal(file.codes(slice(0, 100)), codes)
    assert np.array_equal(file.codes(slice(3, 6)), codes[3:6])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_any_safetensors_reader_reads_it(written):
    path, header, codes = written
    assert np.array_equal(unpack(load_file(path)["codes"], 5, 300), codes)


def test_blocks_that_do_not_fit_the_names_leave_no_file(tmp_path):
    with pytest.raises(DataError, match="3 code sequences for 2 names"):
        write_codes(tmp_path / "c", CodesHeader("abc", 2, 4, ("a", "b")), [np.zeros((3, 2), int)])
    assert not list(tmp_path.iterdir())


def damaged(path, **changes):
    """The file again with other metadata, or other codes."""
    file = CodesFile(path)
    header = file.header
    about = {"format": "daps_robot/codes/1", "tokenizer": header.tokenizer, "positions": "5", "vocabulary": "300"}
    about |= {"names": json.dumps(header.names)}
    codes = changes.pop("codes", load_file(path)["codes"])
    save_file({"codes": codes}, path, {**about, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "daps_robot/codes/2"}, "of this version"),
        ({"names": "[1, 2"}, "damaged"),
        ({"names": json.dumps(["a"])}, "for 1 names"),
        ({"positions": "-1"}, "damaged"),
        ({"positions": "many"}, "damaged"),
        ({"vocabulary": "9999999"}, "damaged"),
        ({"names": json.dumps(["../x", *"abcdef"])}, "not a file to trust"),
        ({"names": json.dumps(["/etc/x", *"abcdef"])}, "not a file to trust"),
        ({"names": json.dumps(["a", *"abcdea"[:6]])}, "twice"),
        ({"codes": np.zeros((7, 5), np.uint8)}, "damaged"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(written, changes, message):
    path, _, _ = written
    damaged(path, **changes)
    with pytest.raises(DataError, match=message):
        CodesFile(path)


def test_codes_out_of_range_are_named(written):
    path, _, _ = written
    codes = load_file(path)["codes"]
    codes[2] = 255
    damaged(path, codes=codes)
    with pytest.raises(DataError, match="cats/2 reach 511"):
        CodesFile(path).codes(slice(0, 7))


@pytest.mark.parametrize("kept", [0, 5, 40, -3])
def test_a_cut_off_file_is_refused(written, kept):
    path, _, _ = written
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError):
        CodesFile(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        CodesFile(tmp_path / "none")
