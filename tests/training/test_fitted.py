"""Tokenizers without networks through the commands: fitted, distilled, evaluated and reported like any other."""

import importlib
import json
import sys

import pytest
from test_commands import DIMS, write_demos

from daps_robot.commands import cli
from daps_robot.commands.distill_policy import DistillPolicy
from daps_robot.commands.distill_policy import run as distill
from daps_robot.commands.evaluate import Evaluate
from daps_robot.commands.evaluate import run as evaluate
from daps_robot.commands.train_action_vae import TrainActionVAE
from daps_robot.commands.train_action_vae import run as train
from daps_robot.config import load_json
from daps_robot.data.demo_writer import DemoWriter
from daps_robot.models.action_tokenizer import load_tokenizer
from daps_robot.models.policy import LatentPolicy

needs_library = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="tokenizers is not installed")
DISTILL = "--max-steps 4 --width 16 --layers 1 --batch-size 8 --eval-every 2 --log-every 2 --no-tensorboard --device cpu"


def call(monkeypatch, config, run, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    cli.main(config, run)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Demonstrations of no environment that is known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    finish = DemoWriter.finish
    monkeypatch.setattr(DemoWriter, "finish", lambda self, *a, **k: finish(self, *a, **{**k, "env_args": {"type": 1}}))
    write_demos(tmp_path / "data" / "toy.hdf5")
    return tmp_path


@pytest.mark.parametrize("name", ["bins", pytest.param("fast", marks=needs_library)])
def test_the_whole_chain(name, place, monkeypatch, capsys):
    settings = {"bins": ["--bins", 6, "--knots", 3], "fast": ["--dct-scale", 1.5, "--bpe-vocabulary", 60]}[name]
    call(monkeypatch, TrainActionVAE, train, "--dataset", "toy", "--estimator", name, *settings, "--no-tensorboard")
    tokenizer = load_tokenizer(place / "runs" / "toy" / "tokenizer" / "model")
    assert tokenizer.kind == name
    shown = capsys.readouterr().out
    assert f"{tokenizer.bits:.1f} bits a chunk of 16" in shown
    assert ("error of all dimensions by number of codes: 1 " in shown) == (name == "fast")
    call(monkeypatch, DistillPolicy, distill, *DISTILL.split(), *(["--offset-head"] if name == "bins" else []))
    policy = LatentPolicy.from_pretrained(place / "runs" / "toy" / "policy" / "model")
    assert policy.config.decoding.method == "consensus" and (policy.offset is not None) == (name == "bins")
    assert policy.observation_dim == sum(DIMS.values())
    call(monkeypatch, Evaluate, evaluate, "--samples", 2)
    report = load_json(place / "runs" / "toy" / "report.json")
    assert report["bits_per_chunk"] == tokenizer.bits and report["elbo"] is None
    page = (place / "runs" / "toy" / "report.html").read_text()
    assert ("What fewer codes lose" in page) == (name == "fast")
    if name == "fast":
        assert 0 <= report["malformed_codes"] <= 1 and "Malformed codes" in page
        assert list(report["rmse_by_prefix"])[-1] == str(tokenizer.config.positions)
        call(monkeypatch, Evaluate, evaluate, "--method", "greedy", "--prefix", 2, "--out", "short")
        short = load_json(place / "short" / "report.json")
        assert short["configuration"]["evaluate"]["decoding"]["prefix"] == 2
        assert "malformed_codes" not in short  # all of them would be


def refused(capsys, monkeypatch, *arguments):
    with pytest.raises(SystemExit) as status:
        call(monkeypatch, TrainActionVAE, train, "--dataset", "toy", *arguments, "--no-tensorboard")
    assert status.value.code == 2
    return capsys.readouterr().err


def test_what_a_table_has_not_is_refused(place, capsys, monkeypatch):
    errors = refused(capsys, monkeypatch, "--estimator", "bins", "--width", 32, "--nested-dropout")
    assert "--width, --nested-dropout" in errors and "no networks" in errors
    assert "fitted in one go" in refused(capsys, monkeypatch, "--estimator", "bins", "--resume")
    assert not (place / "runs").exists()
    assert "Did you mean 'bins'" in refused(capsys, monkeypatch, "--estimator", "bin")


def test_a_run_that_is_there_is_kept(place, capsys, monkeypatch):
    call(monkeypatch, TrainActionVAE, train, "--dataset", "toy", "--estimator", "bins", "--no-tensorboard")
    assert "already holds a run" in refused(capsys, monkeypatch, "--estimator", "bins", "--bins", 5)
    call(
        monkeypatch,
        TrainActionVAE,
        train,
        "--dataset",
        "toy",
        "--estimator",
        "bins",
        "--bins",
        5,
        "--overwrite",
        "--no-tensorboard",
    )
    run = place / "runs" / "toy" / "tokenizer"
    assert load_json(run / "config.json")["command"]["settings"]["bins"] == 5
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(0, "valid")]
    assert load_json(run / "best.json")["clipped"] == rows[0]["clipped"]


TRAIN = "--max-steps 4 --width 16 --layers 1 --batch-size 8 --eval-every 2 --log-every 2 --no-tensorboard --device cpu"


@pytest.mark.parametrize("options", [["--estimator", "oat"], ["--nested-dropout", "--warm-start-steps", 2]])
def test_an_ordered_tokenizer_through_the_commands(options, place, monkeypatch, capsys):
    call(monkeypatch, TrainActionVAE, train, "--dataset", "toy", *options, *TRAIN.split(), "--positions", 4)
    assert "error of all dimensions by number of codes: 1 " in capsys.readouterr().out
    call(monkeypatch, DistillPolicy, distill, *DISTILL.split())
    call(monkeypatch, Evaluate, evaluate, "--prefix", 2)
    report = load_json(place / "runs" / "toy" / "report.json")
    assert list(report["rmse_by_prefix"]) == ["1", "2", "3", "4"]
    assert "What fewer codes lose" in (place / "runs" / "toy" / "report.html").read_text()
