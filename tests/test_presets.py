"""Every preset is built, saved, read back and trained for a step; the benchmark prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from daps_robot.config import from_json, to_json
from daps_robot.errors import ConfigError
from daps_robot.estimators import ESTIMATORS
from daps_robot.models.tokenizer import Inputs, Tokenizer, TokenizerConfig
from daps_robot.presets import PRESETS, preset

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_json(name):
    networks = PRESETS[name].tokenizer
    assert from_json(TokenizerConfig, json.loads(json.dumps(to_json(networks)))) == networks


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("estimator", ["daps", "daps-published", "fsq"])
def test_a_preset_trains(name, estimator):
    torch.manual_seed(0)
    chosen = preset(name)
    kind = ESTIMATORS[estimator]
    tokenizer = Tokenizer(kind.tokenizer_config(chosen.tokenizer))
    x = torch.rand(1 if name == "imagenet256" else 2, *chosen.tokenizer.front_end.shape).round()
    kind(tokenizer, kind.configure(**chosen.settings), total_steps=chosen.steps)  # its warm start leaves steps for DAPS
    settings = kind.configure(**{**chosen.settings, "warm_start_steps": 0})  # which trains every part at once
    loss = kind(tokenizer, settings, total_steps=10).loss(Inputs(x), 0)
    loss.value.backward()
    trained = [*tokenizer.front_end.parameters(), *tokenizer.decoder.parameters(), *tokenizer.posterior.parameters()]
    assert loss.value.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="mnist"):
        preset("mnits")


def test_the_benchmark_ends_with_json(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), "train", "--preset", "mnist", "--batch-size", "4"]
    done = subprocess.run([*command, "--steps", "1", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {
        "steps_per_second",
        "peak_memory_gb",
        "matmul_ms",
        "sampling_ms",
        "encoder_ms",
        "decoder_ms",
        "data",
    } <= figures.keys()
