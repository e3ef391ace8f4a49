"""Pieces of a study: a process each, run once, with their own settings or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

from daps_robot.commands.piece_results import NUMBERS, Latencies, PolicyResult, check_columns, check_outcomes
from daps_robot.commands.pieces import result_of as checked_result_of
from daps_robot.commands.pieces import save_results
from daps_robot.config import from_json
from daps_robot.errors import ConfigError, DapsRobotError


@dataclass(frozen=True)
class Job:
    value: int = 3
    weights: str = field(default="ab", metadata={"made_of": "tokenizer"})


def result_of(function, folder, job, *arguments, check=lambda found: None):
    return checked_result_of(function, folder, job, *arguments, check=check)


PIECE = """
import json, os, pathlib, sys

def double(folder, *more):
    place = pathlib.Path(folder)
    value = json.loads((place / "job.json").read_text())["value"]
    (place / "result.json").write_text(json.dumps({"twice": 2 * value, "process": os.getpid(), "more": more}))

def fail(folder):
    from daps_robot.errors import DataError
    raise DataError("out of luck,\\nand no more to be had")

def slow(folder):
    import signal, time
    place = pathlib.Path(folder)
    def save(*_):
        time.sleep(1)
        (place / "saved").touch()
        sys.exit(130)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (place / "begun").touch()
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "a_piece.py").write_text(PIECE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_piece_runs_once_in_a_process_of_its_own(tmp_path):
    found = result_of("a_piece:double", tmp_path / "one", Job(), "2")
    assert found["twice"] == 6 and found["more"] == ["2"] and found["process"] != os.getpid()
    assert result_of("a_piece:fail", tmp_path / "one", Job()) == found  # finished: not run again
    with pytest.raises(ConfigError, match=r"value: 3 → 4.*choose another --name"):
        result_of("a_piece:double", tmp_path / "one", Job(4))


def test_a_piece_of_an_earlier_version_is_not_run_again(tmp_path):
    """Its job.json lacks a field that jobs have now, with a default."""
    found = result_of("a_piece:double", tmp_path / "one", Job())
    (tmp_path / "one" / "job.json").write_text('{"_type": "Job"}')
    assert result_of("a_piece:fail", tmp_path / "one", Job()) == found
    with pytest.raises(ConfigError, match="value: 3 → 4"):
        result_of("a_piece:fail", tmp_path / "one", Job(4))


def test_a_piece_that_failed_says_all_of_why_and_is_run_again(tmp_path, capfd):
    with pytest.raises(DapsRobotError, match=r"what is finished is kept[^|]*delete .*one to run"):
        result_of("a_piece:fail", tmp_path / "one", Job())
    assert capfd.readouterr().err == "error: out of luck,\nand no more to be had\n"
    assert result_of("a_piece:double", tmp_path / "one", Job(5))["twice"] == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_piece_may_save(number, tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs ignore it
        "from pathlib import Path; from daps_robot.commands.pieces import start_process as s; s('a_piece:slow', Path('one'), {})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "one" / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert (tmp_path / "one" / "saved").exists()


@pytest.mark.parametrize("name", ["job.json", "result.json"])
@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_piece_says_what_to_delete(name, text, tmp_path):
    result_of("a_piece:double", tmp_path / "one", Job())
    (tmp_path / "one" / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}.*delete .*one to run this piece anew"):
        result_of("a_piece:double", tmp_path / "one", Job())


def test_results_are_saved_by_rows(tmp_path):
    save_results(tmp_path, [{"a": 1, "b": None}, {"a": 2, "b": 0.5}])
    assert (tmp_path / "results.csv").read_text().splitlines() == ["a,b", "1,", "2,0.5"]
    assert json.loads((tmp_path / "results.json").read_text())[1] == {"a": 2, "b": 0.5}
    save_results(tmp_path, [{"a": 1}], {"everything": Job()})
    assert json.loads((tmp_path / "results.json").read_text())["everything"]["value"] == 3


def test_a_piece_made_of_something_else_says_of_what(tmp_path):
    result_of("a_piece:double", tmp_path / "one", Job())
    with pytest.raises(ConfigError, match=r"made with another tokenizer than is there now.*delete .*one to run"):
        result_of("a_piece:double", tmp_path / "one", Job(weights="cd"))
    with pytest.raises(ConfigError, match="choose another --name"):
        result_of("a_piece:double", tmp_path / "one", Job(4, "cd"))


OUTCOMES = {"success": [True, False], "length": [3, 9], "score": [1.0, 0.5]}
POLICY = {"seconds": 2, "best_step": 3, "kept": [1], "bits": None, "parameters": 9, "horizon": 8, "execute": 4}
COLUMNS = {"estimator": "daps", "seed": 0, **dict.fromkeys(NUMBERS)}
LATENCIES = {"fingerprints": {"a": "x"}, "milliseconds": {"a": {"p50": 1, "p99": 2}}}


@pytest.mark.parametrize(
    "check, good, changes",
    [
        (lambda found: check_outcomes(found, 2), OUTCOMES, [{"success": [1, 0]}, {"length": [3]}, {"score": [1.0, 2.0]}]),
        (lambda found: check_outcomes(found, 2), {"missing": "no expert"}, [{"success": [True]}]),
        (lambda found: from_json(PolicyResult, found), POLICY, [{"kept": 3}, {"bits": "8"}, {"seconds": float("nan")}, {"x": 1}]),
        (lambda found: check_columns(found, "daps", 0), COLUMNS, [{"seed": 1}, {"time.rmse": "x"}]),
        (lambda found: from_json(Latencies, found), LATENCIES, [{"milliseconds": {"a": {"p50": 1}}}, {"fingerprints": []}]),
    ],
)
def test_a_result_that_lacks_what_it_should_hold_is_damaged(tmp_path, check, good, changes):
    result_of("a_piece:double", tmp_path / "one", Job())
    (tmp_path / "one" / "result.json").write_text(json.dumps(good))
    assert result_of("a_piece:fail", tmp_path / "one", Job(), check=check) == good
    for spoilt in (*({**good, **change} for change in changes), *({k: v for k, v in good.items() if k != key} for key in good)):
        (tmp_path / "one" / "result.json").write_text(json.dumps(spoilt))
        with pytest.raises(ConfigError, match=r"result.json is damaged.*delete .*one to run this piece anew"):
            result_of("a_piece:fail", tmp_path / "one", Job(), check=check)
