"""Files of a run: whole or not at all, refused when damaged, and a directory has one owner."""

import os
import pickle
import stat
import subprocess
import sys

import pytest
import torch
from torch import nn

from daps_robot.checkpoints import (
    before,
    load_last_state,
    load_state,
    load_tensors,
    load_weights,
    owned_directory,
    replace_state,
    save_state,
    save_tensors,
    write_atomically,
)
from daps_robot.config import save_json
from daps_robot.errors import CheckpointError, RunDirectoryError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "c": torch.tensor(3)}


def same(found):
    return found.keys() == TENSORS.keys() and all(torch.equal(found[k], v) for k, v in TENSORS.items())


def test_tensors_and_state_come_back(tmp_path):
    save_tensors(TENSORS, tmp_path / "t")
    assert same(load_tensors(tmp_path / "t"))
    state = {"tensors": TENSORS, "list": [1, 2.5, "x", None], "nested": {"deep": {1: torch.ones(2)}}}
    save_state(state, tmp_path / "s")
    found = load_state(tmp_path / "s")
    assert same(found.pop("tensors"))
    assert found["list"] == state["list"]
    assert torch.equal(found["nested"]["deep"][1], torch.ones(2))


def test_transposed_tensors_are_saved(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    save_tensors({"x": base.T}, tmp_path / "t")
    assert torch.equal(load_tensors(tmp_path / "t")["x"], base.T)


@pytest.mark.parametrize("save, load", [(save_tensors, load_tensors), (save_state, load_state)])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, save, load):
    path = tmp_path / "file"
    save(TENSORS, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirectoryError, match="No space left"):
        save({"a": torch.zeros(1)}, path)
    assert same(load(path))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_into_nowhere_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="absent"):
        save_tensors(TENSORS, tmp_path / "absent" / "file")
    with pytest.raises(RunDirectoryError, match="absent"):
        save_state(TENSORS, tmp_path / "absent" / "file")


def test_every_truncation_is_refused(tmp_path):
    for save, load in ((save_tensors, load_tensors), (save_state, load_state)):
        save(TENSORS, tmp_path / "file")
        data = (tmp_path / "file").read_bytes()
        for length in {0, 1, 7, 8, 20, len(data) // 2, len(data) - 1}:
            (tmp_path / "file").write_bytes(data[:length])
            with pytest.raises(CheckpointError) as error:
                load(tmp_path / "file")
            assert len(str(error.value).splitlines()) <= 2


def test_a_missing_file_is_refused(tmp_path):
    for load in (load_tensors, load_state):
        with pytest.raises(CheckpointError, match="not there"):
            load(tmp_path / "file")


class Payload:
    def __reduce__(self):
        return os.mkdir, (Payload.target,)


@pytest.mark.parametrize("write", [lambda payload, path: path.write_bytes(pickle.dumps(payload)), torch.save])
def test_code_in_a_state_is_not_run(tmp_path, write):
    Payload.target = str(tmp_path / "owned")
    write(Payload(), tmp_path / "state.pt")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "owned").exists()


def test_weights_must_be_the_modules_own(tmp_path):
    module = nn.Linear(3, 2)
    path = tmp_path / "model.safetensors"
    good = nn.Linear(3, 2).state_dict()
    load_weights(module, good, path)
    assert torch.equal(module.weight, good["weight"])
    for tensors, words in (
        ({"weight": good["weight"]}, "lacks the tensor bias"),
        ({**good, "extra": torch.ones(1)}, "holds extra"),
        ({**good, "weight": torch.ones(2, 4)}, r"weight has shape \(2, 4\), the model needs \(2, 3\)"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_weights(module, tensors, path)
    assert torch.equal(module.weight, good["weight"])


def test_a_directory_has_one_owner(tmp_path):
    code = (
        "import sys; from pathlib import Path; from daps_robot.checkpoints import owned_directory\n"
        "from daps_robot.errors import RunDirectoryError\n"
        "try:\n with owned_directory(Path(sys.argv[1])): print('mine')\n"
        "except RunDirectoryError as error: print(error)"
    )

    def other():
        return subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True).stdout

    with owned_directory(tmp_path / "run"), pytest.raises(RunDirectoryError, match="in use"), owned_directory(tmp_path / "run"):
        pass
    with owned_directory(tmp_path / "run"):
        assert "in use by another run" in other()
    assert other() == "mine\n"


def test_a_child_does_not_keep_the_directory_of_a_dead_run(tmp_path):
    """As the processes that load data, which notice seconds later that their parent is gone."""
    code = (
        "import os, sys, time; from pathlib import Path; from daps_robot.checkpoints import owned_directory\n"
        "with owned_directory(Path(sys.argv[1])):\n"
        " child = os.fork()\n"
        " if child: print(child, flush=True); os.kill(os.getpid(), 9)\n"
        " os.close(1); time.sleep(60)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, timeout=50)
    try:
        with owned_directory(tmp_path / "run"):
            pass
    finally:
        os.kill(int(run.stdout), 9)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="file"), owned_directory(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("save, load", [(save_tensors, load_tensors), (save_state, load_state)])
def test_every_flipped_bit_is_noticed(tmp_path, save, load):
    save(TENSORS, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    for place in range(0, len(data), max(1, len(data) // 150)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (tmp_path / "file").write_bytes(changed)
        try:
            assert same(load(tmp_path / "file"))  # a blank in a header, say
        except CheckpointError as error:
            assert "file is" in str(error)


def test_files_of_before_there_were_checksums_are_read(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file(TENSORS, tmp_path / "t")
    torch.save(TENSORS, tmp_path / "s")
    assert same(load_tensors(tmp_path / "t")) and same(load_state(tmp_path / "s"))
    data = bytearray((tmp_path / "s").read_bytes())
    data[data.find(TENSORS["a"].numpy().tobytes()) + 5] ^= 1
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        load_state(tmp_path / "s")


def test_the_state_before_the_last_stands_in_for_a_damaged_one(tmp_path, capsys):
    path = tmp_path / "state.pt"
    for step in (1, 2, 3):
        replace_state({"step": step}, path)
    assert (load_last_state(path), load_state(before(path))) == ({"step": 3}, {"step": 2})
    assert capsys.readouterr().out == ""
    path.write_bytes(path.read_bytes()[:-20])
    assert load_last_state(path) == {"step": 2}
    assert "state.pt is missing or damaged: going on from the state before it, state.before.pt" in capsys.readouterr().out
    assert load_last_state(path) == {"step": 2}  # a write that fails now finds it
    replace_state({"step": 3}, path)
    assert (load_last_state(path), load_state(before(path))) == ({"step": 3}, {"step": 2})
    for each in (path, before(path)):
        each.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"/state\.pt is not"):
        load_last_state(path)


def test_writes_that_fail_again_and_again_leave_the_state(tmp_path, monkeypatch):
    for step in (0, 1):
        replace_state({"step": step}, path := tmp_path / "state.pt")

    def half(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daps_robot.checkpoints.torch.save", half)
    for _ in range(3):
        with pytest.raises(RunDirectoryError, match="No space left"):
            replace_state({"step": 2}, path)
        assert (load_state(path), load_state(before(path))) == ({"step": 1}, {"step": 0})
    monkeypatch.undo()
    replace_state({"step": 2}, path)
    assert (load_state(path), load_state(before(path))) == ({"step": 2}, {"step": 1})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["state.before.pt", "state.pt"]


def test_the_name_of_a_file_is_flushed_after_its_bytes(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def spy(number):
        flushed.append(stat.S_ISDIR(os.fstat(number).st_mode))
        fsync(number)

    monkeypatch.setattr(os, "fsync", spy)
    for write in (lambda path: save_json({}, path), lambda path: save_state({}, path), lambda path: save_tensors(TENSORS, path)):
        flushed.clear()
        write(tmp_path / "file")
        assert flushed == [False, True]


def test_weights_of_another_type_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"bias holds torch.float16, the model needs torch.float32"):
        load_weights(nn.Linear(1, 1), {"weight": torch.ones(1, 1), "bias": torch.ones(1).half()}, tmp_path)


def test_an_error_that_only_came_up_while_writing_is_not_the_disks(tmp_path):
    def killed(temporary):
        temporary.write_text("half")
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    with pytest.raises(RuntimeError, match="is killed by signal"):
        write_atomically(tmp_path / "file", killed)
    assert not list(tmp_path.iterdir())
