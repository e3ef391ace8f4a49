"""Two processes, or parts of a batch one after the other, take the steps that one process takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tokenizer_config
from train_together import ESTIMATORS_TRIED, Windows

from daps_robot import parallel
from daps_robot.checkpoints import load_state
from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS
from daps_robot.models.tokenizer import Tokenizer
from daps_robot.training.logger import read_rows
from daps_robot.training.objective import TrainerConfig
from daps_robot.training.tokenizer import TokenizerObjective
from daps_robot.training.trainer import Trainer

SCRIPT = Path(__file__).with_name("train_together.py")
TIMES = {"seconds", "steps_per_second", "train_seconds"}


def trained(folder, processes=1, accumulate=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), str(accumulate)]

    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {name: read_rows(folder / name / "metrics.jsonl") for name in ESTIMATORS_TRIED}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, trained(folder)


def assert_close(rows, others, without=TIMES):
    assert [(row["step"], row["split"]) for row in rows] == [(row["step"], row["split"]) for row in others]
    for row, other in zip(rows, others, strict=True):
        for name in row.keys() - without - {"split"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), (row["step"], row["split"], name)


def test_two_processes_take_the_steps_of_one(alone, tmp_path):
    folder, expected = alone
    found = trained(tmp_path, processes=2)
    for name in ESTIMATORS_TRIED:
        assert_close(expected[name], found[name])
        one, two = (load_state(path / name / "state.pt")["model"] for path in (folder, tmp_path))
        # where a gradient is next to nothing, Adam makes a tenth of a step of its rounding
        assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_accumulated_gradients_are_those_of_the_batch(alone, tmp_path):
    _, expected = alone
    found = trained(tmp_path, accumulate=2)
    for name in ("gr-mck-na", "vae", "daps-na"):  # whose rows do not depend on each other
        assert_close(expected[name], found[name], TIMES | {"eta"})  # which is logged as a geometric mean of the batch


def test_noise_is_cut_from_that_of_the_whole_batch():
    torch.manual_seed(3)
    whole = parallel.uniform(6, 2, device="cpu")
    for first, rows in ((0, 2), (2, 3), (5, 1)):
        torch.manual_seed(3)
        with parallel.rows_of(first, 6):
            assert torch.equal(parallel.uniform(rows, 2, device="cpu"), whole[first : first + rows])
    torch.manual_seed(3)
    whole = parallel.noise(lambda t: t.exponential_(), (4, 6), "cpu", axis=1)
    torch.manual_seed(3)
    with parallel.rows_of(2, 6):
        assert torch.equal(parallel.noise(lambda t: t.exponential_(), (4, 3), "cpu", axis=1), whole[:, 2:5])


def test_parts_are_refused_where_a_step_is_not_their_sum(tmp_path):
    kind = ESTIMATORS["ppo"]
    tokenizer = Tokenizer(kind.tokenizer_config(tokenizer_config()))
    objective = TokenizerObjective(tokenizer, kind(tokenizer, kind.configure(), 6), Windows())
    with pytest.raises(ConfigError, match="leave out --accumulate"):
        Trainer(TrainerConfig(max_steps=6, batch_size=8, accumulate=2), tmp_path / "run").fit(objective, Windows())


@pytest.mark.parametrize("name", ["daps", "daps-published", "gumbel", "fsq"])
def test_bfloat16_leaves_no_parameter_without_gradient(name):
    """Autocast may keep weights that were cast while codes were drawn, without a gradient."""
    kind = ESTIMATORS[name]
    without = []
    for enabled in (False, True):
        torch.manual_seed(0)
        tokenizer = Tokenizer(kind.tokenizer_config(tokenizer_config()))
        estimator = kind(tokenizer, kind.configure(warm_start_steps=0), 6)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = estimator.loss(tokenizer.inputs(Windows().x[:8]), 0).value
        assert loss.dtype == torch.float32
        loss.backward()
        without.append({n for n, p in estimator.named_parameters() if p.grad is None})
    assert without[0] == without[1]
