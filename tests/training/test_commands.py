"""The training commands as a person calls them: by subprocess with tiny settings, and their errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from daps_robot.checkpoints import load_state, load_tensors, owned_directory
from daps_robot.commands import cli
from daps_robot.commands.distill_policy import DistillPolicy
from daps_robot.commands.distill_policy import run as run_distill
from daps_robot.commands.train_action_vae import TrainActionVAE
from daps_robot.commands.train_action_vae import run as run_train
from daps_robot.config import from_json
from daps_robot.data.demo_writer import DemoWriter, Episode
from daps_robot.data.demos import ROBOMIMIC_KEYS
from daps_robot.errors import ConfigError
from daps_robot.models.policy import LatentPolicy
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.training.logger import read_rows
from daps_robot.types import PlanRequest

SCRIPTS = Path(__file__).parents[2] / "scripts"
DIMS = dict(zip(ROBOMIMIC_KEYS, (3, 4, 2, 10), strict=True))
TIMES = {"seconds", "steps_per_second", "train_seconds"}
TRAIN = "--max-steps 12 --warm-start-steps 4 --width 16 --layers 1 --batch-size 8 --eval-every 6 --log-every 3"
DISTILL = "--max-steps 6 --width 16 --layers 1 --batch-size 8 --eval-every 3 --log-every 3"


def write_demos(path, steps=(20, 21, 22, 23, 24, 25), actions=7, valid_fraction=0.34):
    writer = DemoWriter(path, {})
    for i, length in enumerate(steps):
        rng = np.random.default_rng(i)
        chosen = rng.uniform(-1, 1, (length, actions)).astype(np.float32)
        chosen[:, -1] = np.sign(chosen[:, -1])
        episode = Episode(
            actions=chosen,
            observations={key: rng.normal(size=(length + 1, size)).astype(np.float32) for key, size in DIMS.items()},
            states=rng.normal(size=(length, 32)),
            rewards=np.zeros(length),
            dones=np.zeros(length, np.int64),
            seed=i,
            model_file="<mujoco/>",
        )
        writer.add(i, episode)
    writer.finish(len(steps), valid_fraction, env_args={"env_name": "Lift", "type": 1})
    return path


def command(script, *arguments):
    return [sys.executable, str(SCRIPTS / script), *map(str, arguments), "--device", "cpu"]


def call(script, *arguments, cwd, code=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(script, *arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with data/toy.hdf5, a tokenizer and a policy trained on it by the commands without further names."""
    place = tmp_path_factory.mktemp("place")
    (place / "data").mkdir()
    write_demos(place / "data" / "toy.hdf5")
    place.joinpath("train.txt").write_text(call("train_action_vae.py", "--dataset", "toy", *TRAIN.split(), cwd=place).stdout)
    place.joinpath("distill.txt").write_text(call("distill_policy.py", *DISTILL.split(), cwd=place).stdout)
    return place


def test_the_tokenizer_is_trained(place):
    run = place / "runs" / "toy" / "tokenizer"
    tokenizer = Tokenizer.from_pretrained(run / "model")
    chunks = np.random.default_rng(0).uniform(-1, 1, (5, 16, 7)).astype(np.float32)
    reconstructed = tokenizer.reconstruct(chunks, np.zeros((5, 1, 19), np.float32), np.arange(5))
    assert reconstructed.shape == (5, 16, 7)
    assert set(np.unique(reconstructed[..., 6])) <= {-1.0, 1.0}  # the gripper is binary again
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["split"] == "valid"] == [6, 12]
    trained = [row for row in rows if row["split"] == "train"]
    assert "reconstruction" in trained[0] and "elbo_beta" not in trained[0]  # the warm start
    assert {"ess", "eta", "beta", "distinct", "entropy"} <= trained[-1].keys()
    description = json.loads((run / "config.json").read_text())
    config = from_json(TrainActionVAE, description["command"])
    assert (config.dataset, config.trainer.max_steps, config.settings.warm_start_steps) == ("toy", 12, 4)
    assert len(description["dataset"]["sha256"]) == 64
    assert set(json.loads((run / "timing.json").read_text())) == {"demonstrations", "tokenizer"}
    assert list((run / "tensorboard").iterdir())
    assert "6 demonstrations" not in place.joinpath("train.txt").read_text()  # two of the six are held out
    assert "64.0 bits a chunk of 16" in place.joinpath("train.txt").read_text()


def test_the_policy_is_distilled(place):
    run = place / "runs" / "toy" / "policy"
    policy = LatentPolicy.from_pretrained(run / "model")
    assert (policy.obs_keys, policy.history, policy.horizon, policy.action_dim) == (ROBOMIMIC_KEYS, 2, 16, 7)
    plan = policy.plan(PlanRequest(np.zeros((3, 2, 19), np.float32), np.arange(3)))
    assert plan.shape == (3, 16, 7)
    assert np.isfinite(plan).all()
    theirs = Tokenizer.from_pretrained(place / "runs" / "toy" / "tokenizer" / "model").state_dict()
    assert all(np.array_equal(value, theirs[name]) for name, value in policy.tokenizer.state_dict().items())
    assert json.loads((run / "config.json").read_text())["tokenizer"].endswith("toy/tokenizer")
    assert "accuracy per position" in place.joinpath("distill.txt").read_text()


def assert_same_run(one, other):
    rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(d / "metrics.jsonl")] for d in (one, other)]
    for load, name in ((load_tensors, "model/model.safetensors"), (lambda p: load_state(p)["model"], "state.pt")):
        first, second = load(one / name), load(other / name)
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[k].cpu(), second[k].cpu()) for k in first)
    assert rows[0] == rows[1]


def test_a_stopped_tokenizer_is_resumed_to_the_same(place, tmp_path):
    """Stopped by a signal in the middle, gone on with by --resume, compared with the run that was not."""
    (tmp_path / "data").mkdir()
    shutil.copy(place / "data" / "toy.hdf5", tmp_path / "data")
    arguments = ["--dataset", "toy", *TRAIN.replace("12", "60").split()]
    call("train_action_vae.py", *arguments, "--out", "whole", cwd=tmp_path)
    process = subprocess.Popen(
        command("train_action_vae.py", *arguments, "--out", "stopped"),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step"):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "state saved in stopped" in errors
    assert "Traceback" not in errors
    assert 0 < load_state(tmp_path / "stopped" / "state.pt")["progress"]["step"] < 60
    call("train_action_vae.py", *arguments, "--out", "stopped", "--resume", cwd=tmp_path)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


# -- errors: exit status 2, a line or two, no traceback ------------------------------------------------------------------------


def refused(capsys, monkeypatch, run, *arguments):
    """What a command prints to standard error as it refuses; run in this process, which is quicker."""
    config = TrainActionVAE if run is run_train else DistillPolicy
    monkeypatch.setattr(sys, "argv", ["command", "--device", "cpu", "--no-tensorboard", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_status:
        cli.main(config, run)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning:")]
    errors = "\n".join(lines)
    assert exit_status.value.code == 2, errors
    assert errors.startswith("error: ")
    assert len(lines) <= 2, errors
    return errors


@pytest.fixture
def train_refused(capsys, monkeypatch, place, tmp_path):
    monkeypatch.chdir(place)
    return lambda *more: refused(capsys, monkeypatch, run_train, *TRAIN.split(), "--out", tmp_path / "run", *more)


@pytest.fixture
def distill_refused(capsys, monkeypatch, place, tmp_path):
    monkeypatch.chdir(place)
    return lambda *more: refused(capsys, monkeypatch, run_distill, *DISTILL.split(), "--out", tmp_path / "run", *more)


def test_an_error_by_subprocess(place):
    done = call("train_action_vae.py", "--dataset", "lfit", cwd=place, code=2)
    assert done.stderr.startswith("error: no data set is called 'lfit'. Did you mean 'lift'?")
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--dataset", "lfit", "--debug"])
    with pytest.raises(ConfigError, match="lfit"):
        cli.main(TrainActionVAE, run_train)


def test_a_missing_file(train_refused, tmp_path):
    assert "absent.hdf5" in train_refused("--dataset", tmp_path / "absent.hdf5")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_hdf5(train_refused, tmp_path):
    (tmp_path / "text.hdf5").write_text("hello")
    assert "text.hdf5" in train_refused("--dataset", tmp_path / "text.hdf5")


def test_a_wrong_estimator(train_refused):
    assert "Did you mean 'daps'" in train_refused("--dataset", "toy", "--estimator", "dap")


def test_a_wrong_observation_key(train_refused):
    assert "robot0_eef_poss" in train_refused("--dataset", "toy", "--obs-keys", "robot0_eef_poss")


def test_a_chunk_longer_than_a_demonstration(train_refused):
    errors = train_refused("--dataset", "toy", "--horizon", "24")
    assert "demo_0 has 20 steps, fewer than a chunk of 24" in errors


def test_a_horizon_that_the_positions_do_not_divide(train_refused):
    errors = train_refused("--dataset", "toy", "--horizon", "13")
    assert "13 steps to 8" in errors


def test_a_horizon_of_three_times_the_positions_trains(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    arguments = ["--dataset", "toy", "--out", tmp_path / "run", *TRAIN.split(), "--horizon", 12, "--positions", 4]
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments), "--device", "cpu"])
    cli.main(TrainActionVAE, run_train)
    assert "32.0 bits a chunk of 12" in capsys.readouterr().out


def test_one_demonstration_leaves_none_to_validate_on(train_refused, tmp_path):
    write_demos(tmp_path / "one.hdf5", steps=(20,), valid_fraction=0.0)
    errors = train_refused("--dataset", tmp_path / "one.hdf5")
    assert "one.hdf5" in errors
    assert "valid" in errors


def test_a_width_that_the_heads_do_not_divide(train_refused):
    assert "width" in train_refused("--dataset", "toy", "--width", "30")


def test_an_impossible_setting(train_refused):
    assert "K=1" in train_refused("--dataset", "toy", "--k", "1")
    assert "--warm-start-steps" in train_refused("--dataset", "toy", "--max-steps", "4")
    assert "seed" in train_refused("--dataset", "toy", "--seed", "-1")


def test_an_unknown_device(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--dataset", "toy", "--device", "gpu9"])
    with pytest.raises(SystemExit) as exit_status:
        cli.main(TrainActionVAE, run_train)
    errors = capsys.readouterr().err
    assert exit_status.value.code == 2 and "gpu9" in errors and "cuda" in errors


def test_a_directory_that_holds_a_run(capsys, monkeypatch, place):
    monkeypatch.chdir(place)
    errors = refused(capsys, monkeypatch, run_train, "--dataset", "toy", *TRAIN.split())
    assert "already holds a run" in errors
    assert "--overwrite" in errors
    errors = refused(capsys, monkeypatch, run_train, "--dataset", "toy", *TRAIN.split(), "--resume", "--batch-size", "9")
    assert "trainer.batch_size: 8 → 9" in errors
    assert "resume" not in errors.split("(", 1)[1]  # that it resumes is no change of settings


def test_a_directory_in_use(train_refused, tmp_path):
    with owned_directory(tmp_path / "run"):
        assert "in use" in train_refused("--dataset", "toy")


def test_a_directory_that_cannot_be_written(train_refused, tmp_path):
    (tmp_path / "run").write_text("a file in its place")
    assert "run" in train_refused("--dataset", "toy")


def test_a_full_disk(train_refused, tmp_path, monkeypatch):
    replace = Path.replace

    def full(self, target):
        if Path(target).name == "best.json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    assert "No space left" in train_refused("--dataset", "toy")
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_no_tokenizer_to_distil(distill_refused, tmp_path, monkeypatch):
    assert "other" in distill_refused("--dataset", "other")
    assert "absent" in distill_refused("--tokenizer", tmp_path / "absent")
    monkeypatch.chdir(tmp_path)
    assert "train_action_vae.py" in distill_refused()


def test_a_damaged_tokenizer(distill_refused, place, tmp_path):
    shutil.copytree(place / "runs" / "toy" / "tokenizer", tmp_path / "tokenizer")
    weights = tmp_path / "tokenizer" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in distill_refused("--tokenizer", tmp_path / "tokenizer")


def test_a_tokenizer_whose_run_has_another_description(distill_refused, place, tmp_path):
    shutil.copytree(place / "runs" / "toy" / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text("{}")
    assert "config.json" in distill_refused("--tokenizer", tmp_path / "tokenizer")


def test_a_tokenizer_that_does_not_fit_the_data(distill_refused, tmp_path):
    write_demos(tmp_path / "five.hdf5", actions=5)
    errors = distill_refused("--tokenizer", "runs/toy/tokenizer", "--dataset", tmp_path / "five.hdf5")
    assert "actions of 7 dimensions" in errors
    assert "five.hdf5 has 5" in errors


def test_demonstrations_shorter_than_the_tokenizers_chunk(distill_refused, tmp_path):
    write_demos(tmp_path / "short.hdf5", steps=(20, 9, 20))
    errors = distill_refused("--tokenizer", "runs/toy/tokenizer", "--dataset", tmp_path / "short.hdf5")
    assert "9 steps, fewer than a chunk of 16" in errors
    assert "--horizon" not in errors  # an option of another command


@pytest.mark.parametrize("config, run", [(TrainActionVAE, run_train), (DistillPolicy, run_distill)])
def test_help_names_every_group(config, run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as exit_status:
        cli.main(config, run)
    assert exit_status.value.code == 0
    shown = capsys.readouterr().out
    for words in ("--debug", "--resume", "--overwrite", "--max-steps", "--max-minutes", "--seed", "--device", "--obs-keys"):
        assert words in shown, words
    assert "trainer options" in shown
