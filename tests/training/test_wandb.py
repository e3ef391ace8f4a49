"""--wandb: what Weights & Biases is told of a run, and how it fails. Nothing is sent: the extra's test keeps it offline."""

import sys
import time
import types

import pytest
from toy_objective import train

from daps_robot.errors import ConfigError
from daps_robot.training.logger import WANDB_ID, MetricLogger, check_wandb, read_rows


class Recorder:
    """In place of a run there."""

    def __init__(self):
        self.rows, self.finished, self.dead = [], False, False

    def log(self, metrics, step):
        if self.dead:
            raise ConnectionResetError("service gone")
        self.rows.append((step, metrics))

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """Recorders by identity, as a stand-in of the package keeps them."""
    kept, module = {}, types.ModuleType("wandb")

    def init(**settings):
        kept.setdefault(settings["id"], Recorder()).settings = settings
        return kept[settings["id"]]

    module.init, module.Error = init, type("Error", (Exception,), {})
    module.login = lambda: True
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return kept


def write(folder, first, steps):
    logger = MetricLogger(folder, first, tensorboard=False, wandb="arm")
    for step in steps:
        logger.log(step, "train", {"loss": float(step)})
    logger.flush()
    logger.close()


def test_a_run_has_its_configuration_and_rows(tmp_path, runs):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    write(tmp_path, 0, (5, 10))
    (run,) = runs.values()
    assert run.rows == [(5, {"train/loss": 5.0}), (10, {"train/loss": 10.0})]
    assert run.settings["project"] == "arm" and run.settings["config"] == {"seed": 3} and run.finished


def test_a_resumed_run_goes_on_with_the_same_one(tmp_path, runs):
    write(tmp_path, 0, (5, 10, 15))
    write(tmp_path, 10, (15, 20))
    (run,) = runs.values()
    assert run.settings["resume"] == "allow" and run.settings["id"] == (tmp_path / WANDB_ID).read_text()
    assert [step for step, _ in run.rows] == [5, 10, 15, 20]


def test_a_run_started_anew_is_another_one(tmp_path, runs):
    write(tmp_path, 0, (5,))
    write(tmp_path, 0, (5,))
    assert len(runs) == 2


def test_where_it_fails_the_training_goes_on(tmp_path, runs, capsys):
    logger = MetricLogger(tmp_path, 0, tensorboard=False, wandb="arm")
    logger.log(5, "train", {"loss": 1.0})
    (run,) = runs.values()
    run.dead = True
    for step in (10, 15):
        logger.log(step, "train", {"loss": 1.0})
    logger.close()
    assert capsys.readouterr().err.count("told no more of this run (service gone)") == 1
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [5, 10, 15] and len(run.rows) == 1


def test_a_run_is_not_thrown_away_for_one_that_cannot_begin(tmp_path, monkeypatch):
    train(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"daps-robot\[wandb\]"):
        train(tmp_path, overwrite=True, wandb="arm")
    assert (tmp_path / "model").is_dir() and (tmp_path / "state.pt").is_file()


@pytest.mark.parametrize("let_in", [False, "no API key"])
def test_nobody_is_logged_in(runs, monkeypatch, let_in):
    def login():
        if let_in:
            raise sys.modules["wandb"].Error(let_in)
        return False

    monkeypatch.setattr(sys.modules["wandb"], "login", login)
    with pytest.raises(ConfigError, match=r"(no API key|knows no user).*wandb login.*WANDB_MODE=offline"):
        check_wandb("arm")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_wandb("arm")


def test_a_name_that_it_does_not_take(runs):
    with pytest.raises(ConfigError, match="a/b"):
        check_wandb("a/b")


def test_refused_after_all(tmp_path, runs, monkeypatch):
    def refuse(**_):
        raise sys.modules["wandb"].Error("no permission")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ConfigError, match="no permission"):
        MetricLogger(tmp_path, 0, tensorboard=False, wandb="arm")


def test_the_package_itself(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="daps-robot[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "config.json").write_text('{"seed": 3}')
    write(tmp_path, 0, (5, 10))
    (record,) = tmp_path.glob(f"wandb/offline-run-*/run-{(tmp_path / WANDB_ID).read_text()}.wandb")
    for _ in range(100):  # a process of its own writes it
        if all(part in record.read_bytes() for part in (b"train/loss", b"seed")):
            return
        time.sleep(0.1)
    raise AssertionError(record.read_bytes())
