"""--wandb: what Weights & Biases is told of a run, and how it fails. Nothing is sent: the extra's test keeps it offline."""

import sys
import time
import types

import pytest

from daps_robot.errors import ConfigError
from daps_robot.training.logger import WANDB_ID, MetricLogger


class Recorder:
    """In place of a run there: rows, with the rule that a step before the last one is dropped."""

    def __init__(self):
        self.rows, self.finished = [], False

    def log(self, metrics, step):
        if not self.rows or step >= self.rows[-1][0]:
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
    assert sorted({step for step, _ in run.rows}) == [5, 10, 15, 20]


def test_a_run_started_anew_is_another_one(tmp_path, runs):
    write(tmp_path, 0, (5,))
    write(tmp_path, 0, (5,))
    assert len(runs) == 2


def test_refused(tmp_path, runs, monkeypatch):
    def refuse(**_):
        raise sys.modules["wandb"].Error("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ConfigError, match=r"no API key.*wandb login.*WANDB_MODE=offline"):
        MetricLogger(tmp_path, 0, tensorboard=False, wandb="arm")


def test_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"daps-robot\[wandb\]"):
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
