"""The evaluation command on the point environment: any kind of policy, trained by its command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from point_env import PointEnv, SeeingPolicy, seen_from
from tiny import SETTINGS, make_policy, skip_without_extra

from daps_robot.checkpoints import load_tensors
from daps_robot.commands import cli, evaluate, export_policy, train_policy
from daps_robot.commands.evaluate import Evaluate, RolloutConfig
from daps_robot.commands.export_policy import ExportPolicy
from daps_robot.commands.train_policy import TrainPolicy
from daps_robot.errors import CheckpointError, ConfigError, RunDirectoryError, SimulationError
from daps_robot.exported import ExportedPolicy
from daps_robot.models.policy import DecodingConfig
from daps_robot.report.page import main as write_again
from daps_robot.training.loop import Training
from daps_robot.training.objective import TrainerConfig

TRAINER = TrainerConfig(max_steps=4, batch_size=8, eval_every=2, tensorboard=False)
ROLLOUTS = RolloutConfig(episodes=3, ceiling_episodes=2, max_steps=12, slots=2, workers=1, videos=0)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The point's expert, in robomimic's layout."""
    path = tmp_path_factory.mktemp("demos") / "point.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(5):
            env = PointEnv()
            seen, _ = env.reset(seed=i)
            expert, rows, actions = env.make_expert(noise=0.1, seed=i), [], []
            for _ in range(15):
                rows.append({key: value.copy() for key, value in seen.items()})
                actions.append(expert.act(seen))
                seen, *_ = env.step(actions[-1])
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = np.stack(actions)
            for key in ("goal", "position"):
                demo[f"obs/{key}"] = np.stack([row[key] for row in rows])
    return path


def trained(kind: str, demos: Path, out: Path) -> Path:
    skip_without_extra(kind)
    settings = SETTINGS[kind]
    config = TrainPolicy(str(demos), kind, out, obs_keys=("goal", "position"), settings=settings, trainer=TRAINER)
    train_policy.run(config)
    return out


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_any_kind_is_trained_and_evaluated(kind: str, demos: Path, tmp_path: Path, env_id: str) -> None:
    run = trained(kind, demos, tmp_path / kind)
    assert json.loads((run / "timing.json").read_text()).keys() == {"policy"}
    report = evaluate.run(Evaluate(run, env=env_id, rollout=ROLLOUTS))
    assert report == json.loads((run / "report.json").read_text()) and (run / "report.html").is_file()
    assert report["policy_kind"] == kind
    assert report["episodes"] == 3 and 0 <= report["success_rate"] <= 1
    assert report["rollouts"]["settings"]["execute"] == SETTINGS[kind].execute
    assert report["chunk_error"] > 0 and len(report["policy_rmse"]) == 2
    assert report["policy_latency_ms"]["p50"] > 0 and report["policy_parameters"] > 1000
    assert not {"bits_per_chunk", "tokenizer_ceiling", "codes_success_rate", "replay_success"} & report.keys()
    best = json.loads((run / "best.json").read_text())
    assert report["chunk_error"] == pytest.approx(best["chunk_error"], rel=1e-5)


@pytest.fixture
def watched(demos: Path, tmp_path: Path) -> Path:
    """The same with what two cameras saw."""
    path = tmp_path / "watched.hdf5"
    shutil.copy(demos, path)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for camera in SeeingPolicy.cameras:
                demo[f"obs/{camera}_image"] = np.stack([seen_from(camera, each) for each in demo["obs/position"]])
    return path


def test_a_policy_with_cameras_is_trained_and_evaluated(watched: Path, tmp_path: Path) -> None:
    config = TrainPolicy(str(watched), out=tmp_path / "run", cameras=SeeingPolicy.cameras, env="test/SeeingPoint-v0")
    train_policy.run(replace(config, obs_keys=("goal", "position"), settings=SETTINGS["regression"], trainer=TRAINER))
    report = evaluate.run(Evaluate(tmp_path / "run", rollout=ROLLOUTS))
    assert report["episodes"] == 3 and report["policy_latency_ms"]["p50"] > 0
    assert "What the policy sees" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(SimulationError, match="has no right_image, left_image in what it observes"):
        evaluate.run(Evaluate(tmp_path / "run", env="test/Point-v0", rollout=ROLLOUTS))


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        ("test/BlindPoint-v0", SimulationError, r"no GL here.*\n.*--env none does without"),
        ("test/Point-v0", ConfigError, r"'right_image' is of \(24, 28\) pixels in .*, not observed in test/Point-v0"),
    ],
)
def test_nothing_is_trained_where_its_pictures_are_not_drawn(
    env: str, error: type[Exception], message: str, watched: Path, tmp_path: Path
) -> None:
    config = TrainPolicy(str(watched), out=tmp_path / "run", cameras=SeeingPolicy.cameras, env=env, trainer=TRAINER)
    with pytest.raises(error, match=message):
        train_policy.run(replace(config, settings=SETTINGS["regression"]))
    assert not (tmp_path / "run").exists()


def test_another_number_of_executed_steps(demos: Path, tmp_path: Path, env_id: str) -> None:
    run = trained("regression", demos, tmp_path / "run")
    report = evaluate.run(Evaluate(run, env=env_id, out=tmp_path / "other", rollout=replace(ROLLOUTS, execute=2)))
    assert report["rollouts"]["settings"]["execute"] == 2
    assert (tmp_path / "other" / "report.html").is_file()


def test_a_latent_policy_has_ceilings_too(demos: Path, tmp_path: Path, env_id: str) -> None:
    policy = make_policy(DecodingConfig(), observation=4, channels=2)
    policy.config = replace(policy.config, obs_keys=("goal", "position"))
    run = tmp_path / "point" / "policy"
    policy.save_pretrained(run / "model")
    (run / "config.json").write_text(json.dumps({"dataset": {"path": str(demos)}}))
    report = evaluate.run(Evaluate(run, env=env_id, rollout=ROLLOUTS))
    assert (tmp_path / "point" / "report.html").is_file()  # of the whole chain
    assert report["policy_kind"] == "policy" and report["decoding"] == "expected"
    assert report["rollouts"]["settings"]["execute"] == 4
    assert report["bits_per_chunk"] == 16
    for key in ("codes_success_rate", "tokenizer_ceiling", "other_codes_ceiling", "ceiling_in_short_episodes", "chunk_error"):
        assert report[key] >= 0, key
    assert len(report["reconstruction_rmse"]) == len(report["other_codes_rmse"]) == len(report["policy_rmse"]) == 2


def test_an_exported_policy_is_checked_timed_and_evaluated(
    demos: Path, tmp_path: Path, env_id: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    policy = make_policy(DecodingConfig(), observation=4, channels=2, positions=2)
    policy.config = replace(policy.config, obs_keys=("goal", "position"))
    run, file = tmp_path / "policy", tmp_path / "policy" / "exported.onnx"
    policy.save_pretrained(run / "model")
    described = {"dataset": {"path": str(demos), "sha256": ""}, "command": {"env": env_id}}
    (run / "config.json").write_text(json.dumps(described))
    config = ExportPolicy(run, observations=5, calls=3)
    found = export_policy.run(config)
    assert found["file"] == str(file) and found["observations"] == 5 and found["chunk_error"] <= 1e-5
    assert set(found["latency_ms"]) == {"saved", "exported"} and found["latency_ms"]["exported"]["p50"] > 0
    assert "plans as" in capsys.readouterr().out
    with pytest.raises(RunDirectoryError, match="--overwrite"):
        export_policy.run(config)

    report = evaluate.run(Evaluate(file, rollout=ROLLOUTS))  # data set and environment are in the file
    assert report == json.loads((run / "exported" / "report.json").read_text())
    saved = evaluate.run(Evaluate(run, rollout=ROLLOUTS))
    assert report["chunk_error"] == pytest.approx(saved["chunk_error"], rel=1e-4)
    assert report["policy_kind"] == "exported" and report["policy_parameters"] == saved["policy_parameters"]
    for key in ("success_rate", "mean_score", "episodes"):
        assert report[key] == saved[key]
    assert write_again([str(run / "exported")]) == 0
    with pytest.raises(ConfigError, match=r"decodes as it was exported \(expected\)"):
        evaluate.run(Evaluate(file, rollout=ROLLOUTS, decoding=DecodingConfig("greedy")))

    monkeypatch.setattr(evaluate, "read_policy", lambda path: (read := ExportedPolicy(path), read.config.run.clear())[0])
    with pytest.raises(CheckpointError, match=r"exported\.onnx does not say which data set"):
        evaluate.run(Evaluate(file, rollout=ROLLOUTS))

    monkeypatch.setattr(export_policy, "export_policy", lambda saved, path, run: path.write_bytes(b"damaged"))
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="is damaged, or export_policy"):
        export_policy.run(replace(config, overwrite=True))
    assert file.read_bytes() == before and not list(run.glob("*unchecked*"))


def test_what_an_exported_policy_may_do_otherwise() -> None:
    torch.manual_seed(0)
    policy, seen = make_policy(), np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)

    def exported(shift: int = 0, off: float = 0.0) -> Any:
        def decide(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            codes, chunks = policy.decide(torch.from_numpy(observations))
            return (codes.numpy() + shift) % 16, chunks.numpy() + np.float32(off)

        return SimpleNamespace(decide=decide)

    assert export_policy.compare(policy, exported(), seen) == {"ties": 0, "chunk_error": 0}
    assert 0 < export_policy.compare(policy, exported(off=5e-6), seen)["chunk_error"] <= 1e-5
    for off in (1e-3, np.nan):
        with pytest.raises(CheckpointError, match="plan for observation 0 differs by"):
            export_policy.compare(policy, exported(off=off), seen)
    with pytest.raises(CheckpointError, match="chooses other codes for observation 0"):
        export_policy.compare(policy, exported(shift=1), seen)
    policy.code_model.head.scale.data.zero_()  # all codes are as likely
    assert export_policy.compare(policy, exported(shift=1), seen) == {"ties": 6, "chunk_error": 0}


def test_settings_of_an_export_that_cannot_work(tmp_path: Path) -> None:
    for wrong, message in (({"observations": 0}, "count from 1"), ({"out": tmp_path / "x.pt2"}, "ending .onnx")):
        with pytest.raises(ConfigError, match=message):
            ExportPolicy(tmp_path, **wrong)


def test_without_the_simulator_there_is_a_report_of_held_out_errors(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "named.hdf5"
    shutil.copy(demos, named)
    with h5py.File(named, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"gymnasium_id": "test/Elsewhere-v0"})
    run = trained("regression", named, tmp_path / "run")
    assert "test/Elsewhere-v0 fits was not checked" in capsys.readouterr().out
    report = evaluate.run(Evaluate(run, rollout=ROLLOUTS))
    assert "test/Elsewhere-v0 is not to be had" in (said := capsys.readouterr().out) and "--env none" in said
    assert report["chunk_error"] > 0 and "success_rate" not in report and (run / "report.html").is_file()
    with pytest.raises(SimulationError, match="not to be had"):
        evaluate.run(Evaluate(run, env="test/Elsewhere-v0", rollout=ROLLOUTS))


def test_more_steps_than_a_plan_has_are_refused_without_a_simulator_too(demos: Path, tmp_path: Path) -> None:
    run = trained("regression", demos, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--execute 99: the policy in .* plans 8 steps"):
        evaluate.run(Evaluate(run, env="none", rollout=replace(ROLLOUTS, execute=99)))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"workers": -1}, "workers=-1"),
        ({"max_steps": 0}, "--max-steps 0"),
        *[({name: value}, "count from 1") for name in ("episodes", "slots", "execute") for value in (0, -1)],
    ],
)
def test_numbers_that_cannot_be_are_refused_at_once(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RolloutConfig(**numbers)


def test_another_data_set_is_refused(demos: Path, tmp_path: Path, env_id: str) -> None:
    run = trained("regression", demos, tmp_path / "run")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        for i in range(2):
            file[f"data/demo_{i}/actions"] = np.zeros((20, 3))
            for key in ("goal", "position"):
                file[f"data/demo_{i}/obs/{key}"] = np.zeros((20, 2))
    with pytest.raises(CheckpointError, match=r"'position': 2.* to 2 action dimensions"):
        evaluate.run(Evaluate(run, dataset=str(tmp_path / "other.hdf5"), env=env_id, rollout=ROLLOUTS))


# -- training by command line --------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    shared = ["--batch-size", 8, "--eval-every", 0, "--no-tensorboard", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["train_policy", *map(str, [*arguments, *shared])])
    cli.main(TrainPolicy, train_policy.run)


def test_a_stopped_training_is_resumed_to_the_same(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--dataset", demos, "--horizon", 8, "--width", 16, "--layers", 1, "--max-steps", 6, "--log-every", 3]
    call(monkeypatch, *size, "--out", tmp_path / "whole")
    assert "regression on" in capsys.readouterr().out

    def stop(training: Training) -> None:
        training.save()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Training, "log_means", stop)  # at step 3
        with pytest.raises(SystemExit):
            call(patched, *size, "--out", tmp_path / "part")
    assert not (tmp_path / "part" / "model").exists()
    call(monkeypatch, *size, "--out", tmp_path / "part", "--resume")
    models = [load_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "part")]
    assert all(models[0][name].equal(models[1][name]) for name in models[0])


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as status:
        call(monkeypatch, *arguments)
    errors = capsys.readouterr().err
    assert status.value.code == 2 and errors.startswith("error: ") and len(errors.splitlines()) <= 2, errors
    return errors


def test_refusals(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--dataset", demos, "--out", tmp_path / "run"]
    message = refused(monkeypatch, capsys, *common, "--policy", "difusion")
    assert "Did you mean 'diffusion'" in message and " policy," not in message
    assert "distill_policy.py" in refused(monkeypatch, capsys, *common, "--policy", "policy")
    assert "--estimator daps, then scripts/distill_policy.py" in refused(monkeypatch, capsys, *common, "--policy", "daps")
    assert "test/Line-v0 is not to be had" in refused(monkeypatch, capsys, *common, "--env", "test/Line-v0")
    assert "does not observe 'goal'" in refused(monkeypatch, capsys, *common, "--env", "Pendulum-v1")
    keys = ["--obs-keys", "position"]
    message = refused(monkeypatch, capsys, *common, "--env", "test/LinePoint-v0", *keys)
    assert "actions of 2 dimensions, test/LinePoint-v0 takes 3" in message
    assert "15 steps, fewer than a chunk of 16" in refused(monkeypatch, capsys, *common)
    assert "execute 9 must be from 1 to 8" in refused(monkeypatch, capsys, *common, "--horizon", 8, "--execute", 9)
    assert not (tmp_path / "run").exists()


def test_help_shows_the_settings_of_the_policy_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, word in (("diffusion", "--inference-steps"), ("bc-rnn-gmm", "--modes"), ("regression", "--style")):
        with pytest.raises(SystemExit) as status:
            call(monkeypatch, "--policy", kind, "--help")
        assert status.value.code == 0
        assert word in capsys.readouterr().out
