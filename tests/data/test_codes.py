"""Files of codes: packed and back, read in slices, refused when they are not what they say."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from daps_robot.data.codes import FORMAT, CodesFile, CodesHeader, code_bits, pack, unpack, write_codes
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


@pytest.mark.parametrize("name", ["..", "a/../b", "/a", "", ".", "./a", "a/", "a//b", "a\0", "\udcff", 7, None])
def test_names_that_would_not_be_read_are_not_written(tmp_path, name):
    with pytest.raises(DataError, match="names"):
        write_codes(tmp_path / "c", CodesHeader("abc", 2, 4, ("b", name)), [np.zeros((2, 2), int)])
    with pytest.raises(DataError, match="twice"):
        write_codes(tmp_path / "c", CodesHeader("abc", 2, 4, ("b", "b")), [np.zeros((2, 2), int)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", [[[0, 4]], [[-1, 0]], [[0, 0, 0]]])
def test_codes_that_do_not_fit_are_not_cut(tmp_path, block):
    with pytest.raises(DataError, match="announced"):
        write_codes(tmp_path / "c", CodesHeader("abc", 2, 4, ("a",)), [np.array(block)])
    assert not list(tmp_path.iterdir())


def test_names_may_be_many_and_of_any_script(tmp_path):
    names = tuple(f"{'ü' * 100}/{i}\n" for i in range(2000))
    write_codes(tmp_path / "c", CodesHeader("abc", 1, 2, names), [np.ones((2000, 1), int)])
    with (tmp_path / "c").open("rb") as file:
        assert int.from_bytes(file.read(8), "little") < 1000
    assert CodesFile(tmp_path / "c").header.names == names


@pytest.mark.parametrize("out", [".", "/", ".."])
def test_a_directory_is_not_written_to(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is a directory"):
        write_codes(Path(out), CodesHeader("abc", 2, 4, ()), [])


def test_the_first_error_is_the_one_that_is_told(tmp_path):
    def blocks():
        (tmp_path / "c.tmp").unlink()
        (tmp_path / "c.tmp").mkdir()  # which unlink refuses
        raise DataError("a picture is damaged")
        yield

    with pytest.raises(DataError, match="a picture is damaged"):
        write_codes(tmp_path / "c", CodesHeader("abc", 2, 4, ()), blocks())


@pytest.mark.parametrize("place", [9, -1, -5])
def test_one_flipped_bit_is_found(written, place):
    path, _, _ = written
    data = bytearray(path.read_bytes())
    data[place if place < 0 else data.index(b"cats/3") + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"checksum|twice"):
        CodesFile(path)


def damaged(path, **changes):
    """The file again with other metadata, names or codes, and a checksum that fits."""
    file = CodesFile(path)
    about = {"format": FORMAT, "tokenizer": file.header.tokenizer, "positions": "5", "vocabulary": "300"}
    names = changes.pop("names", json.dumps(file.header.names)).encode()
    codes = changes.pop("codes", load_file(path)["codes"])
    crc = zlib.crc32(codes.tobytes(), zlib.crc32(names, file.header.crc)).to_bytes(4, "little")
    tensors = {"names": np.frombuffer(names, np.uint8), "codes": codes, "crc32": np.frombuffer(crc, np.uint8)}
    save_file(tensors | changes.pop("tensors", {}), path, {**about, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "daps_robot/codes/1"}, "of this version"),
        ({"names": "[1, 2"}, "damaged"),
        ({"names": json.dumps(["a"])}, "for 1 names"),
        ({"names": '{"a": 1}'}, "no list"),
        ({"names": '"abcdefg"'}, "no list"),
        ({"names": json.dumps([1, *"abcdef"])}, "1 among its names"),
        ({"names": json.dumps(["\ud800", *"abcdef"])}, "not UTF-8"),
        ({"names": "[" * 10**6}, "damaged"),
        ({"tensors": {"names": np.zeros(7, np.int64)}}, "I64"),
        ({"codes": np.zeros((7, 6), np.int8)}, "I8"),
        ({"codes": np.zeros((7, 6), bool)}, "BOOL"),
        ({"tensors": {"crc32": np.zeros(4, np.uint8)}}, "checksum"),
        ({"tensors": {"crc32": np.zeros(5, np.uint8)}}, "checksum"),
        ({"positions": "-1"}, "cannot be"),
        ({"positions": "9" * 400}, "damaged"),
        ({"vocabulary": "1" + "0" * 50}, "cannot be"),
        ({"positions": "many"}, "damaged"),
        ({"vocabulary": "9999999"}, "damaged"),
        ({"names": json.dumps(["../x", *"abcdef"])}, "not to be trusted"),
        ({"names": json.dumps(["/etc/x", *"abcdef"])}, "not to be trusted"),
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
    with pytest.raises(DataError, match="is not a file"):
        CodesFile(tmp_path)
    with pytest.raises(DataError, match=r"cannot be read .File name too long"):
        CodesFile(tmp_path / ("x" * 300))
