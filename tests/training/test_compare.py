"""The comparison of estimators: read-outs, resuming, intervals, the page; and an estimator from another package in it."""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_commands import write_demos
from tiny import tokenizer_config

from daps_robot.commands.ablate import STUDIES, Ablate
from daps_robot.commands.ablate import run as ablate
from daps_robot.commands.compare_estimators import CompareEstimators, run
from daps_robot.commands.one_run import BUDGETS, OneRun, measured_pace
from daps_robot.commands.train_action_vae import ChunkTokenizerConfig, TrainActionVAE
from daps_robot.errors import ConfigError, DapsRobotError
from daps_robot.estimators import ESTIMATORS
from daps_robot.models.tokenizer import Inputs, Tokenizer
from daps_robot.report.comparison import best, interval
from daps_robot.training.pace import Pace

SIZE = ChunkTokenizerConfig(horizon=8, positions=2, vocabulary=8, width=16, layers=1)
PLUGIN = Path(__file__).parents[1] / "plugin"


def config(**settings):
    given = {"dataset": "data/toy.hdf5", "estimators": ("daps", "vae"), "seeds": 1, "preset": "test", "tokenizer": SIZE}
    return CompareEstimators(**{**given, **settings})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    place = tmp_path_factory.mktemp("compare")
    (place / "data").mkdir()
    write_demos(place / "data" / "toy.hdf5")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return place, run(config())


def test_there_is_one_result_a_run(compared):
    place, results = compared
    out = place / "runs" / "compare" / "toy-test"
    assert [(r["estimator"], r["seed"]) for r in results] == [("daps", 0), ("vae", 0)]
    assert json.loads((out / "results.json").read_text()) == results
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["estimator"] for row in rows] == ["daps", "vae"]
    daps, vae = results
    assert daps["bits"] == 6 and vae["bits"] is None
    assert daps["steps.step"] == 6 and daps["steps.elbo"] < 0 and daps["ess"] > 1 and daps["peak_memory_gb"] > 0.1
    assert vae["steps.perplexity"] is None and vae["steps.bits_used"] > 0
    assert float(rows[0]["steps.rmse"]) == daps["steps.rmse"]


def test_the_read_outs_are_those_of_the_metrics(compared):
    place, results = compared
    lines = (place / "runs/compare/toy-test/daps-0/metrics.jsonl").read_text().splitlines()
    last = [row for row in map(json.loads, lines) if row["split"] == "valid" and row["step"] == 6][-1]
    errors = [last[f"rmse/{i}"] for i in range(7)]
    assert results[0]["steps.rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 7))
    assert results[0]["steps.psnr"] == last["psnr"]


def test_the_page_stands_alone_and_shows_every_estimator(compared):
    page = (compared[0] / "runs/compare/toy-test/comparison.html").read_text()
    assert "Exploratory" in page and "<th>daps</th>" in page and "<th>vae</th>" in page
    assert "http" not in page.replace("http://www.w3.org", "") and page.count("<svg") == 4


def test_a_pace_says_how_many_steps_fit_into_a_time():
    pace = Pace(warm_steps=100, warm_ms=10.0, step_ms=40.0)
    assert pace.seconds(50) == pytest.approx(0.5) and pace.seconds(150) == pytest.approx(1 + 2)
    assert pace.steps(0.5) == 50 and pace.steps(3.0) == 150 and pace.steps(1e-9) == 1
    assert Pace(0, 40.0, 40.0).steps(4.0) == 100


def test_a_pace_is_measured_by_phases(compared, tmp_path, monkeypatch):
    monkeypatch.setattr("daps_robot.commands.one_run.TIMED_STEPS", 8)
    monkeypatch.setattr("daps_robot.commands.one_run.LOG_EVERY", 2)
    job = OneRun(str(compared[0] / "data/toy.hdf5"), "daps", "daps", {}, 0, BUDGETS["test"], SIZE)
    pace = measured_pace(job, tmp_path / "daps")
    assert pace.warm_steps == 3 and pace.warm_ms > 0 and pace.step_ms > 0 and pace.warm_ms != pace.step_ms
    scratch = measured_pace(replace(job, overrides={"warm_start_steps": 0}), tmp_path / "scratch")
    assert scratch.warm_steps == 0 and scratch.warm_ms == scratch.step_ms > 0


def test_equal_time_is_read_after_the_steps_that_fit(compared, monkeypatch, tmp_path):
    monkeypatch.chdir(compared[0])
    monkeypatch.setitem(BUDGETS, "test", replace(BUDGETS["test"], minutes=0.001))
    paces = {"daps": Pace(3, 5.0, 10.0), "vae": Pace(0, 30.0, 30.0)}  # of 60 ms
    monkeypatch.setattr("daps_robot.commands.compare_estimators.measure_paces", lambda *_: paces)
    daps, vae = run(config(name="timed"))
    assert (daps["time.step"], daps["steps.step"], daps["time.seconds"]) == (7, 6, pytest.approx(0.055))
    assert (vae["time.step"], vae["steps.step"], vae["steps.seconds"]) == (2, 6, pytest.approx(0.18))
    assert daps["steps_per_second"] == pytest.approx(7 / 0.055)


def test_finished_runs_are_not_run_again_and_others_are_refused(compared, monkeypatch):
    place, results = compared
    monkeypatch.chdir(place)
    monkeypatch.setattr("daps_robot.commands.pieces.start_process", lambda *_: pytest.fail("ran again"))
    assert run(config()) == results
    with pytest.raises(ConfigError, match=r"lr: 0.001 → 0.1"):
        run(config(lr=0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimators": ("daps", "gumble")}, "Did you mean 'gumbel'"),
        ({"estimators": ("fsq",), "tokenizer": ChunkTokenizerConfig(vocabulary=11)}, "95%"),
        ({"dataset": "data/none.hdf5"}, "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(settings, message, compared, monkeypatch):
    monkeypatch.chdir(compared[0])
    with pytest.raises(DapsRobotError, match=message):
        run(config(**settings))


def test_intervals_and_what_may_be_called_best():
    mean, half = interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-5)  # t(.975, 2) · s / √n
    assert math.isnan(interval([1.0])[1])
    clear = {"a": (3.0, 0.1), "b": (2.0, 0.5), "vae": (9.0, 0.1)}
    assert best(clear, 1) == "a" and best(clear, -1) == "b" and best(clear, 0) is None
    assert best({"a": (3.0, 0.6), "b": (2.0, 0.5)}, 1) is None
    assert best({"a": (3.0, math.nan), "b": (2.0, math.nan)}, 1) is None


def test_another_package_brings_an_estimator(monkeypatch):
    """tests/plugin is such a package as it lies installed: a module, and an entry point of the group."""
    monkeypatch.setattr(sys, "path", [str(PLUGIN), *sys.path])
    assert "best-of-k" in list(ESTIMATORS)
    kind = ESTIMATORS["best-of-k"]
    command = TrainActionVAE.default(["--estimator", "best-of-k"])
    assert command.settings == kind.configure() and command.settings.k == 8
    torch.manual_seed(0)
    tokenizer = Tokenizer(kind.tokenizer_config(tokenizer_config()))
    loss = kind(tokenizer, kind.configure(k=4), 10).loss(Inputs(torch.randn(6, 8, 3)), 0)
    loss.value.backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


def test_a_study_is_run_by_name(compared, monkeypatch):
    monkeypatch.chdir(compared[0])
    results = ablate(Ablate("encoder", "data/toy.hdf5", preset="test", tokenizer=SIZE))
    assert [r["estimator"] for r in results] == ["autoregressive", "factorised"]
    assert (compared[0] / "runs/compare/ablate-encoder/comparison.html").is_file()
    with pytest.raises(ConfigError, match="Did you mean 'samples'"):
        ablate(Ablate("sample"))


def test_every_study_has_settings_that_can_be():
    for variants in STUDIES.values():
        for name, settings in variants.values():
            ESTIMATORS[name].configure(**settings)


def test_the_gradient_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("daps_robot.commands.ablate.SIZES", ((2, 4),))
    rows = {row["estimator"]: row for row in ablate(Ablate("gradient", draws=150))}
    assert rows["rloo"]["cosine"] > 0.9 and rows["daps, η=100"]["cosine"] > 0.9
    assert rows["daps, η=100"]["snr"] > 3 * rows["daps, η=100, plain"]["snr"]
    assert all(0 <= row["cosine_floor"] <= 1 and row["snr"] >= 0 for row in rows.values())
    assert "reinmax" in capsys.readouterr().out


def test_the_toy_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("daps_robot.commands.ablate.TOY_SIZES", ((2, 4),))
    rows = {row["estimator"]: row for row in ablate(Ablate("toy", seeds=1, max_steps=300))}
    assert {"exact gradient", "daps", "rloo", "reinmax"} <= rows.keys()
    (gap,) = rows["daps"]["gaps"]
    assert rows["daps"]["mean"] == gap < 5  # 66 nats before training
    assert json.loads((tmp_path / "runs/compare/ablate-toy/results.json").read_text()) == list(rows.values())
