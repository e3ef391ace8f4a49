"""Pieces of a study: a process each, run once, with their own settings or not at all."""

import json
from dataclasses import dataclass

import pytest

from daps_robot.commands.pieces import result_of, save_results
from daps_robot.errors import ConfigError, DapsRobotError


@dataclass(frozen=True)
class Job:
    value: int = 3


PIECE = """
import json, os, pathlib, sys

def double(folder, *more):
    place = pathlib.Path(folder)
    value = json.loads((place / "job.json").read_text())["value"]
    (place / "result.json").write_text(json.dumps({"twice": 2 * value, "process": os.getpid(), "more": more}))

def fail(folder):
    sys.exit("error: out of luck")
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "a_piece.py").write_text(PIECE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_piece_runs_once_in_a_process_of_its_own(tmp_path):
    import os

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


def test_a_piece_that_failed_is_run_again(tmp_path):
    with pytest.raises(DapsRobotError, match=r"out of luck.*what is finished is kept"):
        result_of("a_piece:fail", tmp_path / "one", Job())
    assert result_of("a_piece:double", tmp_path / "one", Job(5))["twice"] == 10


def test_results_are_saved_by_rows(tmp_path):
    save_results(tmp_path, [{"a": 1, "b": None}, {"a": 2, "b": 0.5}])
    assert (tmp_path / "results.csv").read_text().splitlines() == ["a,b", "1,", "2,0.5"]
    assert json.loads((tmp_path / "results.json").read_text())[1] == {"a": 2, "b": 0.5}
    save_results(tmp_path, [{"a": 1}], {"everything": Job()})
    assert json.loads((tmp_path / "results.json").read_text())["everything"]["value"] == 3
