"""The core trainer on a toy: the same twice, interrupted and resumed the same, refusals, limits."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_objective import ToyData, ToyObjective, config, train

from daps_robot.checkpoints import load_state, load_tensors, save_state
from daps_robot.errors import CheckpointError, ConfigError, DapsRobotError, DataError, RunDirectoryError
from daps_robot.training.logger import MetricLogger, read_rows
from daps_robot.training.loop import Training
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.optimizer import OptimizerConfig
from daps_robot.training.trainer import Trainer

TIMES = {"seconds", "steps_per_second", "train_seconds"}


def rows_of(directory):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(directory / "metrics.jsonl")]


def assert_same_run(one, other):
    """Bit for bit: the saved model, the training state, the metrics (times apart)."""
    models = [load_tensors(d / "model" / "model.safetensors") for d in (one, other)]
    states = [load_state(d / "state.pt") for d in (one, other)]
    for a, b in (models, [s["model"] for s in states]):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(a, b) for a, b in zip(states[0]["average"], states[1]["average"], strict=True))
    best = [json.loads((d / "best.json").read_text()) for d in (one, other)]
    assert {k: v for k, v in best[0].items() if k not in TIMES} == {k: v for k, v in best[1].items() if k not in TIMES}
    assert rows_of(one) == rows_of(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    train(directory)
    return directory


def test_what_a_run_leaves(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"config.json", "metrics.jsonl", "state.pt", "best.json", "model"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    rows = rows_of(whole)
    assert [row["step"] for row in rows if row["split"] == "train"] == [5, 10, 15, 20]
    assert [row["step"] for row in rows if row["split"] == "valid"] == [6, 12, 18, 20]


def test_training_twice_is_the_same(whole, tmp_path):
    train(tmp_path / "again")
    assert_same_run(whole, tmp_path / "again")


def test_another_seed_is_another_run(whole, tmp_path):
    train(tmp_path, seed=1)
    assert rows_of(tmp_path)[0] != rows_of(whole)[0]


def test_what_ran_before_does_not_matter(whole, tmp_path):
    objective = ToyObjective()
    torch.manual_seed(99)
    torch.rand(1234)
    train(tmp_path, objective)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("step", [0, 4, 5, 7, 11, 18])
def test_stopped_and_resumed_is_the_same(whole, tmp_path, step):
    """A signal during a step, on and off the steps that are logged and validated."""
    with pytest.raises(KeyboardInterrupt, match=f"step {step + 1}"):
        train(tmp_path, ToyObjective({step: "stop"}))
    objective, _ = train(tmp_path, ToyObjective(seed=7), resume=True)
    assert objective.steps_seen == list(range(step + 1, 20))
    assert_same_run(whole, tmp_path)


def test_stopped_many_times_is_the_same(whole, tmp_path):
    for step in (1, 2, 8, 13):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, ToyObjective({step: "stop"}), resume=True)
    train(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("step", [3, 8, 17])
def test_killed_and_resumed_is_the_same(whole, tmp_path, step):
    """Without warning: the run goes on from the last checkpoint, or from the start where there is none."""
    with pytest.raises(RuntimeError, match="machine"):
        train(tmp_path, ToyObjective({step: "crash"}))
    objective, _ = train(tmp_path, ToyObjective(seed=7) if step >= 6 else ToyObjective(), resume=True)
    assert objective.steps_seen[0] == step // 6 * 6
    assert_same_run(whole, tmp_path)


def test_a_real_signal_from_outside(whole, tmp_path):
    code = (
        "import sys, time; from toy_objective import ToyObjective, train\n"
        "class Slow(ToyObjective):\n"
        "    def forward(self, batch, step):\n"
        "        print(step, flush=True); time.sleep(0.05 if step < 7 else 0.5)\n"
        "        return super().forward(batch, step)\n"
        "objective = Slow()\n"
        "train(sys.argv[1], objective)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    for line in process.stdout:
        if line.strip() == "7":
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt: stopped at step 8" in errors
    train(tmp_path, ToyObjective(seed=7), resume=True)
    assert_same_run(whole, tmp_path)


def test_a_finished_run_resumed_stays_as_it_is(whole, tmp_path):
    train(tmp_path)
    objective, metrics = train(tmp_path, ToyObjective(seed=7), resume=True)
    assert objective.steps_seen == []
    assert metrics == json.loads((tmp_path / "best.json").read_text())
    assert_same_run(whole, tmp_path)


def test_resume_without_a_run_starts_one(whole, tmp_path):
    train(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


def test_changed_settings_are_not_resumed(tmp_path):
    train(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"other settings.*batch_size: 8 → 9"):
        train(tmp_path, resume=True, batch_size=9)


def test_what_changes_no_figure_may_be_another(tmp_path):
    train(tmp_path)
    train(tmp_path, resume=True, workers=1, tensorboard=True)


def test_a_finished_run_without_its_state_is_not_trained_again(tmp_path):
    """As it stands where state.pt was removed for its size, or left behind."""
    train(tmp_path)
    (tmp_path / "timing.json").write_text("{}")  # which the command writes when it is done
    for path in tmp_path.glob("state*.pt"):
        path.unlink()
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(RunDirectoryError, match=r"state\.pt is gone"):
        train(tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_an_overwritten_run_keeps_no_export_of_the_old_weights(tmp_path):
    train(tmp_path)
    (tmp_path / "exported.onnx").touch()
    train(tmp_path, overwrite=True)
    assert not (tmp_path / "exported.onnx").exists()


def test_a_run_begun_by_an_earlier_version_is_resumed(whole, tmp_path):
    """Its config.json lacks a setting that there is now, with a default."""
    train(tmp_path)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text())
    del found["keep_last"]
    path.write_text(json.dumps(found))
    with pytest.raises(RunDirectoryError, match="keep_last: 0 → 2"):
        train(tmp_path, resume=True, keep_last=2)
    train(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


def test_a_directory_that_holds_a_run_is_not_overwritten_unasked(whole, tmp_path):
    train(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(RunDirectoryError, match=r"already holds a run.*--resume, --overwrite"):
        train(tmp_path, max_steps=3)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    train(tmp_path, max_steps=3, overwrite=True)
    assert rows_of(tmp_path)[-1]["step"] == 3
    train(tmp_path, overwrite=True)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("state", [b"", b"junk", {"model": {}}, {"something": 1}])
def test_a_damaged_state_is_refused(tmp_path, state):
    train(tmp_path)
    if isinstance(state, bytes):
        (tmp_path / "state.pt").write_bytes(state)
    else:
        save_state(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt") as error:
        train(tmp_path, resume=True)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before(whole, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ToyObjective({14: "stop"}))
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:-99]) if damage == "cut off" else path.unlink()
    objective, _ = train(tmp_path, ToyObjective(seed=7), resume=True)
    assert objective.steps_seen[0] == 12
    assert_same_run(whole, tmp_path)
    assert not (tmp_path / "state.before.pt").exists()  # of a finished run, none is needed


def test_a_state_of_a_later_version_says_so(tmp_path):
    train(tmp_path)
    save_state({**load_state(tmp_path / "state.pt"), "version": 2}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="has version 2, this daps_robot goes on from 1"):
        train(tmp_path, resume=True)


def spoilt(state, where, value):
    for name in where[:-1]:
        state = state[name]
    state[where[-1]] = value


@pytest.mark.parametrize(
    "where, value",
    [
        (("progress", "step"), -1),
        (("progress", "best"), "low"),
        (("progress", "seconds"), 10**400),
        (("interval",), {"sums": {"loss": 3}, "counts": {"loss": 1}}),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(1)),
        (("average",), [torch.zeros(1)]),
    ],
)
def test_a_state_that_no_run_comes_to_is_refused(tmp_path, where, value):
    train(tmp_path)
    state = load_state(tmp_path / "state.pt")
    spoilt(state, where, value)
    save_state(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt is not the training state of this run"):
        train(tmp_path, resume=True)


def test_an_interrupted_overwrite_leaves_nothing_to_be_mixed_up(whole, tmp_path, monkeypatch):
    """Killed while it throws the old run away: the next one does not take the old state for its own."""
    train(tmp_path, seed=1)
    removed, unlink = [], Path.unlink

    def one(path, missing_ok=False):
        removed.append(path)
        unlink(path, missing_ok) if len(removed) == 1 else pytest.fail("killed")

    monkeypatch.setattr(Path, "unlink", one)
    with pytest.raises(pytest.fail.Exception):
        train(tmp_path, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(RunDirectoryError, match="other settings"):
        train(tmp_path, resume=True)
    train(tmp_path, overwrite=True)
    assert_same_run(whole, tmp_path)


def test_a_state_without_its_settings_is_left_alone(tmp_path):
    train(tmp_path)
    (tmp_path / "config.json").unlink()
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunDirectoryError, match=r"state\.pt, but no config\.json"):
            train(tmp_path, **how)


@pytest.mark.parametrize("name", ["metrics.jsonl", "model"])
def test_what_another_program_left_is_not_overwritten(tmp_path, name):
    (tmp_path / name).mkdir() if name == "model" else (tmp_path / name).write_text("theirs")
    for how in ({}, {"overwrite": True}):
        with pytest.raises(RunDirectoryError, match=rf"{name}, but no config\.json"):
            train(tmp_path, **how)


def test_nor_a_directory_whose_settings_are_of_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Llama"]}')
    (tmp_path / "model").mkdir()
    trainer = Trainer(config(), tmp_path, {"command": {"_type": "TrainActionVAE"}})
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunDirectoryError, match=r"a config\.json that is no run's"):
            trainer.fit(ToyObjective(), ToyData(), **how)
    assert (tmp_path / "model").is_dir()


# -- the log -----------------------------------------------------------------------------------------------------------------


def test_a_kill_while_the_log_is_taken_up_loses_no_row(whole, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ToyObjective({14: "stop"}))
    rows = rows_of(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        MetricLogger(tmp_path, 12, tensorboard=False)
    assert rows_of(tmp_path) == rows
    monkeypatch.undo()
    train(tmp_path, ToyObjective(seed=7), resume=True)
    assert_same_run(whole, tmp_path)


def test_a_torn_last_row_is_left_out_and_any_other_damage_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = '{"step": 5, "split": "train", "loss": 1.0}'
    path.write_text(f"{row}\n{row[:20]}")
    assert len(read_rows(path)) == 1
    for damage in ("", "[1]", row[:20], '{"step": 5}', row.replace("1.0", '"x"'), "[" * 99_999):
        path.write_text(f"{row}\n{damage}\n{row}\n")
        with pytest.raises(CheckpointError, match="line 2 is no row of metrics"):
            read_rows(path)


# -- non-finite steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["agc", "norm", "none"])
def test_non_finite_steps_are_skipped_and_counted(tmp_path, clip):
    optimizer = OptimizerConfig(lr=0.01, clip=clip)
    objective, _ = train(tmp_path, ToyObjective({3: "nan", 4: "nan", 12: "nan"}), optimizer=optimizer)
    assert all(p.isfinite().all() for p in objective.parameters())
    assert [row["skipped"] for row in rows_of(tmp_path) if row["split"] == "train"] == [2, 2, 3, 3]
    assert len(objective.steps_seen) == 20


def test_a_skipped_step_leaves_the_weights(tmp_path):
    objective = ToyObjective(dict.fromkeys(range(5), "nan"))
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    train(tmp_path, objective, max_steps=5)
    assert all(torch.equal(before[k], v) for k, v in objective.state_dict().items())


def test_a_skipped_step_does_not_hide_the_others_in_the_log(tmp_path):
    train(tmp_path, ToyObjective({3: "nan"}))
    first = rows_of(tmp_path)[0]
    assert first["step"] == 5
    assert first["loss"] is not None
    assert math.isfinite(first["loss"])


@pytest.mark.parametrize("clip", ["agc", "norm", "none"])
def test_too_many_non_finite_steps_end_with_the_tensors_name(tmp_path, clip):
    objective = ToyObjective(dict.fromkeys(range(4, 20), "nan"))
    with pytest.raises(DapsRobotError, match=r"net\.3\.weight.*learning rate"):
        train(tmp_path, objective, max_skipped=3, optimizer=OptimizerConfig(clip=clip))
    assert objective.steps_seen[-1] <= 4 + 3


def test_a_parameter_with_a_rate_of_its_own_is_not_spoilt_either(tmp_path):
    """Its gradient is not clipped, but a step in which it is not finite is none."""
    objective = ToyObjective({3: "nan offset"})
    train(tmp_path, objective)
    assert all(p.isfinite().all() for p in objective.parameters())
    assert rows_of(tmp_path)[-2]["skipped"] == 1
    with pytest.raises(DapsRobotError, match="first in the gradient of offset"):
        train(tmp_path, ToyObjective(dict.fromkeys(range(9), "nan offset")), overwrite=True, max_skipped=3)


# -- limits ------------------------------------------------------------------------------------------------------------------


class Scripted(ToyObjective):
    """Validates to the given numbers, one after another."""

    def __init__(self, losses):
        super().__init__()
        self.losses = list(losses)

    def evaluate(self):
        return {"loss": self.losses.pop(0)}

    def save(self, directory):
        super().save(directory)
        self.saved = {k: v.clone() for k, v in self.state_dict().items()}


def test_the_best_validation_is_kept(tmp_path):
    _, metrics = train(tmp_path, Scripted([3.0, 1.0, 2.0, 1.5]), eval_every=5)
    assert (metrics["loss"], metrics["step"]) == (1.0, 10)


def test_early_stopping(tmp_path):
    objective, metrics = train(tmp_path, Scripted([3.0, 2.0, 2.5, 2.0, 1.0]), eval_every=2, patience=2)
    assert len(objective.steps_seen) == 8
    assert metrics["step"] == 4


def test_an_early_stopped_run_resumed_stays_stopped(tmp_path):
    train(tmp_path, Scripted([3.0, 2.0, 2.5, 2.0]), eval_every=2, patience=2)
    objective, metrics = train(tmp_path, Scripted([1.0] * 9), eval_every=2, patience=2, resume=True)
    assert objective.steps_seen == []
    assert metrics["loss"] == 2.0


def test_a_first_validation_of_nan_does_not_shut_out_the_others(tmp_path):
    _, metrics = train(tmp_path, Scripted([float("nan"), 2.0, 1.0, 3.0]), eval_every=5)
    assert metrics["loss"] == 1.0


def test_a_run_ends_when_its_time_is_up(tmp_path):
    objective, metrics = train(tmp_path, max_steps=100_000, max_minutes=0.2 / 60)
    assert 0 < len(objective.steps_seen) < 20_000
    assert metrics["step"] <= len(objective.steps_seen)
    assert load_state(tmp_path / "state.pt")["progress"]["step"] == len(objective.steps_seen)


def test_eval_every_zero_validates_at_the_end_only(tmp_path):
    objective, metrics = train(tmp_path, eval_every=0)
    assert len(objective.validations) == 1
    assert metrics["step"] == 20


def test_every_validation_has_the_same_noise(whole):
    probes = {row["probe"] for row in rows_of(whole) if row["split"] == "valid"}
    assert len(probes) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 0},
        {"batch_size": 0},
        {"log_every": 0},
        {"eval_every": -1},
        {"keep_last": -1},
        {"seed": -1},
        {"max_minutes": -1.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        TrainerConfig(**settings)


@pytest.mark.parametrize("settings", [{"device": "tpu9"}, {"precision": "17-bit"}])
def test_an_unknown_device_or_precision_is_refused(tmp_path, settings):
    with pytest.raises(ConfigError):
        train(tmp_path, **settings)


# -- averages ------------------------------------------------------------------------------------------------


def test_the_average_is_what_is_validated_and_saved(tmp_path):
    optimizer = OptimizerConfig(lr=0.05, ema=0.9)
    objective, _ = train(tmp_path, max_steps=12, eval_every=0, optimizer=optimizer)
    saved = load_tensors(tmp_path / "model" / "model.safetensors")
    state = load_state(tmp_path / "state.pt")
    for (name, weights), average in zip(objective.named_parameters(), state["average"], strict=True):
        assert torch.equal(saved[name], average)
        assert torch.equal(state["model"][name], weights)
        assert not torch.equal(saved[name], weights)


def test_a_validation_that_fails_is_done_again(whole, tmp_path, monkeypatch):
    """The state before it stands, and the averaged weights do not take the place of the trained ones."""
    evaluate, failing = ToyObjective.evaluate, {12}

    def failing_once(objective):
        if objective.steps_seen[-1] + 1 in failing:
            failing.clear()
            raise DataError("a file is gone")
        return evaluate(objective)

    monkeypatch.setattr(ToyObjective, "evaluate", failing_once)
    with pytest.raises(DataError, match="gone"):
        train(tmp_path)
    train(tmp_path, resume=True)
    assert_same_run(whole, tmp_path)


def test_without_an_average_the_weights_themselves_are_saved(tmp_path):
    objective, _ = train(tmp_path, eval_every=0, optimizer=OptimizerConfig(lr=0.01))
    saved = load_tensors(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in objective.state_dict().items())


def test_logged_values_are_means_over_their_interval(tmp_path):
    objective = ToyObjective()
    noises = []
    forward = objective.forward

    def spy(batch, step):
        loss = forward(batch, step)
        noises.append(loss.metrics["noise"].item())
        return loss

    objective.forward = spy
    train(tmp_path, objective)
    rows = [row for row in rows_of(tmp_path) if row["split"] == "train"]
    for i, row in enumerate(rows):
        interval = noises[5 * i : 5 * i + 5]
        assert row["noise"] == pytest.approx(sum(interval) / 5, rel=1e-4, abs=1e-7)
        even = interval[i % 2 :: 2]
        assert row["even"] == pytest.approx(sum(even) / len(even), rel=1e-4, abs=1e-7)


def test_config_of_the_run_is_beside_it(whole):
    assert json.loads((whole / "config.json").read_text())["max_steps"] == config().max_steps == 20


# -- the last models ---------------------------------------------------------------------------------------------------------


def kept(directory):
    """What lies in checkpoints/: step -> weights."""
    folder = directory / "checkpoints"
    return {int(path.name): load_tensors(path / "model.safetensors") for path in folder.iterdir()}


@pytest.fixture(scope="module")
def keeps_two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keeps_two")
    train(directory, keep_last=2)
    return directory


def test_the_last_validations_models_are_kept(keeps_two, tmp_path):
    """The evaluated weights of the validations at 18 and 20 of 6, 12, 18, 20; each what a run that ends there leaves."""
    found = kept(keeps_two)
    assert sorted(found) == [18, 20]
    train(tmp_path, keep_last=1, eval_every=18)
    assert sorted(kept(tmp_path)) == [20]
    average = load_state(keeps_two / "state.pt")["average"]
    names = [name for name, _ in ToyObjective().named_parameters()]
    assert all(torch.equal(found[20][name], value) for name, value in zip(names, average, strict=True))


def test_no_models_are_kept_unasked(whole):
    assert not (whole / "checkpoints").exists()


@pytest.mark.parametrize("step", [4, 7, 13, 18])
def test_stopped_and_resumed_keeps_the_same_models(keeps_two, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ToyObjective({step: "stop"}), keep_last=2)
    train(tmp_path, ToyObjective(seed=7), resume=True, keep_last=2)
    assert_same_run(keeps_two, tmp_path)
    one, other = kept(keeps_two), kept(tmp_path)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[step][name], other[step][name]) for step in one for name in one[step])


def test_killed_between_the_model_and_the_state(keeps_two, tmp_path, monkeypatch):
    """The model of step 18 is there, the state is that of step 12; a later model, of a run that validated elsewhere, goes."""
    save = Training.save
    monkeypatch.setattr(Training, "save", lambda self: save(self) if self.progress.step < 18 else pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        train(tmp_path, keep_last=2)
    assert sorted(kept(tmp_path)) == [12, 18]
    monkeypatch.undo()
    (tmp_path / "checkpoints" / "19").mkdir()
    (tmp_path / "checkpoints" / ".partial").mkdir()
    train(tmp_path, ToyObjective(seed=7), resume=True, keep_last=2)
    assert sorted(kept(tmp_path)) == sorted(kept(keeps_two))


def test_overwriting_throws_the_kept_models_away(tmp_path):
    train(tmp_path, keep_last=4)
    assert sorted(kept(tmp_path)) == [6, 12, 18, 20]
    train(tmp_path, overwrite=True)
    assert not (tmp_path / "checkpoints").exists()
